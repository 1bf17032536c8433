"""The training panel in the real frontend, in a real browser, with real trainings of the bundled model."""

from __future__ import annotations

import json
import os
import shutil
import time
import urllib.error
from pathlib import Path

import pytest

from tools.comfy_server import ComfyServer, comfyui_trees
from tools.workflow_api import find_node, load_workflow, to_api

ROOT = Path(__file__).resolve().parents[2]
READY = "() => window.app?.extensionManager && window.app.graph && document.querySelector('.pi-chart-line')"
HOSTILE = "<img src=x onerror='window.hacked = true'>\x1b[31m<script>window.hacked = true</script>\u202e"
PICTURES = os.environ.get("PIXART_DELTA_SCREENSHOTS")
"""Folder to keep screenshots in."""


pytestmark = pytest.mark.host


@pytest.fixture(scope="module")
def server(tmp_path_factory):
    with ComfyServer(next(iter(comfyui_trees().values())), tmp_path_factory.mktemp("panel")) as running:
        running.post("/settings", {"Comfy.TutorialCompleted": True, "Comfy.Release.Status": "what's new seen"})
        yield running
        end_trainings(running)


def end_trainings(server) -> None:
    for job in jobs(server):
        if "kill" in job["actions"]:
            act(server, job["id"], "kill")
    until(lambda: not any("kill" in job["actions"] for job in jobs(server)))


@pytest.fixture(scope="module")
def page(server, open_page):
    page = open_page(server, 1500, 1000, timeout=120_000)
    open_panel(page)
    yield page
    assert page.errors == []
    page.close()


def open_panel(page) -> None:
    page.wait_for_function(READY)
    if not page.locator(".pxd-panel").is_visible():
        page.locator("button:has(.pi-chart-line)").first.click()
    page.locator(".pxd-panel").wait_for()


def jobs(server) -> list[dict]:
    return server.get("/pixart_delta/jobs")["jobs"]


def job(server, job_id: str) -> dict:
    return server.get(f"/pixart_delta/jobs/{job_id}")


def act(server, job_id: str, action: str) -> None:
    try:
        server.post(f"/pixart_delta/jobs/{job_id}/{action}", {})
    except urllib.error.HTTPError as error:
        assert error.code == 409, error.read()  # it ended by itself


def until(condition, seconds: float = 240):
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        if found := condition():
            return found
        time.sleep(0.2)
    raise AssertionError("it did not come about")


def keep(page, name: str) -> None:
    if PICTURES:
        page.screenshot(path=Path(PICTURES) / f"{name}.png")


def run_template(page, server, steps: int) -> str:
    """Open train_lcd as a person does, with so many steps, and press Run. Returns the training's id."""
    workflow = load_workflow(ROOT / "workflows" / "train_lcd.json")
    page.evaluate(
        """async ([workflow, steps]) => {
            await window.app.loadGraphData(workflow);
            const node = window.app.graph._nodes.find(node => node.type === "PixArtDeltaTrainLCD");
            node.widgets.find(widget => widget.name === "steps").value = steps;
            node.widgets.find(widget => widget.name === "sample_every").value = 4;
            await window.app.queuePrompt(0);
        }""",
        [workflow, steps],
    )
    return until(lambda: next((each["id"] for each in jobs(server) if each["command"] == "lcd"), None))


def text_to_image(server, **trained):
    name = "use_trained_model" if trained else "text_to_image_4_steps"
    graph = to_api(load_workflow(ROOT / "workflows" / f"{name}.json"), server.object_info())
    if trained:
        graph[find_node(graph, "PixArtDeltaTrainedResult")]["inputs"] |= trained
    result = server.prompt(graph)
    assert result.errors == [] and result.images[0].startswith(b"\x89PNG")
    return result


def state_of(page, job_id: str, state: str) -> None:
    page.locator(f'li[data-job="{job_id}"] .pxd-state[data-state="{state}"]').wait_for()


