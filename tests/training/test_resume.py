"""Running the same command again goes on as if nothing had happened, wherever and however the process ended."""

import json
import os
import signal

import pytest
import torch
from pixart_delta.pixart_core import saving
from pixart_delta.pixart_core.weightfile import CheckpointError
from pixart_delta.training import checkpoint
from pixart_delta.training.cli import describe_run
from pixart_delta.training.config import make_config
from pixart_delta.training.data import FeatureDataset
from pixart_delta.training.export import export
from pixart_delta.training.machine import PackageError
from pixart_delta.training.run_dir import RunDir, RunDirError
from pixart_delta.training.step.optimizers import check_optimizer
from pixart_delta.training.watch.monitor import Monitor
from safetensors import safe_open
from safetensors.torch import load_file

import pixart_core as pc
from tests.fixtures_nano import nano_config, random_pixart
from tests.training.runs_fixture import COMMANDS, losses, make_material, run_apart, run_here, same_weights, settings

SHORT = {"steps": 6, "checkpoint_every": 2, "accumulation": 1, "workers": 0, "warmup_steps": 2}


@pytest.fixture(scope="module")
def material(tmp_path_factory):
    return make_material(tmp_path_factory.mktemp("material"))


@pytest.fixture(scope="module")
def short(material, tmp_path_factory):
    """Six steps of fine-tuning without a break."""
    return run_here("finetune", settings("finetune", material, tmp_path_factory.mktemp("short"), **SHORT))


