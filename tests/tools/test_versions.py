"""tools/versions.py: what is stated is what is run, and an overlay never replaces what everything is built against."""

import re
import subprocess
import sys

import pytest

from tests.conftest import ROOT
from tools import versions
from tools.comfy_server import comfyui_trees


def stated() -> dict[str, str]:
    """Package -> lower bound, in the metadata."""
    tomllib = pytest.importorskip("tomllib", reason="Python 3.10 has no TOML parser")
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    entries = [*project["dependencies"], *project["optional-dependencies"]["train"]]
    return dict(entry.split(">=") for entry in entries if not entry.startswith("comfyui-"))


def test_every_stated_bound_is_run():
    assert dict(entry.split("==") for entry in versions.pins("oldest")) == stated()
    assert re.search(r"tools\.versions --quick oldest 2025$", (ROOT / ".ci" / "run").read_text(), re.M)


def test_transformers_is_asked_for_as_comfyui_does():
    for tree in comfyui_trees().values():
        assert f"transformers>={stated()['transformers']}" in (tree / "requirements.txt").read_text().split()


@pytest.mark.parametrize("selection", [versions.QUICK, versions.WHOLE])
def test_what_is_run_exists(selection):
    for entry in selection:
        file, _, test = entry.partition("::")
        assert f"def {test}" in (ROOT / file).read_text(encoding="utf-8")


def test_an_overlay_lies_over_the_environment(tmp_path, monkeypatch):
    """Its own packages come first, the environment's are there, and a second call makes nothing anew."""
    environment = tmp_path / "environment"
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", environment], check=True)
    for name in ("below", "both"):
        (versions.site_packages(environment) / f"{name}.py").write_text("where = 'environment'")
    installed = []

    def run_pip(python, arguments, log):
        (folder,) = (arguments[index + 1] for index, word in enumerate(arguments) if word == "--target")
        installed.append(arguments[-1])
        (versions.Path(folder) / "both.py").write_text("where = 'overlay'")

    monkeypatch.setattr(versions, "resolve", lambda name, environment: ["both==1"])
    monkeypatch.setattr(versions, "run_pip", run_pip)
    for _ in range(2):
        python = versions.overlay("2025", environment)
    assert installed == ["both==1"]
    code = "import below, both; print(below.where, both.where)"
    assert subprocess.run([python, "-c", code], capture_output=True, text=True).stdout == "environment overlay\n"
    monkeypatch.setitem(versions.LATER, "2025", ("both==2",))
    versions.overlay("2025", environment)
    assert len(installed) == 2
