"""Saving checkpoints: atomic, described, and never half written."""

import os
import subprocess
import sys
import textwrap

import pytest
import torch
from safetensors.torch import load_file

import pixart_core as pc
from pixart_core import saving
from pixart_core.checkpoint import (
    CheckpointError,
)
from tests.core.checkpoint_fixture import CONFIG, ROOT, assert_same


def test_saved_file_describes_itself_and_can_be_read_by_others(model, tmp_path):
    path = pc.save_pixart(model, tmp_path / "model.safetensors", metadata={"trained": "12 steps"})
    info = pc.inspect_file(path)
    assert info.config == CONFIG
    assert info.metadata["trained"] == "12 steps"
    assert info.parameters > 0
    assert load_file(path).keys() == model.state_dict().keys()
    mask = os.umask(0)
    os.umask(mask)
    assert path.stat().st_mode & 0o777 == 0o666 & ~mask


def test_state_dicts_are_saved_with_their_configuration(model, tmp_path):
    path = pc.save_pixart(model.state_dict(), tmp_path / "model.safetensors", config=CONFIG)
    assert_same(pc.load_pixart(path), model)
    with pytest.raises(CheckpointError, match="needs its configuration: give config="):
        pc.save_pixart(model.state_dict(), tmp_path / "other.safetensors")
    with pytest.raises(CheckpointError, match="does not fit .* it lacks t_block.1.bias"):
        pc.save_pixart(
            {k: v for k, v in model.state_dict().items() if k != "t_block.1.bias"},
            tmp_path / "other.safetensors",
            config=CONFIG,
        )
    assert not (tmp_path / "other.safetensors").exists()


@pytest.mark.parametrize(
    "name,layout,message",
    [
        ("model.pth", "authors", "let it end in .safetensors"),
        ("no/m.safetensors", "authors", "folder .* does not exist"),
        ("m.safetensors", "diffusers", "diffusers layout is a folder"),
        ("m", "onnx", "unknown layout 'onnx'"),
    ],
)
def test_bad_destinations(model, tmp_path, name, layout, message):
    with pytest.raises(CheckpointError, match=message):
        pc.save_pixart(model, tmp_path / name, layout=layout)
    assert not list(tmp_path.rglob("*"))


def test_disk_that_is_too_small_is_seen_before_writing(model, tmp_path, monkeypatch):
    usage = type("Usage", (), {"free": 1000})
    monkeypatch.setattr(saving.shutil, "disk_usage", lambda path: usage)
    with pytest.raises(CheckpointError, match="takes 0.00 GB, but only 0.00 GB are free there"):
        pc.save_pixart(model, tmp_path / "model.safetensors")
    assert not list(tmp_path.iterdir())


@pytest.mark.skipif(sys.platform == "win32", reason="needs a file size limit")
def test_disk_that_fills_up_leaves_the_old_file(model, tmp_path):
    """A real write error half-way, by the system's limit on file sizes, in a process of its own."""
    path = pc.save_pixart(model, tmp_path / "model.safetensors")
    before = path.read_bytes()
    script = textwrap.dedent(f"""
        import resource, pixart_core as pc
        from pixart_core.checkpoint import CheckpointError
        model = pc.load_pixart({str(path)!r})
        resource.setrlimit(resource.RLIMIT_FSIZE, (50_000, 50_000))
        try:
            pc.save_pixart(model, {str(path)!r})
        except CheckpointError as error:
            print(error)
    """)
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, cwd=ROOT)
    assert "could not write" in done.stdout and "File too large" in done.stdout, done.stdout + done.stderr
    assert [p.name for p in tmp_path.iterdir()] == ["model.safetensors"] and path.read_bytes() == before


def test_saving_over_the_file_that_is_mapped(model, tmp_path):
    path = pc.save_pixart(model, tmp_path / "model.safetensors")
    loaded = pc.load_pixart(path)
    with torch.no_grad():
        loaded.blocks[0].mlp.fc1.bias.add_(1)
    pc.save_pixart(loaded, path)
    assert_same(pc.load_pixart(path), loaded)