@pytest.fixture(scope="module", autouse=True)
def one_thread():
    """As the forked processes have, so that sums are made in the same order."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def kill_oneself(*_arguments):
    os.kill(os.getpid(), signal.SIGKILL)


def killed_after(step):
    def patch():
        add = Monitor.add

        def add_and_die(self, number, *values):
            add(self, number, *values)
            if number == step:
                kill_oneself()

        Monitor.add = add_and_die

    return patch


@pytest.mark.parametrize("command", COMMANDS)
def test_a_killed_run_goes_on_to_the_last_bit(command, material, tmp_path):
    straight = run_here(command, settings(command, material, tmp_path / "straight", log_every=3))
    halves = settings(command, material, tmp_path / "halves", log_every=3)
    assert run_apart(command, halves, killed_after(10)) == -signal.SIGKILL
    assert [file.stem for file in RunDir(halves["run"]).checkpoints()] == ["step_00000004", "step_00000008"]
    assert RunDir(halves["run"]).read_status()["state"] == "running" and not RunDir(halves["run"]).is_running()
    halves = run_here(command, halves)
    assert losses(halves) == losses(straight) and len(losses(straight)) == 7
    assert same_weights(halves, straight)
    assert halves.read_status()["state"] == "done"


def while_writing():
    save_file = saving.save_file

    def half(state, path, metadata):
        save_file(state, path, metadata)
        if "step_00000004" in str(path):
            os.truncate(path, os.path.getsize(path) // 2)
            kill_oneself()

    saving.save_file = half


def before_the_rename():
    publish = saving._publish
    saving._publish = lambda file, path: kill_oneself() if "step_00000004" in path.name else publish(file, path)


def before_old_ones_go():
    save = checkpoint.save_weights

    def save_and_die(state, path, metadata):
        save(state, path, metadata)
        if "step_00000004" in path.name:
            kill_oneself()

    checkpoint.save_weights = save_and_die


@pytest.mark.parametrize(
    ("moment", "left"), [(while_writing, [2]), (before_the_rename, [2]), (before_old_ones_go, [2, 4])]
)
def test_a_kill_during_a_save_costs_no_checkpoint(moment, left, material, short, tmp_path):
    values = settings("finetune", material, tmp_path, keep_checkpoints=1, **SHORT)
    assert run_apart("finetune", values, moment) == -signal.SIGKILL
    run = RunDir(tmp_path)
    assert [int(file.stem.split("_")[1]) for file in run.checkpoints()] == left
    checkpoint.newest_readable(run, pytest.fail)
    run_here("finetune", values)
    assert same_weights(run, short) and losses(run) == losses(short)
    assert [file.name for file in (tmp_path / "checkpoints").iterdir()] == ["step_00000006.safetensors"]


def damaged(run, how):
    newest = run.checkpoints()[-1]
    data = bytearray(newest.read_bytes())
    if how == "cut short":
        data = data[: len(data) // 2]
    else:
        data[-1000] ^= 1
    newest.write_bytes(data)


@pytest.mark.parametrize("how", ["cut short", "one bit"])
def test_a_damaged_checkpoint_is_put_aside_and_the_one_before_used(how, material, short, tmp_path):
    run = run_here("finetune", settings("finetune", material, tmp_path, **{**SHORT, "steps": 4}))
    damaged(run, how)
    run_here("finetune", settings("finetune", material, tmp_path, **SHORT))
    log = (tmp_path / "log.txt").read_text()
    assert "step_00000004.safetensors is damaged (" in log and "step_00000002.safetensors at step 2" in log
    assert (tmp_path / "checkpoints/step_00000004.damaged").exists()
    assert same_weights(run, short) and losses(run) == losses(short)


def test_without_a_readable_checkpoint_nothing_begins_anew_by_itself(material, tmp_path):
    values = settings("finetune", material, tmp_path, **{**SHORT, "steps": 1})
    damaged(run_here("finetune", values), "cut short")
    with pytest.raises(CheckpointError, match="no checkpoint of .* can be read; the newest, step_00000001.*Delete"):
        run_here("finetune", values)
    assert RunDir(tmp_path).read_status()["state"] == "failed" and len(RunDir(tmp_path).checkpoints()) == 1


@pytest.mark.parametrize(
    ("other", "problem"),
    [
        (nano_config(depth=3, hidden_size=60), "its weights are of another shape"),
        (nano_config(depth=3), "those of base, are others now"),
    ],
)
def test_a_base_that_changed_is_refused(other, problem, material, tmp_path):
    base = pc.save_pixart(random_pixart(nano_config(depth=3)), tmp_path / "base.safetensors")
    values = settings("lcd", {**material, "base": str(base)}, tmp_path / "run", **{**SHORT, "steps": 1})
    run = run_here("lcd", values)
    pc.save_pixart(random_pixart(other, seed=5), base)
    before = run.checkpoints()[-1].read_bytes()
    with pytest.raises(
        CheckpointError, match=f"cannot resume from .*step_00000001.*{problem}.*choose a new run folder"
    ):
        run_here("lcd", {**values, "steps": 2})
    assert run.checkpoints()[-1].read_bytes() == before


def test_another_base_or_command_is_refused(material, tmp_path):
    run_here("finetune", settings("finetune", material, tmp_path, **{**SHORT, "steps": 1}))
    with pytest.raises(RunDirError, match="holds another run .*base was .* and is 'other.safetensors'"):
        run_here("finetune", settings("finetune", {**material, "base": "other.safetensors"}, tmp_path))
    with pytest.raises(RunDirError, match="its command was finetune, not lcd"):
        run_here("lcd", settings("lcd", material, tmp_path))
    assert RunDir(tmp_path).read_status()["state"] == "done"


@pytest.mark.parametrize("change", [{"optimizer": "adamw8bit"}, {"precision": "fp16"}, {"precision": "bf16"}])
def test_other_optimisers_and_precisions_resume_too(change, material, tmp_path):
    whole = settings("lcd", material, tmp_path / "straight", **SHORT, **change)
    try:
        check_optimizer(make_config("lcd", whole).optimizer, torch.device("cpu"))
    except PackageError as error:
        pytest.skip(str(error))
    straight = run_here("lcd", whole)
    halves = settings("lcd", material, tmp_path / "halves", **SHORT, **change)
    run_here("lcd", {**halves, "steps": 3})
    halves = run_here("lcd", halves)
    assert losses(halves) == losses(straight) and same_weights(halves, straight)
    one, other = (facts(run) for run in (straight, halves))
    assert one["numbers"] == other["numbers"]
    if "optimizer" in change:
        dtypes = {tensor.dtype for name, tensor in load_file(straight.checkpoints()[-1]).items() if ".state1." in name}
        assert dtypes == {torch.uint8, torch.float32} and one["numbers"]["optimizer"]
    if change.get("precision") == "fp16":
        assert one["numbers"]["scaler"]["scale"] > 1


def facts(run):
    with safe_open(run.checkpoints()[-1], "pt") as file:
        return json.loads(file.metadata()["training"])


def test_a_finished_run_is_left_as_it_is(short):
    before = short.checkpoints()[-1].stat().st_mtime_ns
    config = short.read_config()["config"]
    run_here("finetune", config)
    assert short.checkpoints()[-1].stat().st_mtime_ns == before and short.read_status()["state"] == "done"
    assert len(losses(short)) == 6


def test_a_refused_resume_leaves_a_run_that_can_be_used(material, tmp_path):
    """Its settings and how far it is: else `export` builds another network, and a list of jobs shows step 0."""
    values = settings("controlnet", material, tmp_path, **{**SHORT, "steps": 2})
    run = run_here("controlnet", values)
    before, status = run.read_config(), run.read_status()
    with pytest.raises(RunDirError, match="holds another run .copy_blocks was 2 and is 1"):
        run_here("controlnet", {**values, "copy_blocks": 1, "steps": 4})
    assert run.read_config() == before and run.read_status() == status
    with pytest.raises(CheckpointError, match="its weights are of another shape"):
        run_here("controlnet", {**values, "ema_decay": 0.9, "steps": 4})
    assert run.read_config() == before
    failed = run.read_status()
    assert failed["state"] == "failed" and "another shape" in failed["message"]
    assert all(failed[name] == status[name] for name in ("step", "checkpoint", "export", "loss"))
    assert "step: 2 of 4" in describe_run(str(tmp_path))
    export(make_config("export", {"run": str(tmp_path)}))
    assert run_here("controlnet", {**values, "steps": 4}).read_config()["config"]["steps"] == 4
    assert run.read_status()["step"] == 4 and "message" not in run.read_status()


def keys_of_steps(monkeypatch):
    """Names of the pictures of every micro-batch that is taken from now on."""
    seen = []
    batches = FeatureDataset.batches

    def note(self, *arguments):
        for batch in batches(self, *arguments):
            seen.append(batch["keys"])
            yield batch

    monkeypatch.setattr(FeatureDataset, "batches", note)
    return seen


def test_another_accumulation_goes_on_at_the_same_place_in_the_data(material, tmp_path, monkeypatch):
    seen = keys_of_steps(monkeypatch)
    run_here("finetune", settings("finetune", material, tmp_path / "straight", **{**SHORT, "steps": 9}))
    straight = seen[:]
    seen.clear()
    values = settings("finetune", material, tmp_path / "changing", **SHORT)
    for steps, accumulation in ((2, 2), (3, 3), (5, 1)):
        run_here("finetune", {**values, "steps": steps, "accumulation": accumulation})
    assert seen == straight


def test_another_batch_size_goes_on_at_about_the_same_place_in_the_data(material, tmp_path, monkeypatch):
    """After four batches of two: the third of four, and not the fifth."""
    seen = keys_of_steps(monkeypatch)
    run_here(
        "finetune", settings("finetune", material, tmp_path / "straight", **{**SHORT, "steps": 4, "batch_size": 4})
    )
    expected = seen[2:4]
    seen.clear()
    values = settings("finetune", material, tmp_path / "changing", **SHORT)
    run_here("finetune", {**values, "steps": 4})
    run_here("finetune", {**values, "steps": 6, "batch_size": 4})
    assert seen[4:] == expected


def test_another_batch_size_is_said(material, tmp_path):
    run_here("finetune", settings("finetune", material, tmp_path, **{**SHORT, "steps": 1}))
    run_here("finetune", settings("finetune", material, tmp_path, **{**SHORT, "steps": 2, "batch_size": 3}))
    assert "a micro-batch had 2 pictures over all processes and now has 3" in (tmp_path / "log.txt").read_text()
