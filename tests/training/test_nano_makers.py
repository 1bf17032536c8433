"""The makers of the nano family: scenes drawn by several processes and at 256 px, and trainings that go on."""

import json
import random

import numpy as np
import pytest
import torch
from PIL import Image
from pixart_delta.pixart_core.checkpoint import load_pixart
from pixart_delta.pixart_core.identify import inspect_file
from pixart_delta.pixart_core.preview import COLOURS
from pixart_delta.pixart_core.vae import load_vae
from pixart_delta.training.nano import assemble, autoencoder, reconstruction, scene_folder, scenes
from pixart_delta.training.nano.critic import Judge
from pixart_delta.training.nano.worlds import WORLDS
from pixart_delta.training.settings import ConfigError

from tests.conftest import ROOT
from tests.training.test_nano_preview import held_by_the_node

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
    assert np.abs(shrunk - np.asarray(scenes.draw(scene, size, drawing), np.float32)).mean() < 3


@pytest.mark.parametrize("critic", [0.0, 0.5])
def test_a_stopped_autoencoder_goes_on_to_the_same_weights(tmp_path, monkeypatch, critic):
    monkeypatch.setattr(autoencoder, "_EVERY", 1)
    monkeypatch.setattr(autoencoder, "_HELD_OUT", 1)
    monkeypatch.setattr(autoencoder, "_CRITIC_FROM", 0.3)
    options = {"steps": 3, "batch": 1, "side": 32, "learning_rate": 1e-3, "channels": 8, "noise": 0.1, "seed": 3}
    options |= {"critic": critic, "world": 2}
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


def test_the_decoder_goes_on_alone_and_latents_stay(tmp_path, monkeypatch):
    monkeypatch.setattr(autoencoder, "_HELD_OUT", 1)
    options = {"steps": 2, "batch": 1, "side": 32, "learning_rate": 1e-3, "channels": 8, "noise": 0.1, "seed": 3}
    autoencoder.train(tmp_path, **options)
    before = load_vae(tmp_path).state_dict()
    autoencoder.train(tmp_path, **options, decoder_only=True)
    after = load_vae(tmp_path).state_dict()
    changed = {name.partition(".")[0] for name in before if not torch.equal(before[name], after[name])}
    assert changed == {"decoder"}
    autoencoder.train(tmp_path, **options, decoder_only=True)  # done already
    assert all(torch.equal(after[name], value) for name, value in load_vae(tmp_path).state_dict().items())


def test_a_family_is_put_together_with_places_for_what_is_exported_later(tmp_path, monkeypatch):
    monkeypatch.setattr(assemble, "_FITTED", 12)
    held = held_by_the_node()
    base = NANO / "base" / "pixart_nano_base.safetensors"
    assemble.assemble(NANO, base, NANO / "transformer", tmp_path / "nano")
    assert {"lcm_lora", "controlnet"} <= {path.name for path in (tmp_path / "nano").iterdir()}
    for name, source in (("transformer", NANO / "transformer"), ("base/pixart_nano_base.safetensors", base)):
        made, whole = (load_pixart(path).state_dict() for path in (tmp_path / "nano" / name, source))
        assert all(torch.equal(made[key], whole[key].half().to(made[key].dtype)) for key in whole)
        colours = inspect_file(tmp_path / "nano" / name).metadata[COLOURS]
        assert np.asarray([*colours["factors"], colours["bias"]]) == pytest.approx(
            np.asarray([*held["_NANO_RGB"], held["_NANO_BIAS"]]), abs=0.1
        )


def test_a_critic_moves_the_decoder_and_learns_to_tell_its_pictures(tmp_path):
    torch.manual_seed(0)
    vae, judge = autoencoder.build(8), Judge(torch.device("cpu"), 0.5)
    drawn = autoencoder.Source(WORLDS[2], 256).crops(random.Random(1), 2, 64)
    blurred = torch.nn.functional.avg_pool2d(drawn, 5, 1, 2)
    gaps = []
    for _ in range(60):
        gaps.append((judge.critic(drawn) - judge.critic(blurred)).mean().item())
        judge.learn(blurred, drawn)
    assert gaps[-1] > gaps[0] + 0.5
    gradients = []
    for each in (None, judge):
        torch.manual_seed(1)
        vae.zero_grad()
        autoencoder._forward(vae, drawn, 0.0, each)[0].backward()
        gradients.append(vae.decoder.layers[-1].weight.grad.clone())
    share = (gradients[1] - gradients[0]).norm() / gradients[0].norm()
    assert 0 < share <= 0.51
    assert all(parameter.grad is None or parameter.requires_grad for parameter in judge.critic.parameters())


def test_crops_come_of_a_folder_that_may_grow(tmp_path, monkeypatch):
    monkeypatch.setattr(autoencoder, "_FILES", 2)
    scene_folder.draw_folder(tmp_path, 2, seed=1, resolution=256, world=2)
    few = autoencoder.Source(folder=tmp_path).crops(random.Random(3), 4, 64)
    scene_folder.draw_folder(tmp_path, 3, seed=1, resolution=256, world=2)
    assert torch.equal(few, autoencoder.Source(folder=tmp_path).crops(random.Random(3), 4, 64))
    with pytest.raises(ConfigError, match="holds no PNG files: draw them"):
        autoencoder.Source(folder=tmp_path / "nowhere")


def test_what_an_autoencoder_keeps_is_measured(tmp_path, capsys):
    """The bundled one on its own world, and a picture that comes back as it was."""
    reconstruction.main([str(NANO), "--count", "4", "--sheet", str(tmp_path / "sheet.png")])
    said = json.loads(capsys.readouterr().out)
    assert 26 < said["psnr"] < 36 and 0.6 < said["edge_f1"] < 1
    assert (tmp_path / "sheet.png").stat().st_size > 5000


@pytest.mark.parametrize("kind", ["colour", "edge"])
def test_the_loss_sees_a_wrong_colour_and_a_lost_edge_alike(kind):
    """Of the same squared error, one that is spread out as a tint must not count for much less than one at edges."""
    target = torch.zeros(1, 3, 64, 64)
    tint, stripes = torch.full_like(target, 0.1), torch.zeros_like(target)
    stripes[..., ::2] = 0.1 * 2**0.5
    losses = {"colour": autoencoder.reconstruction_loss(tint, target)}
    losses["edge"] = autoencoder.reconstruction_loss(stripes, target)
    assert losses[kind] > 0.5 * max(losses.values())
