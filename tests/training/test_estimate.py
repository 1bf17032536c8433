"""The estimate before a training against what autograd keeps and what files take; `--dry-run`."""

import dataclasses
import importlib.metadata
import json
import re
from pathlib import Path

import pytest
import torch
from pixart_delta.pixart_core.checkpoint import save_pixart
from pixart_delta.pixart_core.config import PIXART_512, PIXART_1024_MS
from pixart_delta.pixart_core.memory import transformer_parameters
from pixart_delta.training import estimate as estimates
from pixart_delta.training.cli import main
from pixart_delta.training.config import ConfigError, load_config, make_config
from pixart_delta.training.data.draws import Draws
from pixart_delta.training.estimate import estimate, matmul_rate, pictures_text
from pixart_delta.training.machine import GB, require_packages
from pixart_delta.training.recipes import SIZES, recipe_for, recipe_values
from pixart_delta.training.run_dir import RunDir
from pixart_delta.training.tasks import TASKS

from tests.fixtures_nano import nano_config, random_pixart
from tests.training import runs_fixture
from tests.training.conftest import fill

SIDE = 32  # of the latent
CONFIG = nano_config(depth=5, hidden_size=96, num_heads=4, input_size=SIDE)
COMMANDS = runs_fixture.COMMANDS
RECIPES = Path(__file__).resolve().parents[2] / "training/recipes"


def settings(command, **values):
    copies = {"copy_blocks": 3} if command == "controlnet" else {}
    return make_config(command, {"run": "r", "data": "d", "base": "b", "batch_size": 2, **copies, **values})


@pytest.fixture(scope="module")
def base(tmp_path_factory):
    return save_pixart(random_pixart(CONFIG), tmp_path_factory.mktemp("base") / "base.safetensors")


