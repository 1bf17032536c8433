"""Distillation and noise-prediction objectives against the authors' numbers."""

import pytest
import torch
from pixart_delta.pixart_core.controlnet import ControlNetTransformer
from pixart_delta.pixart_core.schedule import add_noise
from pixart_delta.training import finetune
from pixart_delta.training.control import controlnet_loss, variational_bound
from pixart_delta.training.distill import distance, lcd_loss
from pixart_delta.training.task import drop_captions

from tests.golden import golden, load_model, part, relative


@pytest.fixture(scope="module")
def lcd():
    description, tensors = golden("lcd_ms")
    student, teacher, ema = (load_model(description, tensors, f"{name}.") for name in ("student", "teacher", "ema"))
    inputs = part(tensors, "in.")
    result = lcd_loss(
        student,
        teacher,
        ema,
        inputs,
        inputs["noise"],
        inputs["index"],
        description["omega"],
        description["loss"],
        description["huber_c"],
    )
    result.loss.backward()
    return description, tensors, student, result


@pytest.mark.parametrize("name", ["loss", "prediction", "target", "x_prev", "noisy", "start_timestep", "end_timestep"])
def test_distillation_equals_the_authors(lcd, name):
    _, tensors, _, result = lcd
    assert relative(getattr(result, name).float(), tensors[f"out.{name}"].float()) < 1e-4


def test_distillation_gradients_equal_the_authors(lcd):
    description, tensors, student, _ = lcd
    gradients = {name: p.grad.norm() for name, p in student.named_parameters() if p.grad is not None}
    assert sorted(gradients) == sorted(description["grad_names"])
    ours = torch.stack([gradients[name] for name in description["grad_names"]])
    assert ((ours - tensors["out.grad_norms"]).abs() / tensors["out.grad_norms"]).max() < 1e-4


def test_distance():
    a, b = torch.randn(2, 3), torch.randn(2, 3)
    assert distance(a, a) == 0 and distance(a, b, "l2") == (a - b).square().mean()
    assert distance(a, b, huber_c=1e-6).item() == pytest.approx((a - b).abs().mean().item(), abs=1e-5)
    with pytest.raises(ValueError, match="choose one of huber, l2"):
        distance(a, b, "l1")


def test_epsilon_loss_is_the_plain_error_and_the_cap_favours_noisy_timesteps():
    _, tensors = golden("lcd_ms")
    description, _ = golden("lcd_ms")
    model, inputs = load_model(description, tensors, "teacher."), part(tensors, "in.")
    out = {}
    for timestep in (5, 900):
        t = torch.full((2,), timestep)
        plain, capped = (finetune.epsilon_loss(model, inputs, inputs["noise"], t, cap) for cap in (1.0, 20.0))
        out[timestep] = (capped / plain).item()
    assert out[5] == pytest.approx(1, rel=0.01) and out[900] == pytest.approx(20, rel=1e-4)


def test_dropped_captions_are_the_null_caption_and_nothing_else_changes():
    batch = {"caption": torch.randn(64, 5, 8), "latent": torch.randn(64, 4, 4, 4)}
    null = torch.randn(120, 8)
    drop = torch.rand(64) < 0.25
    dropped = drop_captions(batch, null, drop)
    is_null = (dropped["caption"] == null[:5]).all(-1).all(-1)
    kept = (dropped["caption"] == batch["caption"]).all(-1).all(-1)
    assert torch.equal(is_null, drop)
    assert torch.equal(kept, ~drop)
    assert dropped["latent"] is batch["latent"]


@pytest.fixture(scope="module")
def control():
    description, tensors = golden("controlnet_loss_ms")
    base = load_model(description, tensors, "model.base_model.").requires_grad_(False)
    net = ControlNetTransformer(base.config, description["copy_blocks_num"])
    net.load_state_dict({f"controlnet.{name}": value for name, value in part(tensors, "model.controlnet.").items()})
    inputs = part(tensors, "in.")
    inputs["hint"] = inputs.pop("condition")
    result = controlnet_loss(base, net, inputs, inputs["noise"], inputs["timestep"])
    result.loss.backward()
    return description, tensors, net, result


@pytest.mark.parametrize("name", ["loss", "mse", "vb"])
def test_control_loss_equals_the_authors(control, name):
    _, tensors, _, result = control
    assert relative(getattr(result, name), tensors[f"out.{name}"]) < 1e-4


def test_control_gradients_equal_the_authors(control):
    description, tensors, net, _ = control
    gradients = {name: p.grad.norm() for name, p in net.named_parameters() if p.grad is not None}
    assert sorted(gradients) == sorted(description["grad_names"])
    ours = torch.stack([gradients[name] for name in description["grad_names"]])
    assert ((ours - tensors["out.grad_norms"]).abs() / tensors["out.grad_norms"]).max() < 1e-4


def test_variational_bound_is_zero_for_the_true_posterior_and_finite_at_step_0():
    latent, noise = torch.randn(3, 4, 6, 6).clamp(-0.9, 0.9), torch.randn(3, 4, 6, 6)
    timestep = torch.tensor([0, 400, 999])
    noisy = add_noise(latent, noise, timestep)
    bound = variational_bound(latent, noisy, noise, torch.full_like(latent, -1.0), timestep)
    assert bound[1:].abs().max() < 1e-5
    assert torch.isfinite(bound).all()
    assert bound[0] > 0
    wrong = variational_bound(latent, noisy, noise * 0.5, torch.full_like(latent, -1.0), timestep)
    assert (wrong[1:] > bound[1:]).all()
