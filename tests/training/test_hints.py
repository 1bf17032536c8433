"""Hints of any kind: found by a detector of controlnet_aux, or of a folder; what they are goes into the ControlNet."""

import json
import sys

import numpy as np
import pytest
from PIL import Image
from pixart_delta.training.config import DETECTED, WITHOUT_WEIGHTS, ConfigError, ExportConfig, make_config
from pixart_delta.training.data import FeatureDataset
from pixart_delta.training.export import export
from pixart_delta.training.prepare.detectors import Detector
from pixart_delta.training.prepare.run import prepare

from pixart_core.identify import inspect_file
from tests.conftest import ROOT
from tests.training import runs_fixture as runs
from tests.training.picture_fixture import make_pictures

NANO = ROOT / "models" / "nano"
PREPARE = {"input": "i", "output": "o"}


def config(**values):
    return make_config("prepare", {**PREPARE, **values})


def test_a_detector_by_name():
    """Canny's edges lie where a square ends, at the picture's size, whatever the detector rounds to."""
    pytest.importorskip("controlnet_aux")
    picture = np.zeros((96, 160, 3), np.uint8)
    picture[32:64, 40:120] = 255
    hint = Detector(config(hints="canny"), None)(picture)
    assert hint.shape == picture.shape and hint.dtype == np.uint8
    rows = np.flatnonzero(hint[:, 80].max(-1) > 60)
    assert len(rows) and all(min(abs(row - 32), abs(row - 64)) <= 3 for row in rows), rows


def test_detectors_that_need_weights_say_so(tmp_path):
    for name in DETECTED:
        if name in WITHOUT_WEIGHTS:
            with pytest.raises(ConfigError, match="needs no annotators"):
                config(hints=name, annotators=str(tmp_path))
        else:
            with pytest.raises(ConfigError, match="needs annotators"):
                config(hints=name)
    pytest.importorskip("controlnet_aux")
    with pytest.raises(ConfigError, match="lacks weights for hints=lineart"):
        Detector(config(hints="lineart", annotators=str(tmp_path)), None)
    with pytest.raises(ConfigError, match="it is for hints=folder"):
        config(hints="canny", hint_kind="depth")


def test_a_missing_package_is_named(monkeypatch):
    monkeypatch.setitem(sys.modules, "controlnet_aux", None)
    with pytest.raises(ImportError):
        Detector(config(hints="canny"), None)


def test_a_controlnet_remembers_its_kind(tmp_path):
    """Of canny from a folder: in the dataset, the export at the end of the training, and one from a checkpoint."""
    make_pictures(tmp_path / "pictures", 4)
    (tmp_path / "hints").mkdir()
    for file in (tmp_path / "pictures").glob("*.png"):
        Image.open(file).convert("L").save(tmp_path / "hints" / file.name)
    told = {"models": str(NANO), "resolution": 64, "workers": 0, "hints": "folder", "hint_kind": "canny"}
    places = {"input": "pictures", "output": "features", "hint_folder": "hints"}
    prepare(config(**told, **{name: str(tmp_path / place) for name, place in places.items()}))
    assert FeatureDataset(tmp_path / "features").description["hint_kind"] == "canny"
    material = {
        "base": str(NANO / "base" / "pixart_nano_base.safetensors"),
        "data": str(tmp_path / "features"),
    }
    values = runs.settings("controlnet", material, tmp_path / "run", steps=1, copy_blocks=1, workers=0)
    run = runs.run_here("controlnet", values)
    later = export(ExportConfig(run=str(run.path), output=str(tmp_path / "later.safetensors")))
    for file in (run.path / "exports" / "controlnet.safetensors", later):
        assert inspect_file(file).metadata["hint"] == "canny"
    described = json.loads((tmp_path / "features" / "dataset.json").read_text())
    assert described["hints"] == "folder"
