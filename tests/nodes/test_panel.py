"""The training panel in the real frontend, in a real browser, with real trainings of the bundled model."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest

from tests.nodes.panel import end_trainings, job, jobs, keep, open_job, open_panel, record, run_folder, state_of, until
from tools.workflow_api import find_node, load_workflow, to_api

ROOT = Path(__file__).resolve().parents[2]
pytestmark = pytest.mark.host


def run_template(page, server, steps: int) -> str:
    """Open the template of LCD as a person does, with so many small steps, and press Run. Returns the training's id."""
    workflow = load_workflow(ROOT / "workflows" / "PixArt 20 Train LCD.json")
    known = {each["id"] for each in jobs(server)}
    page.evaluate(
        """async ([workflow, steps]) => {
            await window.app.loadGraphData(workflow);
            const node = window.app.graph._nodes.find(node => node.type === "PixArtDeltaTrainLCD");
            const values = { steps, batch_size: 2, sample_every: 4, sample_prompts: "a lake at dawn" };
            const find = name => node.widgets.find(widget => widget.name === name);
            for (const [name, value] of Object.entries(values)) find(name).value = value;
            await window.app.queuePrompt(0);
        }""",
        [workflow, steps],
    )
    return until(
        lambda: next(
            (each["id"] for each in jobs(server) if each["command"] == "lcd" and each["id"] not in known), None
        )
    )


def text_to_image(server, **trained):
    name = "PixArt 30 Use What You Trained" if trained else "PixArt 01 Text to Image in 4 Steps"
    graph = to_api(load_workflow(ROOT / "workflows" / f"{name}.json"), server.object_info())
    if trained:
        graph[find_node(graph, "PixArtDeltaTrainedResult")]["inputs"] |= trained
    result = server.prompt(graph)
    assert result.errors == [] and result.images[0].startswith(b"\x89PNG")
    return result


def test_a_training_is_run_from_the_browser_and_outlives_it_and_the_server(panel_server, open_page, request):
    request.addfinalizer(lambda: end_trainings(panel_server))  # where it failed it would run beside all other tests
    first = open_page(panel_server, 1500, 1000)
    open_panel(first)
    lcd = run_template(first, panel_server, steps=100_000)
    state_of(first, lcd, "running")
    assert first.errors == []
    first.close()

    # The browser is closed, and the training goes on; opened again, it shows what has become of it.
    closed_at = job(panel_server, lcd).get("step", 0)
    until(lambda: job(panel_server, lcd).get("step", 0) > closed_at + 3)
    panel = request.getfixturevalue("panel")
    open_job(panel, lcd)
    state_of(panel, lcd, "running")

    # A live curve and a first sample, while a picture is made.
    panel.wait_for_function("() => Number(document.querySelector('.pxd-chart').dataset.points) >= 5")
    text_to_image(panel_server)
    panel.locator(".pxd-samples img").first.wait_for()
    before = job(panel_server, lcd)["step"]
    panel.wait_for_function(f"() => Number(document.querySelector('.pxd-chart').dataset.points) > {before}")
    assert panel.locator(".pxd-chart canvas").count() == 1
    keep(panel, "panel_running")

    # Stop, resume, sample now.
    panel.locator('[data-action="stop"]').click()
    state_of(panel, lcd, "stopped")
    stopped = job(panel_server, lcd)
    assert stopped["reason"].startswith("at step") and stopped["export"] == "pixart.safetensors"
    panel.locator('[data-action="resume"]').click()
    state_of(panel, lcd, "running")
    shown = panel.locator(".pxd-samples button").count()
    panel.locator('[data-action="sample"]').click()
    panel.wait_for_function(f"() => document.querySelectorAll('.pxd-samples button').length > {shown}")

    # The page is loaded again; then the server dies and comes back, and the page finds it by itself.
    panel.reload()
    open_panel(panel)
    state_of(panel, lcd, "running")
    kept = record(run_folder(panel_server, lcd)) / "job.json"
    pid = json.loads(kept.read_text())["pid"]
    panel_server.process.kill()
    panel_server.process.wait()
    panel.locator(".pxd-offline").wait_for()
    panel_server.start()
    panel.locator(".pxd-offline").wait_for(state="hidden")
    state_of(panel, lcd, "running")
    os.kill(pid, 0)
    assert json.loads(kept.read_text())["pid"] == pid
    step = job(panel_server, lcd)["step"]
    until(lambda: job(panel_server, lcd)["step"] > step)

    # Its result is a picture, and the person is told of the end.
    panel.locator('[data-action="stop"]').click()
    state_of(panel, lcd, "stopped")
    panel.locator(".p-toast-message", has_text="Training stopped").wait_for()
    text_to_image(panel_server, job=lcd)
    keep(panel, "panel_done")


