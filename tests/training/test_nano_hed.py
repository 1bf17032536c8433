"""The narrow HED that learns photographs from a full one: what it is shown, that it learns it, and that it goes on."""

import random

import numpy as np
import pytest
import torch
from PIL import Image
from pixart_delta.pixart_core.hed import HED, load_hed
from pixart_delta.training.nano import hed, photographs


@pytest.fixture
def teacher() -> HED:
    """A network with edges to learn: random, narrow, alive in every side."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(3)
        return hed.fold_scale(hed.build()).eval().requires_grad_(False)


@pytest.fixture
def pictures(tmp_path):
    """Two pictures of coloured boxes, one of them not a multiple of anything."""
    folder = tmp_path / "pictures"
    folder.mkdir()
    for seed, size in enumerate([(431, 333), (320, 640)]):
        boxes = np.random.default_rng(seed).integers(0, 255, (9, 7, 3), dtype=np.uint8)
        Image.fromarray(boxes).resize(size, Image.Resampling.NEAREST).save(folder / f"{seed}.png")
    return folder


@pytest.fixture
def remembered(teacher, pictures, tmp_path, monkeypatch):
    monkeypatch.setattr(photographs, "SIDES", (224,))
    return photographs.remember(teacher, tmp_path / "teacher", photographs.photographs(pictures), tmp_path / "edges")


def test_a_crop_shows_the_edges_of_its_own_pixels(teacher, remembered):
    """Away from the border of the crop its teacher's edges are what the teacher sees in the crop."""
    pixels, sides = photographs.Crops(remembered).batch(random.Random(1), 4)
    assert pixels.shape == (4, 3, 192, 192)
    assert [side.shape[-1] for side in sides] == [192, 96, 48, 24, 12]
    for side, again in zip(sides[:2], teacher(pixels)[:2], strict=True):
        inner = slice(12, -12)
        apart = (side[..., inner, inner].clamp(-8, 8) - again[..., inner, inner].clamp(-8, 8)).abs()
        # Mirrored crops are not what the teacher sees in a mirrored picture: the half that is not.
        assert apart.flatten(1).mean(1).sort().values[0] < 0.01


def test_edges_are_computed_once(teacher, pictures, tmp_path, remembered, monkeypatch):
    monkeypatch.setattr(photographs, "seen_by", None)
    assert (
        photographs.remember(teacher, tmp_path / "teacher", photographs.photographs(pictures), tmp_path / "edges")
        == remembered
    )


def test_a_folder_without_pictures_is_named(tmp_path):
    with pytest.raises(SystemExit, match="holds no picture"):
        photographs.photographs(tmp_path)


def test_it_learns_what_the_teacher_sees(teacher, remembered):
    """A minute of training, in short: the loss on the same crops falls."""
    crops = photographs.Crops(remembered)
    pixels, sides = crops.batch(random.Random(0), 2)
    torch.manual_seed(0)
    net = hed.build()
    optimizer = torch.optim.AdamW(net.parameters(), lr=2e-3)
    losses = []
    for _ in range(8):
        loss = photographs.distillation_loss(hed.see(net, pixels), sides, 5.0)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    floor = photographs.distillation_loss(sides, sides, 5.0).item()
    assert losses[-1] - floor < 0.7 * (losses[0] - floor)


def test_a_stopped_training_goes_on_to_the_same_network(remembered, tmp_path, monkeypatch):
    monkeypatch.setattr(hed, "_EVERY", 1)
    monkeypatch.setattr(hed, "SIZES", ((64, 64),))
    crops = photographs.Crops(remembered)
    options = {"steps": 3, "batch": 2, "learning_rate": 1e-3, "seed": 5, "crops": crops}
    whole = load_hed(hed.train(tmp_path / "whole", **options)).state_dict()

    real, calls = hed.step_loss, []

    def stopped(*arguments):
        calls.append(1)
        if len(calls) == 3:
            raise KeyboardInterrupt
        return real(*arguments)

    monkeypatch.setattr(hed, "step_loss", stopped)
    with pytest.raises(KeyboardInterrupt):
        hed.train(tmp_path / "stopped", **options)
    assert not (tmp_path / "stopped" / "hed.safetensors").exists()
    resumed = load_hed(hed.train(tmp_path / "stopped", **options)).state_dict()
    assert len(calls) == 4
    assert all(torch.equal(whole[name], resumed[name]) for name in whole)
