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
    assert versions.TRIED_BY.keys() == {name.partition("[")[0] for name in stated()}
    tried = set(versions.TRIED_BY.values())
    assert all(tried < set(versions.selection("oldest", quick)) for quick in (True, False))
    assert re.search(r"tools\.versions --quick oldest 2025$", (ROOT / ".ci" / "run").read_text(), re.M)


def test_transformers_is_asked_for_as_comfyui_does():
    for tree in comfyui_trees().values():
        assert f"transformers>={stated()['transformers']}" in (tree / "requirements.txt").read_text().split()


@pytest.mark.parametrize("selection", [versions.QUICK, versions.WHOLE, versions.ANY_PYTHON])
def test_what_is_run_exists(selection):
    for entry in selection:
        file, _, test = entry.partition("::")
        path = ROOT / file
        assert any(path.glob("test_*.py")) if path.is_dir() else f"def {test}" in path.read_text(encoding="utf-8")


def test_every_python_that_is_stated_is_run():
    assert all(f"3.{minor}" in versions.PYTHONS for minor in range(10, 14))
    assert "Python 3.10 to 3.13" in (ROOT / "README.md").read_text(encoding="utf-8")


def test_a_python_is_found_by_what_it_says_it_is(tmp_path, monkeypatch):
    """On the path, where pyenv's stand-ins answer for every version and may fail; or in pyenv's own folders."""
    monkeypatch.setenv("PYENV_ROOT", str(tmp_path))
    monkeypatch.setenv("PATH", str(tmp_path / "shims"))

    def put(file, body):
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(f"#!/bin/sh\n{body}\n")
        file.chmod(0o755)
        return file

    put(tmp_path / "shims" / "python3.12", "exit 127")
    assert versions.find_python("3.12") is None
    put(tmp_path / "versions" / "3.12.1" / "bin" / "python", "echo 3.11")
    assert versions.find_python("3.12") is None
    found = put(tmp_path / "versions" / "3.12.9" / "bin" / "python", "echo 3.12")
    assert versions.find_python("3.12") == found


def test_another_python_has_an_environment_of_its_own(tmp_path, monkeypatch):
    """Made by setup without moving the clone's links, and the tests are run by it."""
    python = tmp_path / "environment" / "bin" / "python"
    python.parent.mkdir(parents=True)
    python.write_text(f'#!/bin/sh\necho "$@" > {tmp_path}/asked\n')
    python.chmod(0o755)
    maker = tmp_path / "maker"
    maker.write_text(f"#!/bin/sh\necho \"$@\" > {tmp_path}/made\necho '[setup] a line'\necho {tmp_path}/environment\n")
    maker.chmod(0o755)
    monkeypatch.setattr(versions, "find_python", lambda version: maker)
    assert versions.check_python("3.12", ["-x"])
    assert (tmp_path / "made").read_text().strip().endswith("tools/setup.py --no-links")
    asked = (tmp_path / "asked").read_text().split()
    assert {"-x", *versions.QUICK} < set(asked)
    monkeypatch.setattr(versions, "find_python", lambda version: None)
    with pytest.raises(versions.SetupError, match="there is no Python 3.12 here"):
        versions.check_python("3.12", [])


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
