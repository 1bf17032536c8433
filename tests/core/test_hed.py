"""HED: the authors' formulation, `controlnet_aux`'s network and detector on the same weights, options, bad input."""

from __future__ import annotations

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from safetensors.torch import save_file

from pixart_core.hed import HED, WIDTHS, detect, load_hed
from pixart_core.identify import inspect_file
from pixart_core.weightfile import CheckpointError

NARROW = (8, 16, 16, 24, 24)


def random_hed(widths=NARROW, seed: int = 0) -> HED:
    """Weights that keep activations alive through all five stages, so that every side output counts."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = HED(widths).eval().requires_grad_(False)
        for name, parameter in model.named_parameters():
            if name.endswith("projection.weight"):
                parameter.normal_(std=0.05 * parameter.shape[1] ** -0.5)
            elif name.endswith("weight"):
                parameter.normal_(std=(2 / parameter[0].numel()) ** 0.5)
        model.norm.fill_(127.0)
    return model


def pictures(batch: int = 2, height: int = 64, width: int = 96, seed: int = 1) -> torch.Tensor:
    """Smooth blobs with hard borders, 8-bit values: what `controlnet_aux` can be given too."""
    generator = torch.Generator().manual_seed(seed)
    blobs = F.interpolate(torch.rand(batch, 3, 5, 7, generator=generator), (height, width), mode="bicubic")
    blobs = torch.where(blobs.mean(1, keepdim=True) > 0.5, blobs, 1 - blobs).clamp(0, 1)
    return (blobs * 255).round().permute(0, 2, 3, 1) / 255


@pytest.fixture(scope="module")
def reference():
    """`controlnet_aux`'s network and ours with the same random weights, at the released size."""
    from controlnet_aux.hed import ControlNetHED_Apache2

    ours, theirs = random_hed(WIDTHS), ControlNetHED_Apache2().eval().requires_grad_(False)
    theirs.load_state_dict(ours.state_dict(), strict=True)
    return ours, theirs


def authors(network, images: torch.Tensor) -> torch.Tensor:
    """Their training's recipe: pixels times 255, side outputs resized to the picture, averaged, logistic, clipped."""
    x = images.permute(0, 3, 1, 2) * 255.0
    sides = [
        F.interpolate(side, x.shape[-2:], mode="bilinear", align_corners=False, antialias=True) for side in network(x)
    ]
    edge = 1 / (1 + torch.exp(-torch.mean(torch.cat(sides, dim=1), dim=1, keepdim=True)))
    return edge.clip(0, 1).permute(0, 2, 3, 1)


@pytest.mark.parametrize(("height", "width"), [(64, 96), (75, 50), (16, 131)])
def test_equals_the_authors_formulation(reference, height, width):
    ours, theirs = reference
    images = pictures(2, height, width)
    found, expected = detect(ours, images), authors(theirs, images)
    assert found.shape == (2, height, width, 1) and found.dtype == torch.float32
    assert (found - expected).abs().max() < 1e-5
    assert expected.std() > 0.05, "the map must show something"


def test_every_side_output_counts(reference):
    images, (ours, _) = pictures(1), reference
    for side in ours(images.permute(0, 3, 1, 2) * 255):
        assert side.std() > 0.01


def test_nothing_is_rounded():
    found = detect(random_hed(), pictures(1)) * 255
    assert (found - found.round()).abs().mean() > 0.2


@pytest.mark.parametrize("safe", [False, True])
def test_equals_controlnet_aux_up_to_its_8_bits(reference, safe):
    """At its own resolution, so that it resizes nothing; at rounding borders `safe` may fall to the other side."""
    from controlnet_aux import HEDdetector

    ours, theirs = reference
    images = pictures(1, 64, 128)
    expected = HEDdetector(theirs)(
        (images[0] * 255).numpy().round().astype(np.uint8),
        detect_resolution=64,
        image_resolution=64,
        safe=safe,
        output_type="np",
    )
    found = detect(ours, images, safe=safe)[0] * 255
    error = (found - torch.from_numpy(expected[..., :1].astype(np.float32))).abs()
    assert (error > 1.001).float().mean() < (1e-3 if safe else 1e-9)  # it cuts decimals off
    if safe:
        assert set(found.unique().tolist()) <= {0.0, 127.5, 255.0} and len(found.unique()) > 1


def test_scribble_draws_controlnet_auxs_lines(reference):
    from controlnet_aux import HEDdetector

    ours, theirs = reference
    images = pictures(1, 128, 192)
    expected = (
        HEDdetector(theirs)(
            (images[0] * 255).numpy().round().astype(np.uint8),
            detect_resolution=128,
            image_resolution=128,
            scribble=True,
            output_type="np",
        )[..., :1]
        / 255
    )
    found = detect(ours, images, scribble=True)[0]
    assert set(found.unique().tolist()) == {0.0, 1.0}
    assert (found != torch.from_numpy(expected)).float().mean() < 0.01
    assert 0.05 < found.mean() < 0.95


