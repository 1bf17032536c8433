"""The colours of ComfyUI's previews are those of the bundled autoencoder, fitted by `train.py nano preview`."""

import ast

import numpy as np
import pytest
import torch
from PIL import Image
from pixart_delta.training.nano import preview

from tests.conftest import ROOT


def held_by_the_node() -> dict[str, tuple]:
    """The constants of nodes/bridge/preview.py, which only ComfyUI can import."""
    tree = ast.parse((ROOT / "nodes" / "bridge" / "preview.py").read_text("utf-8"))
    pairs = ((each.targets[0].id, each.value) for each in tree.body if isinstance(each, ast.Assign))
    return {name: ast.literal_eval(value) for name, value in pairs if name in ("_NANO_RGB", "_NANO_BIAS")}


def test_the_nodes_colours_are_what_the_command_fits(capsys):
    preview.main([str(ROOT / "models" / "nano")])
    printed = ast.parse(capsys.readouterr().out)
    fitted = {each.targets[0].id: ast.literal_eval(each.value) for each in printed.body}
    held = held_by_the_node()
    for name in ("_NANO_RGB", "_NANO_BIAS"):
        assert np.asarray(fitted[name]) == pytest.approx(np.asarray(held[name]), abs=2e-3)


def test_a_linear_autoencoder_is_explained_whole(monkeypatch):
    weights, rng = torch.tensor([[0.5, 0.1, 0.0], [0.0, 0.4, 0.2], [0.3, 0.0, 0.6]]).double(), np.random.default_rng(0)
    pictures = [Image.fromarray(rng.integers(0, 256, (4, 6, 3), np.uint8)).resize((48, 32), 0) for _ in range(3)]

    def encoded(_vae, picture):
        colours = torch.from_numpy(np.asarray(picture.resize((6, 4), 4), np.float64) / 127.5 - 1)
        latent = (colours - 0.25) @ weights.inverse()
        return torch.cat([latent, torch.randn(4, 6, 1).double()], -1).permute(2, 0, 1)[None]

    monkeypatch.setattr(preview, "encoded", encoded)
    factors, bias, explained = preview.fit(None, pictures)
    torch.testing.assert_close(factors[:3], weights)
    assert factors[3].abs().max() < 1e-6 and bias == pytest.approx([0.25] * 3) and explained.min() > 0.999
