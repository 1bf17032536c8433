"""precision=auto: what it is on which device, and that a run keeps what it began with."""

import json

import pytest
import torch
from pixart_delta.pixart_core.checkpoint import save_pixart
from pixart_delta.training import task as tasks
from pixart_delta.training.config import TRAININGS, make_config
from pixart_delta.training.data.draws import Draws
from pixart_delta.training.run_dir import RunDir
from pixart_delta.training.task import decided
from pixart_delta.training.tasks import TASKS
from torch.utils._python_dispatch import TorchDispatchMode

from tests.fixtures_nano import nano_config, random_pixart
from tests.training.runs_fixture import make_material, run_here, settings

CUDA = torch.device("cuda")
VALUES = {"run": "r", "data": "d", "base": "b"}


@pytest.fixture(scope="module")
def material(tmp_path_factory):
    return make_material(tmp_path_factory.mktemp("material"))


@pytest.mark.parametrize("command", TRAININGS)
def test_auto_is_float32_on_a_cpu_and_half_on_a_gpu(command, monkeypatch):
    config = make_config(command, VALUES)
    assert config.precision == "auto" and decided(config, torch.device("cpu")).precision == "fp32"
    half = "fp16" if command in ("lcd", "lcm-lora") else "bf16"
    monkeypatch.setattr(tasks, "preferred_dtype", lambda _: torch.bfloat16)
    assert decided(config, CUDA).precision == half
    monkeypatch.setattr(tasks, "preferred_dtype", lambda _: torch.float16)  # a card without bfloat16
    assert decided(config, CUDA).precision == "fp16"
    asked = make_config(command, {**VALUES, "precision": "bf16"})
    assert decided(asked, CUDA) is asked


def test_a_run_goes_on_in_the_precision_that_it_began_with(material, tmp_path):
    """Also one that an earlier version began in its default, bf16."""
    values = settings("lcd", material, tmp_path, steps=1, checkpoint_every=1) | {"precision": "auto"}
    run = run_here("lcd", values)
    assert run.read_config()["config"]["precision"] == "fp32"
    about = json.loads((run.path / "config.json").read_text())
    about["config"]["precision"] = "bf16"
    (run.path / "config.json").write_text(json.dumps(about))
    config = make_config("lcd", values | {"steps": 2})
    assert decided(config, CUDA, RunDir(tmp_path)).precision == "bf16"
    assert decided(config, torch.device("cpu"), RunDir(tmp_path / "new")).precision == "fp32"
    run_here("lcd", values | {"steps": 2})
    assert run.read_config()["config"]["precision"] == "bf16" and len(run.metrics()) == 2


class Casts(TorchDispatchMode):
    """Counts copies of some parameters in another type."""

    def __init__(self, parameters):
        super().__init__()
        self.places, self.count = {each.data_ptr() for each in parameters}, 0

    def __torch_dispatch__(self, function, types, inputs=(), options=None):
        if function is torch.ops.aten._to_copy.default:
            self.count += inputs[0].data_ptr() in self.places
        return function(*inputs, **(options or {}))


@pytest.mark.parametrize("command", TRAININGS)
def test_frozen_weights_are_not_cast_at_every_use(command, tmp_path):
    """Only trained ones, which are float32, and their average."""
    base = save_pixart(random_pixart(nano_config()), tmp_path / "base.safetensors")
    more = {"copy_blocks": 1} if command == "controlnet" else {"lora_rank": 2} if command == "finetune" else {}
    task = TASKS[command](make_config(command, {**VALUES, "base": str(base), "precision": "bf16", **more}))
    batch = {
        "latent": torch.randn(2, 4, 8, 8),
        "hint": torch.randn(2, 4, 8, 8),
        "caption": torch.randn(2, 8, 64),
        "caption_mask": torch.ones(2, 8),
        "image_size": torch.full((2, 2), 64.0),
        "aspect_ratio": torch.ones(2, 1),
    }
    every = [each for network in (task.model, *task.frozen) for each in network.parameters()]
    frozen, trained = (Casts(each for each in every if each.requires_grad is wanted) for wanted in (False, True))
    with frozen, trained, task.autocast():
        task.loss(task.model, batch, Draws(0, 0, 0, 2, slice(None)))
    assert frozen.count == 0 < trained.count


def test_half_copies_of_the_weights_do_not_wait_for_the_backward_pass(tmp_path):
    base = save_pixart(random_pixart(nano_config()), tmp_path / "base.safetensors")
    task = TASKS["lcd"](make_config("lcd", {**VALUES, "base": str(base), "precision": "bf16"}))
    assert torch.is_autocast_cache_enabled()
    with task.autocast():
        assert torch.is_autocast_enabled("cpu") and not torch.is_autocast_cache_enabled()


def test_the_estimate_of_checkpointed_blocks_keeps_tokens_in_float32():
    from pixart_delta.pixart_core.config import PIXART_1024_MS as SHAPE
    from pixart_delta.training.estimate import estimate

    one, two = (
        make_config("lcd", {**VALUES, "batch_size": size, "gradient_checkpointing": True, "precision": "fp16"})
        for size in (1, 2)
    )
    more = estimate(two, SHAPE, 1024, 1024).activations - estimate(one, SHAPE, 1024, 1024).activations
    assert more > 4 * SHAPE.depth * 4096 * SHAPE.hidden_size
