"""Packages that only some features need, taken away: pictures come all the same, and what needs one says so."""

import subprocess
import sys

import pytest

from tests.conftest import ROOT
from tests.nodes.graphs import pictures
from tools.comfy_server import ComfyServer
from tools.workflow_api import load_workflow, to_api

OPTIONAL = ("bitsandbytes", "peft", "accelerate", "webdataset")
"""diffusers, which has the autoencoders, is a requirement."""
HIDE = """
import importlib.machinery, sys
hidden = {hidden!r}
class Finder(importlib.machinery.PathFinder):
    @classmethod
    def find_spec(cls, name, path=None, target=None):
        return None if name.partition(".")[0] in hidden else super().find_spec(name, path, target)
sys.meta_path[sys.meta_path.index(importlib.machinery.PathFinder)] = Finder
"""


def run(hidden, code, *arguments):
    """Run code where some packages cannot be found."""
    command = [sys.executable, "-c", HIDE.format(hidden=tuple(hidden)) + code, *map(str, arguments)]
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=300)


def test_comfyui_draws_without_any_of_them(newest_comfyui, tmp_path):
    (tmp_path / "site").mkdir()
    # Python runs it before anything else; ComfyUI is started as ever.
    (tmp_path / "site" / "sitecustomize.py").write_text(HIDE.format(hidden=OPTIONAL))
    with ComfyServer(newest_comfyui, tmp_path / "home", env={"PYTHONPATH": str(tmp_path / "site")}) as server:
        graph = to_api(
            load_workflow(ROOT / "workflows" / "PixArt 03 Text to Image under 8 GB.json"), server.object_info()
        )
        assert len(pictures(server.prompt(graph))) == 1


def test_the_pipeline_draws_without_those_that_train():
    code = """
import pixart_core as pc
pc.Pipeline.from_pretrained("models/nano")("a red house on the lake", steps=2)[0].verify()
"""
    assert run(OPTIONAL, code).returncode == 0


@pytest.mark.parametrize(
    "code", ["pc.Pipeline.from_pretrained('models/nano')", "pixart_core.text.normalize_prompt('x', clean_caption=True)"]
)
def test_what_needs_diffusers_says_so(code):
    result = run(["diffusers"], f"import pixart_core as pc, pixart_core.text, pixart_core\n{code}")
    assert result.stderr.splitlines()[-1].startswith("ImportError: ")
    assert "pip install diffusers" in result.stderr.splitlines()[-1]


def test_a_training_says_what_to_install(tmp_path):
    code = "import runpy; sys.argv[0] = 'training/train.py'; runpy.run_path('training/train.py', run_name='__main__')"
    base = ROOT / "models" / "nano" / "base" / "pixart_nano_base.safetensors"
    settings = {"data": tmp_path / "features", "run": tmp_path / "run", "base": base}
    result = run(["accelerate"], code, "lcd", *(f"--set={name}={value}" for name, value in settings.items()))
    assert result.returncode == 1 and "error: accelerate is not installed" in result.stderr
    assert "pip install" in result.stderr and not (tmp_path / "run").exists()
