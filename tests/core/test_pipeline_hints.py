"""Hints of a Pipeline: what they are brought to, how much of them counts, and when."""

import pytest
import torch
from PIL import Image

import pixart_core as pc
from pixart_core.checkpoint import load_controlnet
from pixart_core.vae import encode

SIZE = {"width": 96, "height": 72}  # an odd latent


def relative(a, b):
    return ((a - b).norm() / b.norm()).item()


@pytest.mark.parametrize("sampler", ["lcm", "dpm"])
def test_hint_steers_through_the_controlnet(pipe, nano, sampler):
    edges = torch.rand(1, 72, 96, 3)
    latent = pipe.sample("a house", 3, hint=edges, sampler=sampler, **SIZE)
    plain = pipe.sample("a house", 3, sampler=sampler, **SIZE)
    assert relative(latent, plain) > 1e-3
    hint = encode(pipe.vae, edges)
    assert torch.equal(pipe.sample("a house", 3, hint=hint, sampler=sampler, **SIZE), latent)
    if sampler == "lcm":
        control = load_controlnet(nano / "controlnet", torch.float32)
        caption, mask = pipe.text.encode("a house")

        def epsilon(latent, t):
            residuals = control(pipe.transformer, latent, t, caption, hint, mask)
            return pipe.transformer(latent, t, caption, mask, control=residuals)[:, :4]

        generator = torch.Generator("cpu").manual_seed(0)
        noise = torch.randn(1, 4, 9, 12, generator=generator)
        with torch.no_grad():
            expected = pc.sample_lcm(epsilon, noise, pc.lcm_timesteps(3), generator=generator)
        assert relative(latent, expected) < 1e-5


def test_hint_pictures_are_brought_to_size(pipe):
    picture = Image.effect_noise((192, 144), 80)  # grey, twice the size
    assert pipe("a house", 1, hint=picture, batch=2, **SIZE)[1].size == (96, 72)
    with pytest.raises(ValueError, match=r"1 or 1 pictures .* got shape \(3, 4, 9, 12\)"):
        pipe("a house", 1, hint=torch.rand(3, 72, 96, 3), **SIZE)
    with pytest.raises(ValueError, match=r"a latent \(B, 4, 9, 12\); got shape \(1, 16, 9, 12\)"):
        pipe("a house", 1, hint=torch.rand(1, 16, 9, 12), **SIZE)


def test_hint_strength_scales_what_the_control_says(pipe, nano):
    """0 is no hint to the last bit; the rest as with residuals that are scaled by hand."""
    hint = torch.rand(1, 4, 9, 12)
    plain, full = pipe.sample("a house", 4, **SIZE), pipe.sample("a house", 4, hint=hint, **SIZE)
    half = pipe.sample("a house", 4, hint=pc.Hint(hint, 0.5), **SIZE)
    assert torch.equal(pipe.sample("a house", 4, hint=pc.Hint(hint, 0), **SIZE), plain)
    assert 0 < relative(half, plain) < relative(full, plain)
    control = load_controlnet(nano / "controlnet", torch.float32)
    with torch.no_grad():
        for block in control.controlnet:
            for parameter in block.after_proj.parameters():
                parameter.mul_(0.5)
    other = pc.Pipeline(pipe.transformer, pipe.text, pipe.vae, control)
    assert relative(other.sample("a house", 4, hint=hint, **SIZE), half) < 1e-5


@pytest.mark.parametrize(
    ("sampler", "steps", "window", "active"),
    [
        ("lcm", 4, (0.0, 0.4), [True, True, False, False]),
        ("lcm", 4, (0.4, 1.0), [False, False, True, True]),
        ("lcm", 4, (0.0, 1.0), [True] * 4),
        ("dpm", 5, (0.3, 0.7), [False, False, True, True, False]),
        ("lcm", 4, (1.0, 1.0), [False] * 4),
    ],
)
def test_hint_acts_between_start_and_end(pipe, monkeypatch, sampler, steps, window, active):
    seen = []
    forward = pipe.transformer.forward
    monkeypatch.setattr(
        pipe.transformer,
        "forward",
        lambda *args, control=None, **kwargs: (
            seen.append(control is not None),
            forward(*args, control=control, **kwargs),
        )[1],
    )
    pipe.sample(
        "a house",
        steps,
        hint=pc.Hint(torch.rand(1, 4, 9, 12), start=window[0], end=window[1]),
        sampler=sampler,
        guidance=1,
        **SIZE,
    )
    assert seen == active


def test_hint_window_that_is_none(pipe):
    for window in ({"start": 0.7, "end": 0.3}, {"end": 1.5}, {"start": -0.1}):
        with pytest.raises(ValueError, match="start and end are 0 … 1 in this order"):
            pipe.sample("a house", 1, hint=pc.Hint(torch.rand(1, 4, 9, 12), **window), **SIZE)


def test_grey_and_transparent_hints(pipe):
    """Grey is repeated; what is transparent is no edge."""
    grey = torch.rand(1, 72, 96, 1)
    expected = pipe.sample("a house", 1, hint=grey.repeat(1, 1, 1, 3), **SIZE)
    assert relative(pipe.sample("a house", 1, hint=grey, **SIZE), expected) < 1e-5
    clear = torch.cat([grey.expand(-1, -1, -1, 3), torch.zeros_like(grey)], dim=-1)
    black = pipe.sample("a house", 1, hint=torch.zeros(1, 72, 96, 3), **SIZE)
    picture = Image.fromarray((clear[0] * 255).byte().numpy())
    assert picture.mode == "RGBA" and relative(black, expected) > 1e-4
    for hint in (clear, picture):
        assert relative(pipe.sample("a house", 1, hint=hint, **SIZE), black) < 1e-5


def test_nan_in_the_hint(pipe):
    picture = torch.rand(1, 72, 96, 3)
    picture[0, 5, 5, 1] = torch.nan
    with pytest.raises(ValueError, match="hint picture holds NaN"):
        pipe.sample("a house", 1, hint=picture, **SIZE)
    with pytest.raises(ValueError, match="hint's latent holds NaN"):
        pipe.sample("a house", 1, hint=torch.full((1, 4, 9, 12), torch.nan), **SIZE)


def test_hint_without_controlnet(nano_released):
    pipe = pc.Pipeline.from_pretrained(nano_released, dtype=torch.float32, device="cpu")
    with pytest.raises(ValueError, match="a hint needs a ControlNet"):
        pipe("x", hint=torch.rand(1, 4, 9, 12), **SIZE)
