"""Several processes train what one would, see each sample once, end together; any number of them resumes."""

import collections
import operator
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from pixart_delta.training.data import FeatureDataset
from pixart_delta.training.engine import Engine
from pixart_delta.training.run_dir import RunDir
from safetensors.torch import load_file

from tests.training.runs_fixture import (
    COMMANDS,
    losses,
    make_material,
    run_apart,
    run_processes,
    same_weights,
    settings,
    wait_until,
)

ROOT = Path(__file__).resolve().parents[2]
TEN = {"steps": 10, "workers": 0, "checkpoint_every": 5, "warmup_steps": 2, "learning_rate": 2e-5}
PICTURES, STEPS_AN_EPOCH = 21, 3
"""12 and 9 pictures in two buckets, 4 or 3 of one bucket in a batch, two batches a step."""


@pytest.fixture(scope="module")
def material(tmp_path_factory):
    return make_material(tmp_path_factory.mktemp("material"))


def assert_alike(one, other):
    one, other = RunDir(one), RunDir(other)
    assert len(losses(one)) == len(losses(other)) == 10
    assert max(abs(a - b) for a, b in zip(losses(one), losses(other), strict=True)) < 1e-5
    one, other = (load_file(run.checkpoints()[-1]) for run in (one, other))
    assert one.keys() == other.keys()
    assert all(torch.allclose(one[name], other[name], rtol=0.02, atol=5e-5) for name in one if "model." in name)


@pytest.mark.parametrize("sharding", ["none", "fsdp"])
@pytest.mark.parametrize("command", COMMANDS)
def test_two_processes_do_what_one_does(command, sharding, material, tmp_path):
    def write_down_samples(rank):
        step = Engine.step

        def step_and_tell(self, *arguments):
            result = step(self, *arguments)
            with open(tmp_path / f"samples_{rank}", "a") as file:
                file.write(" ".join(result.keys) + "\n")
            return result

        Engine.step = step_and_tell

    two = settings(command, material, tmp_path / "two", **TEN, batch_size=2, sharding=sharding)
    assert run_processes(command, two, write_down_samples) == [0, 0]
    assert run_apart(command, settings(command, material, tmp_path / "one", **TEN, batch_size=4)) == 0
    assert_alike(tmp_path / "one", tmp_path / "two")
    seen = [(tmp_path / f"samples_{rank}").read_text().splitlines() for rank in (0, 1)]
    for epoch in range(3):
        part = slice(epoch * STEPS_AN_EPOCH, (epoch + 1) * STEPS_AN_EPOCH)
        counts = collections.Counter(" ".join(seen[0][part] + seen[1][part]).split())
        assert len(counts) == PICTURES and set(counts.values()) == {1}


def test_a_run_goes_on_with_another_number_of_processes(material, tmp_path):
    values = settings("lcd", material, tmp_path / "changing", **TEN)
    assert run_processes("lcd", {**values, "steps": 3, "batch_size": 2, "sharding": "fsdp"}) == [0, 0]
    assert run_apart("lcd", {**values, "steps": 6, "batch_size": 4}) == 0
    assert run_processes("lcd", {**values, "batch_size": 2}) == [0, 0]
    assert run_apart("lcd", settings("lcd", material, tmp_path / "one", **TEN, batch_size=4)) == 0
    assert_alike(tmp_path / "one", tmp_path / "changing")


def test_other_hosts_need_not_see_the_run_folder(material, tmp_path):
    def go_home(rank):
        (tmp_path / f"host_{rank}").mkdir(exist_ok=True)
        os.chdir(tmp_path / f"host_{rank}")

    straight = settings("lcd", material, Path("straight"), **{**TEN, "steps": 4})
    halves = settings("lcd", material, Path("halves"), **{**TEN, "steps": 4})
    assert run_processes("lcd", straight, go_home) == [0, 0]
    assert run_processes("lcd", {**halves, "steps": 2}, go_home) == [0, 0]
    assert run_processes("lcd", halves, go_home) == [0, 0]
    one, other = (RunDir(tmp_path / "host_0" / name) for name in ("straight", "halves"))
    assert losses(one) == losses(other) and same_weights(one, other)
    assert not list((tmp_path / "host_1").iterdir())