def test_a_training_is_run_from_the_browser_and_outlives_it_and_the_server(server, open_page, request):
    first = open_page(server, 1500, 1000, timeout=120_000)
    open_panel(first)
    lcd = run_template(first, server, steps=100_000)
    state_of(first, lcd, "running")
    assert first.errors == []
    first.close()

    # The browser is closed, and the training goes on; opened again, it shows what has become of it.
    closed_at = job(server, lcd).get("step", 0)
    until(lambda: job(server, lcd).get("step", 0) > closed_at + 3)
    page = request.getfixturevalue("page")
    open_job(page, lcd)
    state_of(page, lcd, "running")

    # A live curve and a first sample, while a picture is made.
    page.wait_for_function("() => Number(document.querySelector('.pxd-chart').dataset.points) >= 5")
    text_to_image(server)
    page.locator(".pxd-samples img").first.wait_for()
    before = job(server, lcd)["step"]
    page.wait_for_function(f"() => Number(document.querySelector('.pxd-chart').dataset.points) > {before}")
    assert page.locator(".pxd-chart canvas").count() == 1
    keep(page, "panel_running")

    # Stop, resume, sample now.
    page.locator('[data-action="stop"]').click()
    state_of(page, lcd, "done")
    stopped = job(server, lcd)
    assert stopped["reason"].startswith("stopped at step") and stopped["export"] == "pixart.safetensors"
    page.locator('[data-action="resume"]').click()
    state_of(page, lcd, "running")
    shown = page.locator(".pxd-samples button").count()
    page.locator('[data-action="sample"]').click()
    page.wait_for_function(f"() => document.querySelectorAll('.pxd-samples button').length > {shown}")

    # The page is loaded again; then the server dies and comes back, and the page finds it by itself.
    page.reload()
    open_panel(page)
    state_of(page, lcd, "running")
    pid = json.loads((server.base / "output/pixart_delta/training" / lcd / "job.json").read_text())["pid"]
    server.process.kill()
    server.process.wait()
    page.locator(".pxd-offline").wait_for()
    server.start()
    page.locator(".pxd-offline").wait_for(state="hidden")
    state_of(page, lcd, "running")
    os.kill(pid, 0)
    assert json.loads((server.base / "output/pixart_delta/training" / lcd / "job.json").read_text())["pid"] == pid
    step = job(server, lcd)["step"]
    until(lambda: job(server, lcd)["step"] > step)

    # Its result is a picture, and the person is told of the end.
    page.locator('[data-action="stop"]').click()
    state_of(page, lcd, "done")
    page.locator(".p-toast-message", has_text="Training stopped").wait_for()
    text_to_image(server, job=lcd)
    keep(page, "panel_done")


@pytest.fixture(scope="module")
def pretended(server):
    """Jobs that have ended, written as files: one full of hostile text, one with a long curve."""
    root = server.base / "output" / "pixart_delta" / "training"
    for i in range(3):
        folder = root / f"made-{i}"
        pretend(folder, 100.0 + i, state="failed" if i == 0 else "done", name=f"made {i}")
        if i == 0:
            change(folder, name=HOSTILE, reason=HOSTILE)
            (folder / "process.log").write_text(f"first\n{HOSTILE}\nlast\n")
            shutil.copy(ROOT / "workflows" / "base_model_14_steps.jpg", folder / "samples" / "step_00000001.png")
            sample = {"step": 1, "prompts": [HOSTILE]}
            (folder / "samples" / "step_00000001.json").write_text(json.dumps(sample))
        write_metrics(folder, 899)
    return root


def pretend(folder: Path, order: float, **values) -> None:
    """A job as its file keeps it."""
    (folder / "samples").mkdir(parents=True)
    settings = {"run": str(folder), "data": "d", "base": "b"}
    change(folder, **{"id": folder.name, "command": "lcd", "settings": settings, "device": "cpu", "name": folder.name,
                      "order": order, "result": {"step": 900, "steps": 1000, "loss": 0.01}, **values})  # fmt: skip


def change(folder: Path, **values) -> None:
    file = folder / "job.json"
    old = json.loads(file.read_text()) if file.exists() else {}
    file.with_suffix(".new").write_text(json.dumps(old | values))
    file.with_suffix(".new").replace(file)


