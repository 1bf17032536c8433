"""What was written at 87a0225 still opens, goes on and exports.

`tests/earlier/v87a0225` was made by that revision's own code, in a folder /old: a base of two blocks, features, `run`,
an LCD killed after step 6 of 8, its checkpoint of step 4; four jobs (a LoRA in mid-way, a finished fine-tune, a waiting
ControlNet, a finished dataset); exports; the nine workflows. `expected.json` holds the losses of the same LCD without a
break.
"""

import json
import shutil
from pathlib import Path

import pytest
import torch
from pixart_delta.training.cli import describe_run
from pixart_delta.training.config import ExportConfig, make_config
from pixart_delta.training.data import FeatureDataset
from pixart_delta.training.export import export
from pixart_delta.training.loop import train
from pixart_delta.training.run_dir import RunDir

import pixart_core as pc

EARLIER = Path(__file__).parents[1] / "earlier" / "v87a0225"
LORA = "half-a-lora-66aae1"


@pytest.fixture
def old(tmp_path) -> Path:
    """A copy of the folder, as if it had been made where it is now."""
    folder = tmp_path / "old"
    shutil.copytree(EARLIER, folder)
    for file in folder.rglob("*.json"):
        if "/old/" in (text := file.read_text("utf-8")):
            file.write_text(text.replace("/old/", f"{folder.as_posix()}/"), "utf-8")
    return folder


def apply_to_base(old: Path, lora: Path) -> None:
    model = pc.load_pixart(old / "base.safetensors")
    before = {name: weight.clone() for name, weight in model.state_dict().items()}
    pc.apply_lora(model, pc.load_lora(lora))
    assert any(not torch.equal(weight, before[name]) for name, weight in model.state_dict().items())


def resumed(run: Path) -> RunDir:
    """Give the run its own settings again."""
    kept = RunDir(run).read_config()
    train(make_config(kept["command"], kept["config"]))
    return RunDir(run)


def test_a_run_goes_on_where_it_was(old):
    assert "killed" in describe_run(old / "run") and "step: 4 of 8" in describe_run(old / "run")
    run = resumed(old / "run")
    assert [line["step"] for line in run.metrics()] == [1, 2, 3, 4, 5, 6, 7, 8]
    expected = json.loads((old / "expected.json").read_text())["losses"]
    assert [line["loss"] for line in run.metrics()] == pytest.approx(expected, rel=1e-3)
    assert run.read_status()["state"] == "done"
    assert pc.load_pixart(run.read_status()["export"]).config.depth == 2


@pytest.mark.parametrize(
    ("run", "layout"), [("run", "comfyui"), ("run", "diffusers"), (f"jobs/{LORA}", "peft"), (f"jobs/{LORA}", "comfyui")]
)
def test_a_run_in_mid_way_is_exported(old, run, layout):
    target = old / ("out.safetensors" if layout == "comfyui" else "out")
    written = export(ExportConfig(run=str(old / run), output=str(target), layout=layout))
    if run == "run":
        assert pc.load_pixart(written).config.hidden_size == 24
    else:
        apply_to_base(old, written)


def test_datasets_are_read(old):
    assert len(FeatureDataset(old / "features")) == 10
    assert len(FeatureDataset(old / "jobs" / "pictures-37771f" / "dataset")) == 4


def test_exports_load(old):
    assert pc.load_pixart(old / "jobs" / "finished-1e9248" / "exports" / "pixart.safetensors").config.depth == 2
    for name in ("lora_peft.safetensors", "lora_comfyui.safetensors"):
        apply_to_base(old, old / "exports" / name)