def test_sharded_layers_on_a_half_precision_base(material, tmp_path):
    values = settings("lcm-lora", material, tmp_path, **{**TEN, "steps": 2}, precision="bf16", sharding="fsdp")
    assert run_processes("lcm-lora", values) == [0, 0]
    assert (tmp_path / "exports/lora.safetensors").exists()


def test_sharded_blocks_are_gathered_in_half_precision_and_their_tables_are_not(material, tmp_path):
    def note_types(rank):
        from pixart_delta.pixart_core.layers import Block, Mlp

        for kind, name in ((Block, "scale_shift_table"), (Mlp, "fc1.weight")):

            def noting(self, *arguments, forward=kind.forward, name=name, **options):
                if rank == 0:
                    with open(tmp_path / f"types_{precision}", "a") as file:
                        file.write(f"{name} {operator.attrgetter(name)(self).dtype} {torch.is_grad_enabled()}\n")
                return forward(self, *arguments, **options)

            kind.forward = noting

    two = {}
    for precision in ("fp32", "bf16"):
        values = settings("lcd", material, tmp_path / precision, **{**TEN, "steps": 2}, precision=precision)
        assert run_processes("lcd", values | {"sharding": "fsdp", "gradient_checkpointing": True}, note_types) == [0, 0]
        two[precision] = losses(RunDir(tmp_path / precision))
    assert two["bf16"] == pytest.approx(two["fp32"], rel=0.01)
    whole, half = ((tmp_path / f"types_{name}").read_text().split("\n") for name in ("fp32", "bf16"))
    assert not any("bfloat16" in line for line in whole)
    assert not any("bfloat16" in line for line in half if "table" in line)
    student, others = (half.count(f"scale_shift_table torch.float32 {grad}") for grad in (True, False))
    assert half.count("fc1.weight torch.bfloat16 True") == student > 0
    # The average, and the teacher, which is in half precision anyway: so is its caption projection, 4 times.
    assert half.count("fc1.weight torch.bfloat16 False") == others + 4


def test_gradients_go_between_processes_once_a_step(material, tmp_path):
    """Not for each micro-batch that is added up."""

    def note_reduces(rank):
        run = Engine._run_micro_batch

        def noting(self, *arguments):
            with open(tmp_path / f"reduced_{rank}", "a") as file:
                file.write(f"{self.model.require_backward_grad_sync} ")
            return run(self, *arguments)

        Engine._run_micro_batch = noting

    values = settings("lcd", material, tmp_path / "run", **{**TEN, "steps": 2}, accumulation=3)
    assert run_processes("lcd", values, note_reduces) == [0, 0]
    assert (tmp_path / "reduced_1").read_text().split() == 2 * ["False", "False", "True"]


def test_a_loss_that_explodes_on_one_process_ends_all_and_names_its_batch(material, tmp_path, capfd):
    def spoil(rank):
        batches = FeatureDataset.batches

        def spoilt(self, *arguments):
            for number, batch in enumerate(batches(self, *arguments)):
                if rank == 1 and number == 6:
                    batch["latent"][0, 0, 0, 0] = torch.nan
                    (tmp_path / "spoilt").write_text(", ".join(batch["keys"]))
                yield batch

        FeatureDataset.batches = spoilt

    values = settings("finetune", material, tmp_path, **TEN, accumulation=1)
    assert run_processes("finetune", values, spoil) == [1, 1]
    status = RunDir(tmp_path).read_status()
    assert status["state"] == "failed" and f"at step 7, batch {(tmp_path / 'spoilt').read_text()}:" in status["message"]
    assert "the last good checkpoint: step_00000005.safetensors" in status["message"]
    assert [file.stem for file in RunDir(tmp_path).checkpoints()] == ["step_00000005"]
    assert capfd.readouterr().err.count("error:") == 1


