"""Nothing that runs on the device computes in float64, which Apple's GPUs do not have: samplers, control, trainings."""

import pytest
import torch
from pixart_delta.pixart_core.controlnet import ControlNetTransformer, ControlNetUNet
from pixart_delta.pixart_core.hed import HED, detect
from pixart_delta.pixart_core.lcm import lcm_timesteps, sample_lcm
from pixart_delta.pixart_core.sampling import sample_dpm
from pixart_delta.pixart_core.schedule import add_noise, alphas_cumprod, boundary_scalings
from pixart_delta.training.config import make_config
from pixart_delta.training.data import FeatureDataset
from pixart_delta.training.distribute import connect
from pixart_delta.training.engine import make_engine
from pixart_delta.training.sampling import sample_latents
from pixart_delta.training.task import decided
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from tests.fixtures_nano import nano_config, random_pixart
from tests.training import runs_fixture


class NoDouble(TorchDispatchMode):
    """Raises when an operation gives float64. Where the tests run the device is the CPU, too, so nothing at all may be
    in float64 but the tables that `warm_up` made before, which leave it as they are read."""

    def __torch_dispatch__(self, function, _types, args=(), kwargs=None):
        out = function(*args, **(kwargs or {}))
        doubles = [each for each in tree_leaves(out) if isinstance(each, torch.Tensor) and each.dtype == torch.float64]
        assert not doubles, f"{function} gives float64, {[tuple(each.shape) for each in doubles]}"
        return out


@pytest.fixture(scope="module", autouse=True)
def warm_up():
    """The tables, which are made once, in float64, on the CPU."""
    for table in (None, alphas_cumprod(False), alphas_cumprod(True)):
        add_noise(torch.ones(1), torch.ones(1), torch.tensor([5]), table)
    from pixart_delta.training.control import _posterior_tables

    _posterior_tables()


def batch():
    return {
        "latent": torch.randn(2, 4, 8, 8),
        "hint": torch.randn(2, 4, 8, 8),
        "caption": torch.randn(2, 8, 64),
        "caption_mask": torch.ones(2, 8),
        "image_size": torch.full((2, 2), 64.0),
        "aspect_ratio": torch.ones(2, 1),
    }


def test_a_double_is_seen():
    with pytest.raises(AssertionError, match="gives float64"), NoDouble():
        torch.tensor([5]).double()


def test_lcm_sampling():
    with NoDouble():
        for scaled_linear in (False, True):
            table = alphas_cumprod(scaled_linear)
            sample_lcm(lambda latent, _: latent / 2, torch.randn(1, 4, 8, 8), lcm_timesteps(4), table=table)
        assert boundary_scalings(torch.tensor([19]))[0].dtype == torch.float32


@pytest.mark.parametrize("sampler", ["lcm", "dpm"])
@pytest.mark.parametrize("kind", [None, ControlNetTransformer, ControlNetUNet])
def test_samplers_with_and_without_control(sampler, kind):
    base = random_pixart(nano_config(depth=4))
    control = None if kind is None else kind(base.config, 2)

    def predict(latent, timestep, caption, hint=None, **conditions):
        values = None
        if control is not None:
            values = control(base, latent, timestep, caption, hint, **conditions)
        return base(latent, timestep, caption, control=values, **conditions)

    conditions = batch() if control is not None else {name: each for name, each in batch().items() if name != "hint"}
    with NoDouble():
        sample_latents(predict, conditions, sampler, torch.randn(120, 64))


def test_the_dpm_sampler_alone_and_hints():
    with NoDouble(), torch.no_grad():
        sample_dpm(lambda latent, _: latent / 2, torch.randn(1, 4, 8, 8), 6)
        detect(HED((2, 2, 2, 2, 2)).eval(), torch.rand(1, 32, 32, 3))


@pytest.fixture(scope="module")
def material(tmp_path_factory):
    return runs_fixture.make_material(tmp_path_factory.mktemp("material"))


@pytest.mark.parametrize(
    "command, changes",
    [
        ("lcd", {}),
        ("lcd", {"loss": "l2", "ema_decay": 0.0, "beta_schedule": "scaled_linear"}),
        ("lcd", {"w_embedding": True}),
        ("lcm-lora", {}),
        ("controlnet", {}),
        ("controlnet", {"ema_decay": 0.9}),
        ("finetune", {"snr_weight_cap": 5.0}),
        ("finetune", {"lora_rank": 2}),
    ],
)
def test_a_step_of_every_training(command, changes, material, tmp_path):
    """Data, objective, backward pass, clipping, optimiser and average."""
    config = make_config(command, runs_fixture.settings(command, material, tmp_path / "run", steps=2, **changes))
    data = FeatureDataset(config.data)
    processes = connect()
    engine = make_engine(decided(config, processes.device), data, processes)
    batches = data.batches(config.batch_size, config.seed, hint=engine.task.needs_hint)
    with NoDouble():
        for step in range(2):
            assert engine.step(step, batches).loss.isfinite()
