"""The Fréchet distance: 0 for the same pictures, the closed form for Gaussians, larger the more differs."""

import random
from pathlib import Path

import pytest
import torch
from PIL import ImageFilter
from pixart_delta.pixart_core.hed import load_hed
from pixart_delta.pixart_core.pipeline import Pipeline
from pixart_delta.training.nano.exam import Exam
from pixart_delta.training.nano.frechet import features, frechet_distance, picture_features
from pixart_delta.training.nano.worlds import WORLDS

NANO = Path(__file__).resolve().parents[2] / "models" / "nano"


def test_equals_the_closed_form_of_two_gaussians():
    x = torch.randn(200_000, 3, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    scale = torch.tensor([1.0, 2.0, 0.5], dtype=torch.float64)
    shifted = x * scale + torch.tensor([1.0, 0.0, 2.0])
    assert frechet_distance(x, x) == pytest.approx(0, abs=1e-9)
    expected = 5 + float(((scale - 1) ** 2).sum())  # means differ by (1, 0, 2), deviations by scale - 1
    assert frechet_distance(x, shifted) == pytest.approx(expected, rel=0.02)
    assert frechet_distance(x, shifted) == pytest.approx(frechet_distance(shifted, x), rel=1e-6)


def test_features_see_what_is_where_in_pictures_of_any_size():
    wide, tall = torch.zeros(1, 4, 12, 20), torch.zeros(1, 4, 20, 12)
    assert features(wide).shape == features(tall).shape == (1, 64)
    wide[..., :10] = 1
    assert features(wide).view(4, 4, 4)[:, :, 0].min() == 1 and features(wide).view(4, 4, 4)[:, :, 3].max() == 0


def test_too_few_samples_are_refused():
    with pytest.raises(ValueError, match="needs more samples"):
        frechet_distance(torch.randn(10, 64), torch.randn(500, 64))


def test_an_edge_detector_sees_what_is_blurred_and_the_measure_uses_it():
    """Its features owe nothing to the family's autoencoder: a model is measured by the pictures that come out."""
    network, world = load_hed(NANO / "hed" / "hed.safetensors"), WORLDS[1]
    rng = random.Random(0)
    scenes = [world.pick(rng) for _ in range(160)]
    one, other = ([world.draw(scene, (128, 128), seed + i) for i, scene in enumerate(scenes)] for seed in (0, 1000))
    sharp = [picture_features(network, pictures) for pictures in (one, other)]
    blurred = picture_features(network, [picture.filter(ImageFilter.GaussianBlur(1)) for picture in other])
    assert sharp[0].shape == (160, network.block2.projection.in_channels)
    assert frechet_distance(sharp[0], blurred) > 3 * frechet_distance(*sharp)
    exam = Exam(Pipeline.from_pretrained(NANO), 2, drawings=1, network=network)
    assert exam.reference.shape == (2, sharp[0].shape[1])
    with pytest.raises(ValueError, match="needs more samples than that, got 2"):
        exam.mark(None, 4)  # before anything is drawn
