"""The makers of the nano family: scenes drawn by several processes and at 256 px, and trainings that go on."""

import numpy as np
import pytest
import torch
from PIL import Image
from pixart_delta.pixart_core.checkpoint import load_pixart
from pixart_delta.pixart_core.vae import load_vae
from pixart_delta.training.nano import assemble, autoencoder, scene_folder

from tests.conftest import ROOT

NANO = ROOT / "models" / "nano"


def test_scenes_are_the_same_however_many_draw_them_and_go_on(tmp_path):
    one, several = tmp_path / "one", tmp_path / "several"
    scene_folder.draw_folder(one, 20, seed=1)
    scene_folder.draw_folder(several, 20, seed=1, workers=2)
    names = sorted(path.name for path in one.iterdir())
    assert len(names) == 40 and names == sorted(path.name for path in several.iterdir())
    assert all((one / name).read_bytes() == (several / name).read_bytes() for name in names)
    (one / "000003.txt").unlink()
    Image.new("RGB", (8, 8)).save(one / "000003.png")  # a picture that came cut short
    kept = (one / "000004.png").stat().st_mtime_ns
    scene_folder.draw_folder(one, 20, seed=1)
    assert (one / "000003.png").read_bytes() == (several / "000003.png").read_bytes()
    assert (one / "000004.png").stat().st_mtime_ns == kept


def test_scenes_of_256_px_are_those_of_128_px_in_more_pixels(tmp_path):
    small, large = (list(scene_folder.plan(4, 1, resolution)) for resolution in (128, 256))
    assert [each[0] for each in small] == [each[0] for each in large]
    assert [each[1] for each in large] == [(256, 256), (192, 320), (256, 256), (320, 192)]
    scene_folder.draw_folder(tmp_path, 1, seed=1, resolution=256)
    with Image.open(tmp_path / "000000.png") as picture:
        shrunk = np.asarray(picture.resize((128, 128), Image.Resampling.BOX), np.float32)
    scene, size, drawing, _ = small[0]
    assert np.abs(shrunk - np.asarray(scene_folder.draw(scene, size, drawing), np.float32)).mean() < 3


def test_a_stopped_autoencoder_goes_on_to_the_same_weights(tmp_path, monkeypatch):
    monkeypatch.setattr(autoencoder, "_EVERY", 1)
    options = {"steps": 3, "batch": 1, "side": 32, "learning_rate": 1e-3, "channels": 8, "noise": 0.1, "seed": 3}
    autoencoder.train(tmp_path / "whole", **options)
    real, calls = autoencoder.reconstruction_loss, []

    def stopped(*arguments):
        calls.append(1)
        if len(calls) == 3:
            raise KeyboardInterrupt
        return real(*arguments)

    monkeypatch.setattr(autoencoder, "reconstruction_loss", stopped)
    with pytest.raises(KeyboardInterrupt):
        autoencoder.train(tmp_path / "stopped", **options)
    autoencoder.train(tmp_path / "stopped", **options)
    assert len(calls) == 4
    whole, resumed = (load_vae(tmp_path / name).state_dict() for name in ("whole", "stopped"))
    assert all(torch.equal(whole[name], resumed[name]) for name in whole)


def test_a_family_is_put_together_with_places_for_what_is_exported_later(tmp_path):
    base = NANO / "base" / "pixart_nano_base.safetensors"
    assemble.assemble(NANO, base, NANO / "transformer", tmp_path / "nano")
    assert {"lcm_lora", "controlnet"} <= {path.name for path in (tmp_path / "nano").iterdir()}
    for name, source in (("transformer", NANO / "transformer"), ("base/pixart_nano_base.safetensors", base)):
        made, whole = (load_pixart(path).state_dict() for path in (tmp_path / "nano" / name, source))
        assert all(torch.equal(made[key], whole[key].half().to(made[key].dtype)) for key in whole)