def test_a_signal_to_one_process_stops_all_after_the_same_step(material, tmp_path):
    def signal_at_four(rank):
        step = Engine.step

        def step_and_signal(self, number, batches):
            if rank == 1 and number == 3:
                os.kill(os.getpid(), signal.SIGTERM)
            return step(self, number, batches)

        Engine.step = step_and_signal

    assert run_processes("finetune", settings("finetune", material, tmp_path, **TEN), signal_at_four) == [0, 0]
    status = RunDir(tmp_path).read_status()
    assert status["state"] == "stopped" and status["step"] in (4, 5)
    assert RunDir(tmp_path).checkpoints()[-1].stem == f"step_{status['step']:08d}"


def test_what_ended_one_process_is_in_the_log(material, tmp_path):
    def fail(rank):
        step = Engine.step

        def step_or_fail(self, number, batches):
            if rank == 1 and number == 6:
                raise ValueError("shard 7 is damaged")
            return step(self, number, batches)

        Engine.step = step_or_fail

    assert run_processes("finetune", settings("finetune", material, tmp_path, **TEN), fail) == [1, 1]
    assert "process 1 failed: shard 7 is damaged" in (tmp_path / "log.txt").read_text()
    status = RunDir(tmp_path).read_status()
    assert status["state"] == "failed" and "another process of this run ended, see log.txt" in status["message"]


def test_accelerate_launch_ends_as_a_whole_when_a_process_is_killed_and_resumes(material, tmp_path):
    values = settings("finetune", material, tmp_path / "run", **TEN | {"steps": 100_000, "workers": 1})
    command = [
        sys.executable,
        "-m",
        "accelerate.commands.launch",
        "--multi_gpu",
        "--num_processes=2",
        "--num_machines=1",
        "--mixed_precision=no",
        "--dynamo_backend=no",
        "--main_process_port=0",
        str(ROOT / "training/train.py"),
        "finetune",
    ]
    environment = os.environ | {"ACCELERATE_USE_CPU": "1", "OMP_NUM_THREADS": "1"}

    def launch(steps):
        given = [part for name, value in (values | {"steps": steps}).items() for part in ("--set", f"{name}={value}")]
        given = [part.replace("=True", "=true").replace("=False", "=false") for part in given]
        return subprocess.Popen(
            [*command, *given], env=environment, cwd=tmp_path, stderr=subprocess.PIPE, text=True, start_new_session=True
        )

    launcher = launch(100_000)
    run = RunDir(tmp_path / "run")
    assert wait_until(run.checkpoints)
    family = descendants(launcher.pid)
    ranks = [pid for pid in family if parent(pid) == launcher.pid]
    assert len(ranks) == 2 and len(family) == 4  # and a reading process each
    os.kill(next(pid for pid in ranks if pid != run.read_status()["pid"]), signal.SIGKILL)
    launcher.communicate(timeout=120)
    assert launcher.returncode != 0
    assert wait_until(lambda: not any(alive(pid) for pid in family))
    assert run.read_status()["state"] == "failed"
    last = int(run.checkpoints()[-1].stem.split("_")[1])
    resumed = launch(last + 2)
    assert "error" not in resumed.communicate(timeout=300)[1] and resumed.returncode == 0
    assert f"at step {last}" in (run.path / "log.txt").read_text() and run.read_status()["state"] == "done"


def descendants(pid):
    children = [int(path.name) for path in Path("/proc").iterdir() if path.name.isdigit() and parent(path.name) == pid]
    return children + [each for child in children for each in descendants(child)]


def parent(pid):
    try:
        return int(Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[1])
    except (FileNotFoundError, ProcessLookupError):
        return None


def alive(pid):
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] not in "ZX"
    except (FileNotFoundError, ProcessLookupError):
        return False
