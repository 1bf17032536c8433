"""What tests of the nodes share.

One interpreter for each script of checks, because ComfyUI's top-level modules (`nodes`, `server`) must be the first of
their names; one Chromium, because Playwright's sync API can be started once in a thread.
"""

from __future__ import annotations

import ast
import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from pixart_delta.training.jobs import process

from tests.nodes.panel import (
    HOSTILE,
    LACKING,
    PATIENCE,
    change,
    end_trainings,
    open_panel,
    pretend,
    record,
    until,
    write_metrics,
)
from tests.nodes.routes import write_job
from tools.comfy_server import ComfyServer, comfyui_trees

ROOT = Path(__file__).resolve().parents[2]
CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)


def checks_in(script: str) -> list[str]:
    """The functions check_… of a script in this folder, and of the modules checks_… that it imports."""
    parts = ast.parse(Path(__file__).with_name(script).read_text(encoding="utf-8")).body
    names = [each.name for each in parts if isinstance(each, ast.FunctionDef) and each.name.startswith("check_")]
    imported = [alias.name for each in parts if isinstance(each, ast.Import) for alias in each.names]
    return names + [name for each in imported if each.startswith("checks_") for name in checks_in(f"{each}.py")]


def pytest_generate_tests(metafunc) -> None:
    """A test of an `inside_check` runs once for each check of the script that its module names as INSIDE."""
    if "inside_check" in metafunc.fixturenames:
        metafunc.parametrize("inside_check", checks_in(metafunc.module.INSIDE))


@pytest.fixture(scope="session")
def run_inside(comfyui_path, tmp_path_factory) -> Callable[[str, Callable[[Path], Path]], dict[str, str]]:
    """run_inside(script, make): check -> "" or what went wrong; one interpreter runs all of a script, once.

    make: what the script is to be given, made in a new folder.
    """
    found: dict[str, dict[str, str]] = {}

    def run(script: str, make: Callable[[Path], Path]) -> dict[str, str]:
        if script not in found:
            file, folder = Path(__file__).with_name(script), make(tmp_path_factory.mktemp(Path(script).stem))
            found[script] = dict.fromkeys(checks_in(script), f"all of {script} failed or took too long: see its first")
            result = subprocess.run(
                [sys.executable, str(file), str(comfyui_path), str(folder), *checks_in(script)],
                timeout=1700,
                capture_output=True,
                text=True,
                cwd=comfyui_path,
                env={name: value for name, value in os.environ.items() if name != "PYTHONPATH"},
            )
            assert result.returncode == 0, result.stderr[-3000:]
            found[script] = json.loads(result.stdout.splitlines()[-1])
        return found[script]

    return run


@pytest.fixture(scope="session")
def schemas(comfy_server) -> dict:
    """What the server says of its nodes, asked once: it is two megabytes. Not for what files there are."""
    return comfy_server.object_info()


@pytest.fixture(scope="session")
def browser():
    """A headless Chromium (Debian's, or a Chrome); skips where there is none."""
    playwright = pytest.importorskip("playwright.sync_api", reason="needs Playwright (pip install playwright)")
    if CHROMIUM is None:
        pytest.skip("needs Chromium")
    with playwright.sync_playwright() as driver:
        browser = driver.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        yield browser
        browser.close()


@pytest.fixture(scope="module")
def open_page(browser):
    """open_page(server, width, height) -> a page of that server's frontend, cut off from everything else.

    What goes wrong in the page's scripts is in `page.errors`. All are closed at the file's end, also those of a test
    that failed: a page takes half a core.
    """
    pages = []

    def open_(server, width: int, height: int):
        page = browser.new_page(viewport={"width": width, "height": height})
        pages.append(page)
        page.set_default_timeout(1000 * PATIENCE)
        page.route(lambda url: not url.startswith(server.address), lambda route: route.abort())
        page.errors = []
        page.on("pageerror", lambda error: page.errors.append(str(error)))
        page.on("dialog", lambda dialog: dialog.accept())  # "leave the page?"
        page.goto(server.address)
        return page

    yield open_
    for page in pages:
        page.close()


@pytest.fixture(scope="session")
def panel_server(tmp_path_factory):
    """A server of the newest ComfyUI for the tests of the panel, on a machine that lacks one of training's packages."""
    site = tmp_path_factory.mktemp("site")
    (site / "sitecustomize.py").write_text(f"import sys\n\nsys.modules[{LACKING!r}] = None  # as if not installed\n")
    folder, variables = tmp_path_factory.mktemp("panel"), {"PYTHONPATH": str(site)}
    with ComfyServer(next(iter(comfyui_trees().values())), folder, env=variables) as running:
        running.post("/settings", {"Comfy.TutorialCompleted": True, "Comfy.Release.Status": "what's new seen"})
        yield running
        end_trainings(running)


@pytest.fixture(scope="module")
def panel(panel_server, open_page):
    """A page with the panel open; nothing has gone wrong in it at the end."""
    page = open_page(panel_server, 1500, 1000)
    open_panel(page)
    yield page
    assert page.errors == []


@pytest.fixture(scope="session")
def pretended(panel_server):
    """Jobs that have ended, written as files: one full of hostile text, one with a long curve."""
    root = panel_server.base / "output" / "pixart_delta" / "training"
    for i in range(3):
        folder = root / f"made-{i}"
        pretend(folder, 100.0 + i, state="failed" if i == 0 else "done", name=f"made {i}")
        if i == 0:
            change(folder, name=HOSTILE, reason=HOSTILE)
            (record(folder) / "process.log").write_text(f"first\n{HOSTILE}\nlast\n")
            shutil.copy(
                ROOT / "workflows" / "PixArt 05 Base Model in 14 Steps.jpg", folder / "samples" / "step_00000001.png"
            )
            sample = {"step": 1, "prompts": [HOSTILE]}
            (folder / "samples" / "step_00000001.json").write_text(json.dumps(sample))
        write_metrics(folder, 899)
    return root


@pytest.fixture(scope="session")
def server(tmp_path_factory):
    """A server for the tests of the routes, with a folder that its operator allows besides ComfyUI's."""
    allowed = tmp_path_factory.mktemp("allowed")
    (allowed / "data").mkdir()
    variables = {
        "PIXART_DELTA_ROOTS": str(allowed),
        "PIXART_DELTA_HOSTS": "other.example, proxy.example",
        "CUDA_VISIBLE_DEVICES": "",
    }
    with ComfyServer(next(iter(comfyui_trees().values())), tmp_path_factory.mktemp("routes"), env=variables) as running:
        running.allowed = allowed
        (running.base / "input" / "data").mkdir()
        yield running


@pytest.fixture
def root(server):
    """The empty folder of jobs; no process is ever started here: a running job of another name holds the device."""
    folder = server.base / "output" / "pixart_delta" / "training"
    records = record(folder / "x").parent
    holder = subprocess.Popen(["sleep", "600"], start_new_session=True)
    write_job(folder, "holder", state="running", pid=holder.pid, identity=process.identity(holder.pid))
    yield folder
    holder.kill()
    holder.wait()
    for job in (*folder.iterdir(), *records.iterdir()):
        if job.is_symlink():
            job.unlink()
        elif job.is_dir():  # the watcher may be writing that the holder has ended
            until(lambda job=job: shutil.rmtree(job, ignore_errors=True) or not job.exists())
