"""The README's own commands for a training, as a newcomer types them, in a folder that is not this one."""

import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest
from pixart_delta.training.cli import main

import pixart_core as pc
from tests.training.picture_fixture import make_pictures

ROOT = Path(__file__).resolve().parents[2]
PICTURES = 50


def commands(replaced: dict[str, str]) -> str:
    """The code block of the section *Train* that trains, with parts of it replaced, each of which must be there."""
    section = re.split(r"^## ", (ROOT / "README.md").read_text("utf-8"), flags=re.M)
    train = next(part for part in section if part.startswith("Train\n"))
    block = next(block for block in re.findall(r"```\n(.*?)```", train, re.S) if "prepare" in block)
    for old, new in replaced.items():
        assert old in block, old
        block = block.replace(old, new)
    return block


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Where the commands were run: pictures, features, run and export."""
    folder = tmp_path_factory.mktemp("home") / "work"
    make_pictures(folder / "my_pictures", PICTURES)
    (folder / "diffusion_models").mkdir()
    script = commands(
        {
            "python training/": f"{shlex.quote(sys.executable)} {ROOT}/training/",
            "training/recipes/": f"{ROOT}/training/recipes/",
            "models/nano": f"{ROOT}/models/nano",
            "/path/to/ComfyUI/models/": "",
            "steps=200": "steps=3",
        }
    )
    done = subprocess.run(["bash", "-euc", script], cwd=folder, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    assert f"my_features holds {PICTURES} prepared pictures" in done.stdout
    return folder


def draw(file):
    pipe = pc.Pipeline.from_pretrained(ROOT / "models/nano", transformer=file)
    return pipe("a house on a meadow at dawn", steps=2)[0]


def test_pictures_become_a_file_that_draws(folder):
    assert draw(folder / "diffusion_models/my_lcm.safetensors").size == (128, 128)


def test_the_run_can_be_used_from_elsewhere(folder, monkeypatch, capsys):
    """Though base and data were given as the README gives them, relative to where it was begun."""
    (folder.parent / "elsewhere").mkdir()
    monkeypatch.chdir(folder.parent / "elsewhere")
    assert main(["status", "../work/my_run"]) == 0
    assert capsys.readouterr().out.startswith("command: lcd\nstate: done\nstep: 3 of 3\n")
    assert main(["export", "../work/my_run", "--set", "output=mine.safetensors"]) == 0
    assert capsys.readouterr().out.strip() == str(folder.parent / "elsewhere/mine.safetensors")
    first = folder / "diffusion_models/my_lcm.safetensors"
    assert draw("mine.safetensors").tobytes() == draw(first).tobytes()
