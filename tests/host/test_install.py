"""Installed the way users do: ComfyUI-Manager's command line puts this repository into a clean ComfyUI."""

from __future__ import annotations

import functools
import http.server
import importlib.metadata
import json
import os
import shutil
import subprocess
import sys
import threading
import venv
from collections.abc import Iterable
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

from tools.comfy_server import ComfyServer
from tools.workflow_api import load_workflow, to_api

ROOT = Path(__file__).resolve().parents[2]


def distributions_needed(names: list[str]) -> dict[str, importlib.metadata.Distribution]:
    """The distributions of this environment that the named ones need, themselves included."""
    found, seen, waiting = {}, set(), [Requirement(name) for name in names]
    while waiting:
        requirement = waiting.pop()
        name, extras = canonicalize_name(requirement.name), frozenset(requirement.extras or {""})
        if (name, extras) in seen or not applies(requirement, {""}):
            continue
        seen.add((name, extras))
        found[name] = importlib.metadata.distribution(name)
        for text in found[name].requires or ():
            inner = Requirement(text)
            if applies(inner, extras):
                inner.marker = None
                waiting.append(inner)
    return found


def applies(requirement: Requirement, extras: Iterable[str]) -> bool:
    """Whether a requirement holds on this machine, for a distribution asked for with these extras."""
    return requirement.marker is None or any(requirement.marker.evaluate({"extra": extra}) for extra in extras)


def make_environment(folder: Path, names: list[str]) -> Path:
    """A virtual environment with exactly what `names` need, hard-linked from this one. Returns its interpreter.

    Hard links are ordinary files to pip: it can replace them there without touching the environment they came from.
    """
    venv.EnvBuilder(symlinks=True).create(folder)
    site = next((folder / "lib").glob("python3*/site-packages"))
    for distribution in distributions_needed(names).values():
        for file in distribution.files or ():
            if file.parts[0] == "..":  # console scripts, which name the other environment's interpreter
                continue
            target = site / file
            target.parent.mkdir(parents=True, exist_ok=True)
            source = Path(distribution.locate_file(file))
            if source.exists() and not target.exists():
                os.link(source, target)
    return folder / "bin" / "python"


def installed(python: Path) -> dict[str, str]:
    """Name -> version of every distribution that an interpreter sees."""
    listing = subprocess.run([python, "-m", "pip", "list", "--format=json"], capture_output=True, text=True, check=True)
    return {entry["name"]: entry["version"] for entry in json.loads(listing.stdout)}


class QuietHandler(http.server.SimpleHTTPRequestHandler):
    def log_message(self, *_) -> None:
        pass


@pytest.fixture
def served_repository(tmp_path):
    """URL of this repository's last commit, served by git's plain-HTTP protocol on the loopback interface."""
    bare = tmp_path / "served" / "pixart-delta.git"
    subprocess.run(["git", "clone", "-q", "--bare", "--no-local", str(ROOT), str(bare)], check=True)
    subprocess.run(["git", "-C", str(bare), "update-server-info"], check=True)
    handler = functools.partial(QuietHandler, directory=str(bare.parent))
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{server.server_port}/{bare.name}"
        server.shutdown()


@pytest.mark.network
@pytest.mark.timeout(1200)
def test_the_manager_installs_it_and_the_first_workflow_runs(newest_comfyui, served_repository, tmp_path, scratch):
    comfyui = shutil.copytree(newest_comfyui, tmp_path / "ComfyUI", ignore=shutil.ignore_patterns("__pycache__"))
    requirements = (comfyui / "requirements.txt").read_text().splitlines()
    requirements = [line for line in requirements if line.strip() and not line.startswith("#")]
    python = make_environment(scratch / "env", [*requirements, "comfyui-manager", "websocket-client", "pip"])
    before = installed(python)
    assert "torch" in before and "diffusers" not in before

    environment = {**os.environ, "COMFYUI_PATH": str(comfyui), "HOME": str(tmp_path), "no_proxy": "127.0.0.1"}
    environment["PATH"] = f"{python.parent}{os.pathsep}{environment['PATH']}"
    result = subprocess.run(
        [python, "-m", "cm_cli", "install", served_repository, "--exit-on-fail"],
        capture_output=True,
        text=True,
        env=environment,
        cwd=comfyui,
        timeout=900,
    )
    assert result.returncode == 0 and "[INSTALLED]" in result.stdout, result.stdout[-3000:] + result.stderr[-3000:]
    extension = comfyui / "custom_nodes" / "pixart-delta"
    assert (extension / "__init__.py").exists()

    after = installed(python)
    assert "diffusers" in after
    changed = {name: (version, after.get(name)) for name, version in before.items() if after.get(name) != version}
    assert not changed, f"the installation changed packages that were there: {changed}"

    with ComfyServer(comfyui, comfyui, extension_root=None, python=python, env={"HOME": str(tmp_path)}) as server:
        server.import_seconds()
        graph = to_api(
            load_workflow(extension / "workflows" / "PixArt 01 Text to Image in 4 Steps.json"), server.object_info()
        )
        result = server.prompt(graph)
    assert not result.errors and result.images[0].startswith(b"\x89PNG")


def test_comfy_node_validate_passes(tmp_path):
    """comfy-cli's check before publishing, on the files that git knows."""
    files = subprocess.run(
        ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=True,
    ).stdout.split("\0")
    for name in filter(lambda name: name.endswith((".py", ".toml", ".txt")) and (ROOT / name).exists(), files):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(ROOT / name, tmp_path / name)
    comfy = Path(sys.executable).parent / "comfy"
    result = subprocess.run(
        [comfy, "--skip-prompt", "--no-enable-telemetry", "node", "validate"],
        cwd=tmp_path,
        env={**os.environ, "HOME": str(tmp_path / "home")},
        capture_output=True,
        text=True,
        timeout=120,
    )
    output = result.stdout + result.stderr
    assert result.returncode == 0 and "All validation checks passed" in output, output
    assert "Warning" not in output and "warning" not in output, output
