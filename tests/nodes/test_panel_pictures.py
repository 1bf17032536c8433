"""The panel's pictures, its form, and what a person does with a job: in the real frontend, with jobs that are files."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest
from PIL import Image

from tests.nodes.panel import change, job, keep, open_job, record, row, state_of, until, write_metrics
from tests.nodes.test_panel_jobs import made  # noqa: F401

pytestmark = pytest.mark.host
ROOT = Path(__file__).resolve().parents[2]
COLOURS = ("red", "green", "blue", "yellow", "white")
PROMPTS = [f"a field of {colour}" for colour in COLOURS]


def draw(folder, step: int, brightness: float = 1.0) -> None:
    """A grid as training/sampling.py lays it out: four in a row, 4 px between, the fifth below."""
    sheet = Image.new("RGB", (4 * 16 + 12, 2 * 16 + 4), "white")
    for index, colour in enumerate(COLOURS):
        tile = Image.new("RGB", (16, 16), colour).point(lambda value: int(value * brightness))
        sheet.paste(tile, (index % 4 * 20, index // 4 * 20))
    sheet.save(folder / "samples" / f"step_{step:08d}.png")
    (folder / "samples" / f"step_{step:08d}.json").write_text(json.dumps({"step": step, "prompts": PROMPTS}))


@pytest.fixture
def fields(made, request):  # noqa: F811
    """A job of its own for each test: one that vanishes and comes again between two looks is the same for the panel."""
    folder = made(f"fields-{len(request.node.name)}", name="Fields")
    for step in (10, 20, 30):
        draw(folder, step, step / 30)
    return folder


def test_the_newest_grid_is_large_and_a_slider_goes_back(panel, fields):
    detail = open_job(panel, fields.name)
    large = detail.locator(".pxd-newest img")
    panel.wait_for_function("() => document.querySelector('.pxd-newest img').src.includes('step_00000030')")
    boxes = (detail.locator(each).first for each in (".pxd-newest", ".pxd-samples img"))
    wide, small = (box.evaluate("box => box.clientWidth") for box in boxes)
    assert wide > 2 * small
    detail.locator(".pxd-newest input").fill("0")
    assert "step_00000010" in large.get_attribute("src")
    assert detail.locator(".pxd-newest figcaption").inner_text().endswith("10")
    # New ones come, and what is looked at stays.
    draw(fields, 40)
    change(fields, attempt=7)
    until(lambda: detail.locator(".pxd-samples button").count() == 4)
    assert "step_00000010" in large.get_attribute("src")


def test_the_viewer_fills_the_window_and_compares(panel, fields):
    detail = open_job(panel, fields.name)
    detail.locator(".pxd-samples button").first.click()
    viewer = panel.locator(".pxd-viewer[open]")
    box, window = viewer.bounding_box(), panel.viewport_size
    assert box["width"] > 0.9 * window["width"] and box["height"] > 0.9 * window["height"]
    viewer.locator('[data-mode="one"]').click()
    panel.keyboard.press("ArrowLeft")
    assert "step_00000020" in viewer.locator("img").first.get_attribute("src")
    assert viewer.locator("li").all_inner_texts() == PROMPTS
    viewer.locator('[data-mode="two"]').click()
    sides = [image.get_attribute("src") for image in viewer.locator(".pxd-sides img").all()]
    assert "step_00000010" in sides[0] and "step_00000020" in sides[1]
    assert viewer.locator(".pxd-sides figure").nth(1).is_visible()
    viewer.locator('[data-mode="rows"]').click()
    viewer.locator("canvas").nth(14).wait_for()
    assert viewer.locator(".pxd-rows p").all_inner_texts() == PROMPTS
    middle = "canvas => [...canvas.getContext('2d').getImageData(8, 8, 1, 1).data].slice(0, 3)"
    # Rows are prompts, columns steps: the fifth prompt at the last step is white, the first at the first a dark red.
    assert viewer.locator("canvas").nth(14).evaluate(middle) == [255, 255, 255]
    assert viewer.locator("canvas").nth(0).evaluate(middle) == [85, 0, 0]
    keep(panel, "viewer_rows")
    viewer.locator('[data-mode="one"]').click()
    panel.keyboard.press("Escape")
    assert panel.locator(".pxd-viewer[open]").count() == 0


def test_states_say_how_a_job_ends(panel, made):  # noqa: F811
    made("by-hand", state="done", reason="stopped at step 900")
    made("broken", state="failed", reason="out of memory: use a smaller batch_size")
    state_of(panel, "by-hand", "done")
    assert row(panel, "by-hand").locator(".pxd-state").inner_text() == "stopped"
    panel.locator('li[data-job="broken"]', has_text="smaller batch_size").wait_for()  # if it is the open one, below


def test_what_waits_shows_no_empty_chart(panel, made):  # noqa: F811
    made("before")
    folder = made("waits", state="queued", after="before", result={})
    state_of(panel, "waits", "queued")
    detail = open_job(panel, "waits")
    detail.wait_for()
    assert not detail.locator(".pxd-chart").is_visible() and not detail.get_by_text("No samples").is_visible()
    write_metrics(folder, 20)
    change(folder, state="paused")
    state_of(panel, "waits", "paused")
    detail.locator(".pxd-chart canvas").wait_for()
    assert detail.locator(".u-label").all_inner_texts()[1:] == [
        "loss",
        "smoothed",
        "learning rate",
        "loss on what is held out",
    ]


def test_the_loss_on_what_is_held_out_is_seen_by_bands(panel, made):  # noqa: F811
    """Each quarter of the timesteps is a curve of its own, from the first line that has them on."""
    folder = made("bands")
    write_metrics(folder, 9)
    state_of(panel, "bands", "paused")
    labels = open_job(panel, "bands").locator(".u-label")
    until(lambda: labels.count() == 5)
    bands = {"validation": 0.4, **{f"validation_{band}": band / 10 for band in (1, 2, 3, 4)}}
    with (folder / "metrics.jsonl").open("a") as file:
        file.write(json.dumps({"step": 10, "loss": 0.1, "learning_rate": 0.001, **bands}) + "\n")
    change(folder, attempt=2)
    until(lambda: labels.count() == 9)
    ranges = ("0 to 249", "250 to 499", "500 to 749", "750 to 999")
    assert labels.all_inner_texts()[5:] == [f"held out, t {each}" for each in ranges]
    keep(panel, "bands")


def test_datasets_stand_apart(panel, made):  # noqa: F811
    made("pictures", command="prepare", state="done")
    made("training")
    state_of(panel, "training", "paused")
    lists = panel.locator(".pxd-panel ul")
    assert lists.nth(0).locator('li[data-job="training"]').count() == 1
    assert lists.nth(1).locator('li[data-job="pictures"]').count() == 1


def test_a_job_is_renamed_and_used_from_the_panel(panel_server, panel, made):  # noqa: F811
    folder = made(
        "lake", name="Lake", state="done", result={"step": 9, "steps": 9, "export": "exports/pixart.safetensors"}
    )
    state_of(panel, "lake", "done")
    detail = open_job(panel, "lake")
    detail.locator('[data-tool="rename"]').click()
    panel.get_by_role("dialog").locator("input").fill("Sea")
    panel.keyboard.press("Enter")
    panel.locator('li[data-job="lake"]', has_text="Sea").wait_for()
    assert job(panel_server, "lake")["name"] == "Sea"
    panel.evaluate("() => window.app.graph.clear()")
    detail.locator('[data-tool="use"]').click()
    node = panel.evaluate(
        "() => { const node = window.app.graph._nodes[0]; return [node.type, node.widgets[0].value]; }"
    )
    assert node == ["PixArtDeltaTrainedResult", "lake"]
    detail.locator(".pxd-settings summary").click()
    detail.locator(".pxd-settings dt", has_text="run").wait_for()
    assert str(folder) in detail.locator(".pxd-settings dd").all_inner_texts()


def test_a_training_starts_without_a_graph(panel_server, panel, made):  # noqa: F811
    """A form over the trainer's settings: what is wrong is said in it, what is right is queued and opens."""
    made("data-made", command="prepare", name="pictures made", state="paused")
    state_of(panel, "data-made", "paused")
    panel.locator('[data-form="new"]').click()
    form = panel.locator(".pxd-form[open]")
    assert form.locator("select").first.input_value() == "lcd", "what most come for stands first"
    form.locator("select").first.select_option("lcm-lora")
    assert form.locator('[data-setting="lora_rank"]').count() == 1
    rate = form.locator("label", has=panel.locator('[data-setting="learning_rate"]'))
    assert rate.locator("span").first.inner_text() == "Learning rate\nlearning_rate"
    form.locator('[data-setting="steps"]').fill("0")
    form.locator('[data-form="form_start"]').click()
    form.locator('.pxd-said[data-bad="true"]').wait_for()
    form.locator('[data-setting="steps"]').fill("3")
    form.locator('[data-setting="data"] select').select_option(label="pictures made")
    form.locator("input[maxlength]").fill("From a form")
    keep(panel, "form")
    form.locator('[data-form="form_start"]').click()
    opened = panel.locator("li[data-job^=from-a-form] .pxd-detail")
    opened.wait_for()
    started = re.search("from-a-form-[0-9a-f]+", opened.evaluate("each => each.closest('li').dataset.job"))[0]
    now = job(panel_server, started)
    assert (now["command"], now["settings"]["steps"], now["state"]) == ("lcm-lora", 3, "queued")
    recipe = json.loads((ROOT / "training/recipes/nano_lcm_lora.json").read_text())
    assert now["settings"]["learning_rate"] == recipe["learning_rate"], "auto, of the bundled base"

    # Its settings, with a change, once more.
    opened.locator('[data-tool="duplicate"]').click()
    assert form.locator('[data-setting="steps"]').input_value() == "3"
    assert form.locator("input[maxlength]").input_value() == "From a form 2"
    assert form.locator('[data-form="recipe"]').input_value() == "", "all of its settings are there already"
    panel.keyboard.press("Escape")

    # And as they are, as a job of its own, once it no longer waits.
    panel_server.post(f"/pixart_delta/jobs/{started}/pause", {})
    opened.locator('[data-tool="again"]').click()
    again = panel.locator("li[data-job^=from-a-form-2-]").get_attribute("data-job")
    assert job(panel_server, again)["settings"] == now["settings"] | {
        "run": now["settings"]["run"].replace(started, again)
    }
    panel_server.post(f"/pixart_delta/jobs/{again}/pause", {})
    for each in (again, started):
        panel_server.post(f"/pixart_delta/jobs/{each}/delete", {})


