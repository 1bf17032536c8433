"""Bins and resize-back against diffusers' tables and functions."""

import pytest
import torch

from pixart_core import resolution

SIZES = [(1, 1), (512, 512), (1080, 1920), (1920, 1080), (480, 640), (2048, 512), (100, 5000), (5000, 100), (13, 17)]


@pytest.mark.parametrize("base", resolution.BASES)
def test_tables_are_diffusers_tables(base):
    from diffusers.pipelines.pixart_alpha import pipeline_pixart_alpha as diffusers_tables

    theirs = getattr(diffusers_tables, f"ASPECT_RATIO_{base}_BIN")
    ours = resolution.bins(base)
    assert {float(k): tuple(map(int, v)) for k, v in theirs.items()} == ours
    assert list(ours) == sorted(ours)


@pytest.mark.parametrize("base", resolution.BASES)
def test_training_tables_hold_the_seven_further_bins(base):
    table = resolution.bins(base, training=True)
    assert len(table) == 40
    assert set(resolution.bins(base)) < set(table)
    unit = base // 16  # 16, 32, 64 px
    for ratio, (height, width) in table.items():
        assert height % unit == 0 and width % unit == 0
        assert height / width == pytest.approx(ratio, abs=0.012)
        assert height * width == pytest.approx(base * base, rel=0.12)


@pytest.mark.parametrize("base", resolution.BASES)
@pytest.mark.parametrize("height,width", SIZES)
def test_nearest_bin_is_diffusers(base, height, width):
    from diffusers.image_processor import PixArtImageProcessor
    from diffusers.pipelines.pixart_alpha import pipeline_pixart_alpha as diffusers_tables

    expected = PixArtImageProcessor.classify_height_width_bin(
        height, width, getattr(diffusers_tables, f"ASPECT_RATIO_{base}_BIN")
    )
    assert resolution.nearest_bin(height, width, base) == expected


def test_training_bins_are_used_when_asked():
    assert resolution.nearest_bin(1664, 576, 1024) == (1728, 576)
    assert resolution.nearest_bin(1664, 576, 1024, training=True) == (1664, 576)


@pytest.mark.parametrize("height,width", [(32, 48), (30, 30), (64, 16), (8, 100), (31, 17)])
def test_resize_back_is_diffusers(height, width):
    from diffusers.image_processor import PixArtImageProcessor

    images = torch.rand(2, 3, 32, 48)
    ours = resolution.resize_and_crop(images, height, width)
    theirs = PixArtImageProcessor.resize_and_crop_tensor(images, width, height)
    assert ours.shape == (2, 3, height, width)
    if theirs.shape == ours.shape:  # theirs loses a pixel to float error for some sizes
        assert torch.equal(ours, theirs)


def test_every_asked_size_comes_back_exactly():
    for height, width in SIZES[1:6] + [(999, 1001), (1023, 513)]:
        made = resolution.nearest_bin(height, width, 256)
        assert resolution.resize_and_crop(torch.zeros(1, 1, *made), height, width).shape[-2:] == (height, width)


def test_same_size_is_left_alone():
    images = torch.rand(1, 3, 8, 8)
    assert resolution.resize_and_crop(images, 8, 8) is images


def test_bad_requests_say_what_there_is():
    with pytest.raises(ValueError, match="bins for 256, 512, 1024 px, not for 768"):
        resolution.nearest_bin(1, 1, 768)
    with pytest.raises(ValueError, match="at least 1 px, got 0 x 5"):
        resolution.nearest_bin(0, 5)


@pytest.mark.parametrize("height,width", [(8, 12), (64, 96), (8, 96), (32, 48)])
def test_resize_averages_what_shrinks_and_interpolates_what_grows(height, width):
    images = torch.rand(2, 3, 32, 48)
    expected = images
    if height == 8:
        expected = expected.unflatten(2, (8, 4)).mean(dim=3)
    if width == 12:
        expected = expected.unflatten(3, (12, 4)).mean(dim=4)
    expected = torch.nn.functional.interpolate(expected, (height, width), mode="bilinear")
    assert torch.allclose(resolution.resize(images, height, width), expected, atol=1e-6)


def test_a_thin_line_is_kept_when_a_hint_is_shrunk():
    """Bilinear interpolation to a quarter looks between the lines of a grid, or at them alone."""
    for place in range(4):
        grid = torch.zeros(1, 1, 64, 64)
        grid[..., place::4, :] = 1
        shrunk = resolution.resize_and_crop(grid, 16, 16, average=True)
        assert torch.allclose(shrunk, torch.full_like(shrunk, 0.25))
