"""Packages that only some features need, taken away: pictures come all the same, and what needs one says so."""

import subprocess
import sys

import pytest

from tests.conftest import ROOT
from tests.nodes.graphs import pictures
from tests.training.picture_fixture import make_pictures
from tests.training.shards_fixture import make_features
from tools.comfy_server import ComfyServer
from tools.workflow_api import load_workflow, to_api

OPTIONAL = (
    *("bs4", "diffusers", "ftfy"),
    *("accelerate", "bitsandbytes", "peft", "prodigyopt", "pyarrow", "schedulefree", "tensorboard", "webdataset"),
)
"""What the extension asks for beyond ComfyUI's own packages, and what training needs: pictures come without."""
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
    """The LCM model with a text encoder in 8 bits and a tiled decode, and the base model by KSampler."""
    (tmp_path / "site").mkdir()
    # Python runs it before anything else; ComfyUI is started as ever.
    (tmp_path / "site" / "sitecustomize.py").write_text(HIDE.format(hidden=OPTIONAL))
    with ComfyServer(newest_comfyui, tmp_path / "home", env={"PYTHONPATH": str(tmp_path / "site")}) as server:
        for name in ("PixArt 03 Text to Image under 8 GB", "PixArt 05 Base Model in 14 Steps"):
            graph = to_api(load_workflow(ROOT / "workflows" / f"{name}.json"), server.object_info())
            assert len(pictures(server.prompt(graph))) == 1


def test_the_pipeline_draws_without_any_of_them(nano_released):
    """With the bundled autoencoder, and with one of Stable Diffusion's kind."""
    code = """
import pixart_core as pc
for folder in sys.argv[1:]:
    pc.Pipeline.from_pretrained(folder)("a red house on the lake", steps=2)[0].verify()
"""
    result = run(OPTIONAL, code, "models/nano", nano_released)
    assert result.returncode == 0, result.stderr


@pytest.mark.parametrize(
    "code",
    [
        "pc.Pipeline.from_pretrained('models/nano')('x', sampler='dpm')",
        "pixart_core.text.normalize_prompt('x', clean_caption=True)",
    ],
)
def test_what_needs_diffusers_says_so(code):
    result = run(["diffusers"], f"import pixart_core as pc, pixart_core.text, pixart_core\n{code}")
    assert result.stderr.splitlines()[-1].startswith("ImportError: ")
    assert "pip install diffusers" in result.stderr.splitlines()[-1]


TRAIN = "import runpy; sys.argv[0] = 'training/train.py'; runpy.run_path('training/train.py', run_name='__main__')"


def train(hidden, command, **settings):
    return run([hidden], TRAIN, command, *(f"--set={name}={value}" for name, value in settings.items()))


@pytest.fixture(scope="module")
def features(tmp_path_factory):
    return make_features(tmp_path_factory.mktemp("missing") / "features", width=64)


BASE = ROOT / "models" / "nano" / "base" / "pixart_nano_base.safetensors"


@pytest.mark.parametrize(
    ("hidden", "command", "changes"),
    [("accelerate", "lcd", {}), ("peft", "lcm-lora", {}), ("bitsandbytes", "lcd", {"optimizer": "adamw8bit"})],
    ids=["accelerate", "peft", "bitsandbytes"],
)
def test_a_training_says_what_to_install(features, tmp_path, hidden, command, changes):
    result = train(hidden, command, data=features, run=tmp_path / "run", base=BASE, **changes)
    assert result.returncode == 1 and f"error: {hidden} is not installed" in result.stderr
    assert "pip install" in result.stderr and not list(tmp_path.glob("run/checkpoints/*"))


def test_preparing_says_what_to_install(tmp_path):
    make_pictures(tmp_path / "pictures", 1)
    places = {"input": tmp_path / "pictures", "output": tmp_path / "features", "models": ROOT / "models" / "nano"}
    result = train("webdataset", "prepare", resolution=64, **places)
    assert result.returncode == 1 and "error: webdataset is not installed" in result.stderr
    assert "pip install" in result.stderr and not list(tmp_path.glob("features/**/*.tar"))


def test_a_training_goes_on_without_samples(features, tmp_path):
    """Those of a training without guidance inside are drawn by DPM-Solver++."""
    folder = tmp_path / "run"
    settings = {"steps": 1, "batch_size": 1, "sample_every": 1, "precision": "fp32", "tensorboard": "false"}
    models = ROOT / "models" / "nano"
    result = train("diffusers", "finetune", data=features, run=folder, base=BASE, models=models, **settings)
    assert result.returncode == 0, result.stderr
    assert "no samples: DPM-Solver++ is diffusers'" in result.stdout and "pip install diffusers" in result.stdout