def write_metrics(folder: Path, steps: int) -> None:
    lines = (f'{{"step": {n}, "loss": {1 / n}, "learning_rate": 0.001}}\n' for n in range(1, steps + 1))
    (folder / "metrics.jsonl").write_text("".join(lines))


def row(page, job_id: str):
    return page.locator(f'li[data-job="{job_id}"] .pxd-row')


def open_job(page, job_id: str):
    """The opened row's detail, whatever was open before."""
    if row(page, job_id).get_attribute("aria-expanded") != "true":
        row(page, job_id).click()
    return page.locator(f'li[data-job="{job_id}"] .pxd-detail')


def test_hostile_text_is_shown_as_text(server, page, pretended):
    open_job(page, "made-0")
    page.locator(".pxd-log summary").click()
    page.wait_for_function("() => document.querySelector('.pxd-log pre').textContent.includes('last')")
    log = page.locator(".pxd-log pre").inner_text()
    assert "<script>" in log and "\x1b" not in log and "\u202e" not in log
    page.locator(".pxd-samples button").click()
    assert "onerror" in page.locator(".pxd-dialog[open] li").inner_text()
    page.keyboard.press("Escape")
    assert "<script>" in page.locator('li[data-job="made-0"] .pxd-name').inner_text()
    assert page.evaluate("() => window.hacked") is None
    assert page.locator(".pxd-panel script, .pxd-dialog script").count() == 0


def test_works_with_the_keyboard_alone(page, pretended):
    page.locator('li[data-job="made-2"] .pxd-row').focus()
    page.keyboard.press("ArrowDown")
    page.keyboard.press("Enter")
    assert page.locator('li[data-job="made-1"] .pxd-row').get_attribute("aria-expanded") == "true"
    page.keyboard.press("Tab")
    assert page.evaluate("() => document.activeElement.dataset.action") == "resume"
    assert page.evaluate("() => getComputedStyle(document.activeElement).outlineStyle") == "solid"


@pytest.mark.parametrize("palette", ["light", "dark"])
def test_fits_the_theme_and_a_narrow_window(server, page, pretended, palette):
    page.evaluate("palette => window.app.extensionManager.setting.set('Comfy.ColorPalette', palette)", palette)
    page.wait_for_timeout(500)
    page.set_viewport_size({"width": 700, "height": 900})
    light = page.evaluate(
        """() => {
            const number = colour => colour.match(/[\\d.]+/g).slice(0, 3).reduce((a, b) => a + Number(b), 0);
            const panel = getComputedStyle(document.querySelector(".pxd-panel"));
            return number(panel.color) < number(panel.backgroundColor);
        }"""
    )
    assert light == (palette == "light"), "text and background are too alike"
    wide = page.locator(".pxd-panel").evaluate("panel => panel.scrollWidth - panel.clientWidth")
    assert wide <= 1, "it scrolls sideways"
    keep(page, f"panel_{palette}")
    page.set_viewport_size({"width": 1500, "height": 1000})


def test_deleting_asks_first(server, page, pretended):
    open_job(page, "made-1")
    page.locator('[data-action="delete"]').click()
    page.get_by_role("button", name="Cancel").click()
    assert (pretended / "made-1").exists()
    page.locator('[data-action="delete"]').click()
    page.get_by_role("button", name="Delete").last.click()
    page.locator('li[data-job="made-1"]').wait_for(state="detached")
    assert not (pretended / "made-1").exists()


def test_two_renderers_one_panel(page, pretended):
    """With Nodes 2.0 nothing changes: the panel is no part of a node."""
    page.evaluate("() => window.app.extensionManager.setting.set('Comfy.VueNodes.Enabled', true)")
    open_job(page, "made-2")
    page.wait_for_function("() => Number(document.querySelector('.pxd-chart').dataset.points) >= 899")
    keep(page, "panel_nodes_2")
    page.evaluate("() => window.app.extensionManager.setting.set('Comfy.VueNodes.Enabled', false)")