def kept(task, precision):
    """Bytes that the backward pass waits for, weights aside, with fused attention as on a GPU."""
    task.forward_options = dict
    batch = {
        "latent": torch.randn(2, 4, SIDE, SIDE),
        "hint": torch.randn(2, 4, SIDE, SIDE),
        "caption": torch.randn(2, 8, 64),
        "caption_mask": torch.ones(2, 8),
        "image_size": torch.full((2, 2), 256.0),
        "aspect_ratio": torch.ones(2, 1),
    }
    weights = {tuple(sorted(p.shape)) for network in (task.model, *task.frozen) for p in network.parameters()}
    seen = {}

    def pack(tensor):
        if tuple(sorted(tensor.shape)) not in weights:
            seen[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage().nbytes(), tensor
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor), task.autocast():
        task.loss(task.model, batch, Draws(0, 0, 0, 2, slice(None)))
    return sum(size for size, _ in seen.values())


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
@pytest.mark.parametrize("command", COMMANDS)
def test_activations_are_what_autograd_keeps(command, precision, base):
    """Kept activations, without the widest block's gradients that the estimate has besides."""
    unit = 2 * (SIDE // 2) ** 2 * CONFIG.hidden_size
    extra = unit * 8 * (4 if precision == "fp32" else 2)
    config = settings(command, base=str(base), precision=precision)
    expected = estimate(config, CONFIG, 8 * SIDE, 8 * SIDE).activations - extra
    assert kept(TASKS[command](config), precision) == pytest.approx(expected, rel=0.2)


@pytest.mark.parametrize("command", COMMANDS)
def test_weights_and_checkpoint_are_counted_as_they_are(command, base):
    config = settings(command, base=str(base), precision="fp32")
    task, expected = TASKS[command](config), estimate(config, CONFIG, 256, 256)
    trained = sum(p.numel() for p in task.model.parameters() if p.requires_grad)
    frozen = [p for network in (task.model, *task.frozen) for p in network.parameters() if not p.requires_grad]
    assert expected.weights == expected.gradients == 4 * trained and expected.moments == 8 * trained
    assert expected.frozen == 4 * sum(p.numel() for p in frozen)
    assert expected.average == (0 if task.ema is None else 4 * trained)
    assert expected.checkpoint == 12 * trained + expected.average


@pytest.mark.parametrize(
    "recipe,command,shape,pixels,memory",
    [
        ("lcd_2x_v100_32gb", "lcd", PIXART_1024_MS, 1024, 32),
        ("lcd_24gb", "lcd", PIXART_1024_MS, 1024, 24),
        ("lcd_16gb", "lcd", PIXART_1024_MS, 1024, 16),
        ("lcm_lora_12gb", "lcm-lora", PIXART_1024_MS, 1024, 12),
        ("controlnet_512", "controlnet", PIXART_512, 512, 12),
        ("controlnet_1024", "controlnet", PIXART_1024_MS, 1024, 12),
    ],
)
def test_recipes_fit_their_gpus(recipe, command, shape, pixels, memory):
    """With a tenth to spare, for what an estimate leaves out."""
    config = load_config(command, str(RECIPES / f"{recipe}.json"), ["run=r", "data=d", "base=b"])
    assert estimate(config, shape, pixels, pixels).memory < 0.9 * memory * GB


@pytest.mark.parametrize(
    "values,measured",
    [
        ({"batch_size": 4, "accumulation": 3, "optimizer": "adamw8bit"}, 13.2),
        ({"batch_size": 12}, 18.1),
        ({"batch_size": 12, "gradient_checkpointing": False}, 107),
    ],
)
def test_no_estimate_is_far_below_what_a_gpu_took(values, measured):
    """Peaks of LCD at 1024 px in bf16 on an H200, in GB; 3 % is what an estimate may lack."""
    config = settings("lcd", **{"gradient_checkpointing": True, "precision": "bf16", **values})
    assert estimate(config, PIXART_1024_MS, 1024, 1024).memory > 0.97 * measured * GB


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("command", COMMANDS)
def test_every_named_recipe_fits_its_device(command, size):
    if (command, size) == ("lcd", 8):
        with pytest.raises(ConfigError, match="more than 8 GB. Train an LCM-LoRA"):
            recipe_values(command, "8gb")
        whole = estimate(settings(command, batch_size=1), PIXART_1024_MS, 1024, 1024)
        assert whole.weights + whole.average + whole.gradients + whole.moments > 8 * GB, "as the message says"
        return
    config = settings(command, **recipe_values(command, f"{size}gb"))
    assert estimate(config, PIXART_1024_MS, 1024, 1024).memory < 0.9 * size * GB


def test_a_recipe_is_picked_by_base_and_device():
    released, nano = transformer_parameters(PIXART_1024_MS), transformer_parameters(CONFIG)
    cards = {7.6: "8gb", 11.9: "12gb", 15.7: "16gb", 23.6: "24gb", 31.4: "32gb", 79.1: "32gb", 4: "8gb"}
    assert {size: recipe_for(released, size * 2**30) for size in cards} == cards
    assert {recipe_for(nano, size * 2**30) for size in cards} == {"nano"}


def test_the_same_global_batch_costs_the_same():
    one, three = settings("lcd", batch_size=12), settings("lcd", batch_size=4, accumulation=3)
    one, three = (estimate(config, PIXART_1024_MS, 1024, 1024) for config in (one, three))
    assert one.flops == three.flops and one.activations > 2 * three.activations
    assert one.frozen == 2 * transformer_parameters(PIXART_1024_MS) - 2 * 120 * 4096  # the null caption is a buffer


@pytest.mark.parametrize(
    "change,part,sign",
    [
        ({"gradient_checkpointing": True}, "activations", -1),
        ({"gradient_checkpointing": True}, "flops", 1),
        ({"gradient_checkpointing": True}, "weights", -1),
        ({"ema_decay": 0.0}, "average", -1),
        ({"optimizer": "adamw8bit"}, "moments", -1),
        ({"precision": "fp32"}, "frozen", 1),
        ({"accumulation": 2}, "flops", 1),
        ({"batch_size": 4}, "activations", 1),
    ],
)
def test_every_switch_moves_its_part(change, part, sign):
    before, after = (estimate(settings("lcd", **values), CONFIG, 256, 256) for values in ({}, change))
    assert sign * (getattr(after, part) - getattr(before, part)) > 0


def test_sharding_divides_what_is_trained_and_not_what_is_kept_of_a_step():
    config = settings("lcd", sharding="fsdp", precision="fp32")
    one, four = (estimate(config, CONFIG, 256, 256, processes) for processes in (1, 4))
    shared = ("weights", "average", "gradients", "moments")
    assert all(getattr(four, name) == getattr(one, name) / 4 > 0 for name in shared)
    assert {**dataclasses.asdict(four), **{name: getattr(one, name) for name in shared}} == dataclasses.asdict(one)
    plain = settings("lcd", precision="fp32")
    assert estimate(plain, CONFIG, 256, 256, 4) == estimate(plain, CONFIG, 256, 256) == one


def test_the_matrix_rate_of_this_machine_is_plausible():
    assert 1e6 < matmul_rate(torch.device("cpu"), torch.float32) < 1e14


@pytest.mark.parametrize("speed", [1e7, 7e8, 1e11, 1e15])
def test_the_rate_takes_a_quarter_of_a_second_however_slow_a_product_is(monkeypatch, speed):
    """With a clock of our own, on which products take what a device of this speed would need for them."""
    clock = [0.0]

    def multiply(side, count, _device, _dtype):
        taken = 2 * side**3 * count / speed + 1e-5
        clock[0] += taken
        return taken

    monkeypatch.setattr(estimates, "_multiply", multiply)
    monkeypatch.setattr(estimates.time, "perf_counter", lambda: clock[0])
    rate = matmul_rate(torch.device("cpu"), torch.bfloat16)
    assert clock[0] < 0.4 and 0.5 * speed < rate < 1.5 * speed


def test_the_rate_answers_stop(monkeypatch):
    looks = []

    def check():
        looks.append(1)
        if len(looks) == 3:
            raise InterruptedError

    monkeypatch.setattr(estimates, "_multiply", lambda *_: 1e-9)
    with pytest.raises(InterruptedError):
        matmul_rate(torch.device("cpu"), torch.float32, check)
    assert len(looks) == 3


@pytest.fixture(scope="module")
def material(tmp_path_factory):
    return runs_fixture.make_material(tmp_path_factory.mktemp("material"))


def call(command, material, run, capsys, options=("--dry-run",), **values):
    values = {**runs_fixture.settings(command, material, run, workers=0), **values}
    pairs = [part for name, value in values.items() for part in ("--set", f"{name}={_text(value)}")]
    status = main([command, *options, *pairs])
    return status, capsys.readouterr()


def _text(value):
    return value if isinstance(value, str) else json.dumps(value)


@pytest.mark.parametrize("command", COMMANDS)
def test_a_dry_run_does_one_step_and_writes_nothing(command, material, tmp_path, capsys):
    status, said = call(command, material, tmp_path / "run", capsys)
    assert status == 0, said.err
    assert re.search(r"together +[\d.]+ MB", said.out)
    assert "disk: " in said.out
    assert "s a step" in said.out
    assert re.search(r"one step: loss \d\.\d+, gradient \d", said.out) and not list(tmp_path.iterdir())


def test_a_dry_run_says_how_many_pictures_are_trained_on(material, tmp_path, capsys):
    for batch_size, words in (
        (3, "21 of 21 pictures, 2 sizes; the largest"),
        (50, "21 of 21 pictures, 2 sizes, 9 to 12 in a batch; the largest"),
    ):
        status, said = call("lcd", material, tmp_path / "run", capsys, batch_size=batch_size)
        assert status == 0 and said.out.startswith(words)


def test_pictures_in_words():
    few = {(64, 64): 1, (48, 80): 2, (80, 48): 3, (32, 128): 5, (128, 32): 9}
    assert pictures_text(few, 16) == "20 of 20 pictures, 5 sizes, 1 to 9 in a batch"
    assert pictures_text(few, 4, whole=True) == "12 of 20 pictures, 5 sizes"
    assert pictures_text({(64, 64): 17}, 16) == "17 of 17 pictures, 1 size, 8 to 9 in a batch"
    assert pictures_text({(64, 64): 3}, 16) == "3 of 3 pictures, 1 size, 3 in a batch"
    assert pictures_text({(64, 64): 32}, 16) == "32 of 32 pictures, 1 size"


def test_a_dry_run_gives_the_loss_of_the_first_step(material, tmp_path, capsys):
    _, said = call("lcd", material, tmp_path / "run", capsys)
    run = runs_fixture.run_here("lcd", runs_fixture.settings("lcd", material, tmp_path / "run", steps=1))
    assert f"loss {runs_fixture.losses(run)[0]:.5f}" in said.out


def test_a_dry_run_in_float16_may_overflow_at_first(material, tmp_path, capsys):
    assert call("lcd", material, tmp_path / "run", capsys, precision="fp16")[0] == 0


@pytest.mark.parametrize(
    "values,message",
    [
        ({"models": "nowhere"}, "nowhere does not exist"),
        ({"data": "nowhere"}, "is not a folder of prepared features"),
        ({"base": "nowhere.safetensors"}, "nowhere.safetensors"),
        ({"learning_rate": "nan"}, "learning_rate is nan: a finite number is wanted"),
        (
            {"keep_checkpoints": 10**6, "steps": 10**8, "checkpoint_every": 10},
            "are free there: free some space, lower keep_checkpoints (1000000), or choose",
        ),
    ],
)
def test_a_dry_run_names_what_is_wrong(values, message, material, tmp_path, capsys):
    status, said = call("lcd", material, tmp_path / "run", capsys, **values)
    assert status == 1
    assert said.err.startswith("error: ")
    assert message in said.err
    assert not list(tmp_path.iterdir())


def test_control_without_hints_says_how_to_prepare_them(material, tmp_path, capsys):
    from tests.training.shards_fixture import make_features

    plain = make_features(tmp_path / "plain", width=64, hint=False)
    status, said = call("controlnet", {**material, "data": str(plain)}, tmp_path / "run", capsys)
    assert status == 1 and "was prepared without hints: run `prepare` again with hints=hed or a folder" in said.err


def test_a_dry_run_counts_the_checkpoints_that_are_there(material, small_disk, capsys):
    """With less room than for three, but two of them lie there already."""
    values = runs_fixture.settings("lcd", material, small_disk / "run", steps=4, checkpoint_every=2)
    runs_fixture.run_here("lcd", values)
    size = max(file.stat().st_size for file in RunDir(small_disk / "run").checkpoints())
    ballast = fill(small_disk, leave=2 * size)
    assert call("lcd", material, small_disk / "run", capsys, steps=8)[0] == 0
    status, said = call("lcd", material, small_disk / "other", capsys)
    assert status == 1 and "lower keep_checkpoints (2)" in said.err
    short = {"steps": 1, "keep_checkpoints": 20}
    assert call("lcd", material, small_disk / "other", capsys, **short)[0] == 0, "20 that it never makes"
    ballast.unlink()
    assert call("lcd", material, small_disk / "other", capsys)[0] == 0


def test_a_dry_run_in_the_folder_of_another_run(material, tmp_path, capsys):
    runs_fixture.run_here("lcd", runs_fixture.settings("lcd", material, tmp_path / "run", steps=1))
    before = {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*")}
    status, said = call("finetune", material, tmp_path / "run", capsys)
    assert status == 1 and "holds another run" in said.err
    assert call("lcd", material, tmp_path / "run", capsys)[0] == 0
    assert before == {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*")}


def test_an_estimate_is_plain_numbers():
    expected = estimate(settings("lcd"), CONFIG, 256, 256)
    assert all(value >= 0 for value in dataclasses.astuple(expected)) and expected.seconds(1e12) > 0


@pytest.mark.parametrize(
    ("package", "version", "command", "more"),
    [
        ("accelerate", "0.34.2", "lcd", {}),
        ("bitsandbytes", "0.46", "lcd", {"optimizer": "adamw8bit"}),
        ("peft", "0.13.2", "lcm-lora", {}),
        ("peft", "0.13.0rc1+cu128", "finetune", {"lora_rank": 4}),
        ("schedulefree", "1", "lcd", {"optimizer": "schedulefree"}),
    ],
)
def test_a_package_older_than_stated_is_refused(
    package, version, command, more, material, tmp_path, monkeypatch, capsys
):
    """PEFT 0.13 trains a LoKr without its alpha, and what is exported is another model."""
    known = importlib.metadata.version
    monkeypatch.setattr(importlib.metadata, "version", lambda name: version if name == package else known(name))
    status, said = call(command, material, tmp_path / "run", capsys, (), models="", **more)
    assert status == 1
    assert f"{package} {version} is older than " in said.err
    assert said.err.count("pip install") == 1


def test_eight_bits_where_bitsandbytes_has_none_are_refused(material, tmp_path, monkeypatch, capsys):
    """bitsandbytes before 0.50 takes no step on a CPU: it said so with an AttributeError, after the first batch."""
    optim = pytest.importorskip("bitsandbytes.optim")

    def step(self):
        raise AttributeError("'NoneType' object has no attribute 'shape'")

    monkeypatch.setattr(optim.AdamW8bit, "step", step)
    status, said = call("lcd", material, tmp_path / "run", capsys, (), models="", optimizer="adamw8bit")
    assert status == 1 and "has no 8-bit AdamW for cpu: install a newer one" in said.err
    assert "optimizer=adamw" in said.err


def test_a_later_package_is_none_that_is_refused(monkeypatch):
    monkeypatch.setattr(importlib.metadata, "version", lambda _name: "9999.dev1")
    require_packages(("accelerate", "peft", "fsspec"))
