"""Forward passes and sampling against numbers from the authors' own code (tests/goldens/README.md)."""

import pytest
import torch

import pixart_core as pc
from tests.golden import golden, load_model, part, relative


def conditions(inputs):
    return [inputs.get(name) for name in ("caption", "caption_mask", "image_size", "aspect_ratio")]


@pytest.mark.parametrize("name", ["transformer_ms", "transformer_square"])
@torch.no_grad()
def test_transformer(name):
    description, tensors = golden(name)
    inputs, outputs = part(tensors, "in."), part(tensors, "out.")
    model = load_model(description, tensors, "model.")
    out = model(inputs["latent"], inputs["timestep"], *conditions(inputs))
    assert relative(out, outputs["model"]) < 1e-5


def test_lcm_sampler():
    description, tensors = golden("lcm_sampler_ms")
    inputs, outputs = part(tensors, "in."), part(tensors, "out.")
    model, denoised = load_model(description, tensors, "model."), []
    timesteps = pc.lcm_timesteps(description["steps"], "official")
    assert timesteps == outputs["timesteps"].tolist()
    pc.sample_lcm(
        lambda latent, t: model(latent, t, *conditions(inputs))[:, :4],
        inputs["latent"],
        timesteps,
        noises=inputs["noise"],
        callback=lambda step, x: denoised.append(x),
    )
    for ours, theirs in zip(denoised, outputs["denoised"], strict=True):
        assert relative(ours, theirs) < 1e-4


@torch.no_grad()
def test_controlnet():
    description, tensors = golden("controlnet_ms")
    inputs, outputs = part(tensors, "in."), part(tensors, "out.")
    base = load_model(description, tensors, "model.base_model.")
    net = pc.ControlNetTransformer(base.config, description["copy_blocks_num"]).eval()
    net.load_state_dict({"controlnet." + key: value for key, value in part(tensors, "model.controlnet.").items()})
    arguments = inputs["latent"], inputs["timestep"], *conditions(inputs)
    control = net(
        base, inputs["latent"], inputs["timestep"], inputs["caption"], inputs["condition"], *conditions(inputs)[1:]
    )
    assert relative(base(*arguments, control=control), outputs["model"]) < 1e-5
    assert relative(base(*arguments), outputs["without_control"]) < 1e-5