def test_resolution_detects_there_and_keeps_the_pictures_size(reference):
    from controlnet_aux import HEDdetector

    ours, theirs = reference
    images = pictures(1, 100, 100)
    found = detect(ours, images, resolution=128)
    assert found.shape == (1, 100, 100, 1)
    assert (found - detect(ours, images)).abs().mean() > 1e-3
    theirs_map = (
        HEDdetector(theirs)(
            (images[0] * 255).numpy().round().astype(np.uint8),
            detect_resolution=128,
            image_resolution=128,
            output_type="np",
        )[..., 0]
        / 255.0
    )
    resized = F.interpolate(
        torch.from_numpy(theirs_map)[None, None].float(), (100, 100), mode="bilinear", antialias=True
    )
    assert (found[0, ..., 0] - resized[0, 0]).abs().mean() < 0.02


def test_batch_equals_single_pictures():
    model, images = random_hed(), pictures(3)
    together = detect(model, images)
    for index in range(3):
        assert (together[index] - detect(model, images[index : index + 1])[0]).abs().max() < 1e-6
    assert (together[0] - together[1]).abs().max() > 1e-2


def test_grey_is_repeated_and_rgba_is_put_on_white():
    model, images = random_hed(), pictures(1)
    grey = images.mean(-1, keepdim=True)
    torch.testing.assert_close(detect(model, grey), detect(model, grey.repeat(1, 1, 1, 3)))
    opaque = torch.cat([images, torch.ones_like(grey)], dim=-1)
    assert (detect(model, opaque) - detect(model, images)).abs().max() < 1e-5
    clear = torch.cat([images, torch.zeros_like(grey)], dim=-1)
    torch.testing.assert_close(detect(model, clear), detect(model, torch.ones_like(images)))


@pytest.mark.parametrize(
    ("images", "words"),
    [
        (torch.full((1, 32, 32, 3), torch.nan), "NaN"),
        (torch.full((1, 32, 32, 3), 255.0), "in 0 … 1"),
        (torch.full((1, 32, 32, 3), -1.0), "in 0 … 1"),
        (torch.zeros(1, 3, 32, 32), r"\(B, H, W, C\)"),
        (torch.zeros(32, 32, 3), r"\(B, H, W, C\)"),
        (torch.zeros(1, 32, 32, 3, dtype=torch.uint8), "uint8"),
        (torch.zeros(1, 8, 32, 3), "at least 16 px"),
    ],
)
def test_bad_pictures_have_one_clear_error(images, words):
    with pytest.raises(ValueError, match=words):
        detect(random_hed(), images)


@pytest.mark.parametrize("widths", [NARROW, WIDTHS])
def test_a_file_of_any_width_loads(tmp_path, widths):
    model = random_hed(widths)
    torch.save(model.state_dict(), tmp_path / "ControlNetHED.pth")
    save_file({name: tensor.half() for name, tensor in model.state_dict().items()}, tmp_path / "hed.safetensors")
    loaded = load_hed(tmp_path / "ControlNetHED.pth")
    assert torch.equal(detect(loaded, pictures(1)), detect(model, pictures(1)))
    half = load_hed(tmp_path / "hed.safetensors")
    assert {p.dtype for p in half.parameters()} == {torch.float32}
    assert load_hed(tmp_path / "hed.safetensors", dtype=None).norm.dtype == torch.float16
    assert (detect(half, pictures(1)) - detect(model, pictures(1))).abs().max() < 0.05
    assert inspect_file(tmp_path / "ControlNetHED.pth").kind == "hed"


def test_bfloat16_is_close():
    error = detect(random_hed().bfloat16(), pictures(1)) - detect(random_hed(), pictures(1))
    assert error.abs().mean() < 0.01


def test_wrong_and_damaged_files(tmp_path, nano):
    with pytest.raises(CheckpointError, match="does not exist"):
        load_hed(tmp_path / "ControlNetHED.pth")
    with pytest.raises(CheckpointError, match="not a HED edge detector but a PixArt .*lllyasviel/Annotators"):
        load_hed(nano / "transformer")
    state = random_hed().state_dict()
    save_file({name: state[name] for name in sorted(state)[:-1]}, tmp_path / "lacks.safetensors")
    with pytest.raises(CheckpointError, match="norm"):
        load_hed(tmp_path / "lacks.safetensors")
    save_file({**state, "norm": torch.full((1, 3, 1, 1), torch.nan)}, tmp_path / "nan.safetensors")
    with pytest.raises(CheckpointError, match="NaN"):
        load_hed(tmp_path / "nan.safetensors")
    torch.save(state, tmp_path / "cut.pth")
    (tmp_path / "cut.pth").write_bytes((tmp_path / "cut.pth").read_bytes()[:5000])
    with pytest.raises(CheckpointError, match="damaged"):
        load_hed(tmp_path / "cut.pth")


def test_a_network_that_overflows_is_reported():
    model = random_hed()
    model.block3.convs[0].weight.fill_(torch.inf)
    with pytest.raises(ValueError, match="HED returned NaN"):
        detect(model, pictures(1))