@pytest.fixture
def running(made):  # noqa: F811
    """running(id) -> folder of a job whose process is another one that sleeps; `shown(folder)` before it runs."""
    import subprocess

    from pixart_delta.training.jobs import process

    holders = []

    def make(job_id: str, shown=lambda folder: None):
        holders.append(subprocess.Popen(["sleep", "600"], start_new_session=True))
        pid = holders[-1].pid
        folder = made(job_id, state="paused", result={})
        shown(folder)
        change(folder, state="running", pid=pid, identity=process.identity(pid))
        return folder

    yield make
    for holder in holders:
        holder.kill()
        holder.wait()


def test_a_job_that_begins_to_run_opens_itself(panel, running):
    folder = running("begins")
    state_of(panel, "begins", "running")
    pid = json.loads((record(folder) / "job.json").read_text())["pid"]
    open_job(panel, "begins")
    row(panel, "begins").click()  # closed by hand, and then it pauses and goes on
    change(folder, state="stopping", wanted="paused")
    state_of(panel, "begins", "stopping")
    assert row(panel, "begins").locator(".pxd-state").inner_text() == "pausing"
    change(folder, state="paused", wanted="", pid=None)
    state_of(panel, "begins", "paused")
    panel.evaluate("() => document.activeElement.blur()")
    change(folder, state="running", pid=pid)
    panel.locator('li[data-job="begins"] .pxd-detail').wait_for()