def test_hostile_text_is_shown_as_text(panel_server, panel, pretended):
    open_job(panel, "made-0")
    panel.locator(".pxd-log summary").click()
    panel.wait_for_function("() => document.querySelector('.pxd-log pre').textContent.includes('last')")
    log = panel.locator(".pxd-log pre").inner_text()
    assert "<script>" in log
    assert "\x1b" not in log
    assert "\u202e" not in log
    panel.locator(".pxd-samples button").click()
    assert "onerror" in panel.locator(".pxd-dialog[open] li").inner_text()
    panel.keyboard.press("Escape")
    assert "<script>" in panel.locator('li[data-job="made-0"] .pxd-name').inner_text()
    assert panel.evaluate("() => window.hacked") is None
    assert panel.locator(".pxd-panel script, .pxd-dialog script").count() == 0


def test_works_with_the_keyboard_alone(panel, pretended):
    panel.locator('li[data-job="made-2"] .pxd-row').focus()
    panel.keyboard.press("ArrowDown")
    panel.keyboard.press("Enter")
    assert panel.locator('li[data-job="made-1"] .pxd-row').get_attribute("aria-expanded") == "true"
    panel.keyboard.press("Tab")
    assert panel.evaluate("() => document.activeElement.dataset.action") == "resume"
    assert panel.evaluate("() => getComputedStyle(document.activeElement).outlineStyle") == "solid"


@pytest.mark.parametrize("palette", ["light", "dark"])
def test_fits_the_theme_and_a_narrow_window(panel_server, panel, pretended, palette):
    panel.evaluate("palette => window.app.extensionManager.setting.set('Comfy.ColorPalette', palette)", palette)
    panel.wait_for_timeout(500)
    panel.set_viewport_size({"width": 700, "height": 900})
    light = panel.evaluate(
        """() => {
            const number = colour => colour.match(/[\\d.]+/g).slice(0, 3).reduce((a, b) => a + Number(b), 0);
            const panel = getComputedStyle(document.querySelector(".pxd-panel"));
            return number(panel.color) < number(panel.backgroundColor);
        }"""
    )
    assert light == (palette == "light"), "text and background are too alike"
    wide = panel.locator(".pxd-panel").evaluate("panel => panel.scrollWidth - panel.clientWidth")
    assert wide <= 1, "it scrolls sideways"
    keep(panel, f"panel_{palette}")
    panel.set_viewport_size({"width": 1500, "height": 1000})


def test_deleting_asks_first(panel_server, panel, pretended):
    open_job(panel, "made-1")
    panel.locator('[data-action="delete"]').click()
    panel.get_by_role("button", name="Cancel").click()
    assert (pretended / "made-1").exists()
    panel.locator('[data-action="delete"]').click()
    panel.get_by_role("button", name="Delete").last.click()
    panel.locator('li[data-job="made-1"]').wait_for(state="detached")
    assert not (pretended / "made-1").exists()


def test_two_renderers_one_panel(panel, pretended):
    """With Nodes 2.0 nothing changes: the panel is no part of a node."""
    panel.evaluate("() => window.app.extensionManager.setting.set('Comfy.VueNodes.Enabled', true)")
    open_job(panel, "made-2")
    panel.wait_for_function("() => Number(document.querySelector('.pxd-chart').dataset.points) >= 899")
    keep(panel, "panel_nodes_2")
    panel.evaluate("() => window.app.extensionManager.setting.set('Comfy.VueNodes.Enabled', false)")
