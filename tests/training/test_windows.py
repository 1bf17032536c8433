"""Windows, as far as it can be had elsewhere."""

import ast
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from pixart_delta.pixart_core import saving
from pixart_delta.training import storage
from pixart_delta.training.jobs import job
from safetensors.torch import load_file

ROOT = Path(__file__).resolve().parents[2]


@pytest.mark.parametrize("what", ["jobs", "train"])
def test_without_what_windows_lacks(tmp_path, what):
    command = [sys.executable, str(Path(__file__).with_name("inside_windows.py")), str(tmp_path), what]
    done = subprocess.run(command, capture_output=True, text=True, cwd=tmp_path)
    assert done.returncode == 0 and done.stdout.endswith("ok\n"), done.stdout + done.stderr


@pytest.mark.parametrize("room", ["pixart_core", "training", "nodes"])
def test_text_files_have_an_encoding(room):
    """Windows' own is not UTF-8."""
    missing = []
    for file in sorted((ROOT / room).rglob("*.py")):
        for call in (each for each in ast.walk(ast.parse(file.read_text("utf-8"))) if isinstance(each, ast.Call)):
            name = getattr(call.func, "attr", getattr(call.func, "id", ""))
            keys, plain = {each.arg for each in call.keywords}, len(call.args)
            text = name == "read_text" and not plain or name == "write_text" and plain < 2
            if isinstance(call.func, ast.Name) and name == "open":
                mode = call.args[1].value if plain > 1 and isinstance(call.args[1], ast.Constant) else "r"
                text = "b" not in mode
            if text and "encoding" not in keys:
                missing.append(f"{file.relative_to(ROOT)}:{call.lineno}")
    assert not missing


@pytest.mark.parametrize("name", ["CON", "nul", "com1", "aux.", "a. ", "..."])
def test_no_name_of_a_job_is_one_that_windows_keeps_for_itself(name):
    made = job.new_id("lcd", name)
    assert made[-7] == "-"
    assert made.lower() == made
    assert not made.endswith((".", " "))
    assert len(made) <= 47


def test_a_file_that_is_open_elsewhere_is_waited_for(monkeypatch):
    tries = []

    def action():
        tries.append(1)
        if len(tries) < 3:
            raise PermissionError(13, "in use")
        return "replaced"

    with pytest.raises(PermissionError):
        storage.patiently(action)  # elsewhere it means what it says
    monkeypatch.setattr(storage, "_IS_WINDOWS", True)
    assert storage.patiently(action) == "replaced"


def test_weights_that_are_mapped_elsewhere_make_way(tmp_path, monkeypatch):
    """Windows refuses to replace them, and to delete them, until they are let go."""
    file, mapped = tmp_path / "lora.safetensors", set()
    saving.save_weights({"a": torch.zeros(2)}, file)
    mapped.add(file.stat().st_ino)
    replace, unlink = os.replace, Path.unlink

    def refuse(path):
        if Path(path).exists() and Path(path).stat().st_ino in mapped:
            raise PermissionError(13, "Access is denied", str(path))

    monkeypatch.setattr(os, "replace", lambda source, target: (refuse(target), replace(source, target)))
    monkeypatch.setattr(Path, "unlink", lambda self, *more, **options: (refuse(self), unlink(self, *more, **options)))
    saving.save_weights({"a": torch.ones(2)}, file)
    assert load_file(file)["a"].tolist() == [1, 1]
    assert len(list(tmp_path.glob(".lora.safetensors.old-*"))) == 1
    mapped.clear()
    saving.save_weights({"a": torch.ones(2)}, file)
    assert not list(tmp_path.glob(".*.old-*"))
