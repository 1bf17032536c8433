"""A forward, a sampling and a loss copy nothing from the host and wait for nothing once their tables are made.

Shown on the meta device, where anything that reads a number fails, under modes that see copies from the CPU.
"""

import pytest
import torch
from pixart_delta.pixart_core import lcm, sampling
from pixart_delta.pixart_core.controlnet import ControlNetTransformer, ControlNetUNet
from pixart_delta.pixart_core.lcm import lcm_timesteps, sample_lcm
from pixart_delta.pixart_core.model import PixArt
from pixart_delta.pixart_core.sampling import dpm_timesteps, guided, sample_dpm
from pixart_delta.training.control import controlnet_loss
from pixart_delta.training.distill import lcd_loss
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from tests.fixtures_nano import nano_config

META = torch.device("meta")
COPIES = {torch.tensor, torch.as_tensor, torch.from_numpy, torch.Tensor.new_tensor}
"""Make a tensor of the host's numbers: below them a mode sees nothing on the meta device."""


class NoHost(TorchDispatchMode):
    """Raises where a tensor of the CPU meets one of the device, or a number is read. 0-dim tensors of the CPU are what
    a scalar is, and may."""

    def __torch_dispatch__(self, function, _types, args=(), kwargs=None):
        tensors = [each for each in tree_leaves((args, kwargs)) if isinstance(each, torch.Tensor)]
        out = function(*args, **(kwargs or {}))
        tensors += [each for each in tree_leaves(out) if isinstance(each, torch.Tensor)]
        devices = {each.device.type for each in tensors if each.ndim or each.device == META}
        assert devices <= {"meta"} or devices == {"cpu"}, f"{function} brings the host's tensors to the device"
        if any(each.device == META for each in tensors):
            assert function.overloadpacket not in (torch.ops.aten._local_scalar_dense, torch.ops.aten.nonzero), function
        return out


class NoNumbers(TorchFunctionMode):
    """Raises where a tensor is made of the host's numbers on the device."""

    def __torch_function__(self, function, _types, args=(), kwargs=None):
        out = function(*args, **(kwargs or {}))
        assert function not in COPIES or out.device != META, f"{function} copies the host's numbers to the device"
        return out


def strictly(run):
    """Run once, which makes the tables, then again under the modes."""
    run()
    with NoHost(), NoNumbers():
        return run()


@pytest.fixture(scope="module", params=[True, False], ids=["micro-conditioned", "plain"])
def model(request):
    config = nano_config(depth=4, micro_condition=request.param)
    return PixArt(config, device=META).eval().requires_grad_(False)


def batch(rows=2):
    return {
        "latent": torch.randn(rows, 4, 8, 12, device=META),
        "hint": torch.randn(rows, 4, 8, 12, device=META),
        "caption": torch.randn(rows, 8, 64, device=META),
        "caption_mask": torch.ones(rows, 8, device=META),
        "image_size": torch.full((rows, 2), 64.0, device=META),
        "aspect_ratio": torch.ones(rows, 1, device=META),
    }


@pytest.mark.parametrize(
    "guilty",
    [
        lambda x: x + torch.ones(2),
        lambda x: x * torch.tensor([1.0], device=META),
        lambda x: x.new_tensor([[1.0, 2.0]]),
        lambda x: torch.arange(3).to(META),
        lambda x: x[x > 0],
        lambda x: x.sum().item(),
    ],
)
def test_the_modes_see_copies_and_waits(guilty):
    with pytest.raises((AssertionError, RuntimeError, NotImplementedError)), NoHost(), NoNumbers():
        guilty(torch.ones(2, device=META))


def test_a_forward(model):
    values, t = batch(), torch.full((2,), 999, device=META)
    out = strictly(lambda: model(values["latent"], t, values["caption"], values["caption_mask"]))
    assert out.shape == (2, 8, 8, 12)


@pytest.mark.parametrize("kind", [ControlNetTransformer, ControlNetUNet])
def test_a_control(model, kind):
    control, values, t = kind(model.config, 2, device=META), batch(), torch.full((2,), 999, device=META)

    def run():
        residuals = control(model, values["latent"], t, values["caption"], values["hint"], values["caption_mask"])
        return model(values["latent"], t, values["caption"], control=residuals)

    assert strictly(run).shape == (2, 8, 8, 12)


@pytest.mark.parametrize("noises", [None, [torch.randn(2, 4, 8, 12)] * 3], ids=["drawn", "given"])
def test_lcm_brings_its_noises_before_the_first_step_and_waits_once_at_the_end(model, noises, monkeypatch):
    values, ends, modes = batch(), [], []
    monkeypatch.setattr(lcm, "require_finite", lambda latent: ends.append(latent) or latent)

    def predict(latent, timestep):
        if strict and not modes:  # they begin with the first forward: all copies have to be before it
            modes.extend([NoHost(), NoNumbers()])
            for mode in modes:
                mode.__enter__()
        return model(latent, timestep, values["caption"], values["caption_mask"])[:, :4]

    for strict in (False, True):  # noqa: B007 - `predict` reads it
        try:
            sample_lcm(predict, torch.randn(2, 4, 8, 12, device=META), lcm_timesteps(4), noises, torch.Generator())
        finally:
            for mode in reversed(modes):
                mode.__exit__(None, None, None)
    assert len(ends) == 2 and len(modes) == 2


def test_dpm_with_guidance(model, monkeypatch):
    values = batch(4)
    monkeypatch.setattr(sampling, "require_finite", lambda latent: latent)
    conditions = {"caption": values["caption"], "caption_mask": values["caption_mask"]}
    out = strictly(lambda: sample_dpm(guided(model, conditions, 4.5), torch.randn(2, 4, 8, 12, device=META), 5))
    assert out.device == META and dpm_timesteps(5)[0] == 999


@pytest.mark.parametrize("loss", ["huber", "l2"])
def test_a_distillation_loss(model, loss):
    student = PixArt(model.config, device=META)
    values, index = batch(), torch.randint(50, (2,), device=META)
    noise = torch.randn(2, 4, 8, 12, device=META)
    result = strictly(lambda: lcd_loss(student, model, model, values, noise, index, loss=loss))
    assert result.loss.requires_grad and result.loss.device == META


def test_a_control_loss(model):
    control = ControlNetTransformer(model.config, 2, device=META)
    values, noise = batch(), torch.randn(2, 4, 8, 12, device=META)
    t = torch.randint(1000, (2,), device=META)
    assert strictly(lambda: controlnet_loss(model, control, values, noise, t)).loss.requires_grad


def test_the_released_size_keeps_one_grid_for_each_size():
    model = PixArt(nano_config(input_size=128), device=META)
    one, same, other = (model.position_grid(torch.empty(1, 4, 128, side, device=META)) for side in (128, 127, 64))
    assert one is same and other.shape == (1, 64 * 32, 48)
