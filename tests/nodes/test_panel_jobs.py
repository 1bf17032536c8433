"""What the panel and our nodes show of jobs that are files here: words, focus, curves and samples as those change."""

from __future__ import annotations

import json
import re
import subprocess
from pathlib import Path

import pytest
from PIL import Image
from pixart_delta.training.jobs import process

from tests.nodes.panel import (
    HOSTILE,
    change,
    forget,
    jobs,
    keep,
    open_job,
    open_panel,
    pretend,
    record,
    row,
    state_of,
    until,
    write_metrics,
)
from tools.workflow_api import load_workflow

pytestmark = pytest.mark.host

ROOT = Path(__file__).resolve().parents[2]
TEXTS = json.loads((ROOT / "locales/en/main.json").read_text(encoding="utf-8"))["pixart_delta"]
FOCUSED = "() => document.activeElement.dataset.action ?? document.activeElement.className"
POINTS = "points => Number(document.querySelector('.pxd-chart').dataset.points) === points"
LINES = "() => Object.fromEntries(window.app.graph.nodes.map(node => [node.id, line(node)]).filter(([, text]) => text))"
LINE = "const line = node => node.widgets?.find(widget => widget.name === 'pixart_delta_line')?.element.textContent;"
TEMPLATE = ROOT / "workflows" / "PixArt 20 Train LCD.json"
_IDS = {node["type"]: node["id"] for node in reversed(load_workflow(TEMPLATE)["nodes"])}
DATASET, TRAIN, STATUS, PREVIEW = (
    _IDS[kind] for kind in ("PixArtDeltaDataset", "PixArtDeltaTrainLCD", "PixArtDeltaTrainingStatus", "PreviewImage")
)
EXECUTED = """([id, output]) => window.app.api.dispatchCustomEvent(
    "executed", { node: String(id), display_node: String(id), prompt_id: "p", output })"""


def lines(page) -> dict[str, str]:
    """Node id -> the text that our line under it has."""
    return page.evaluate(f"() => {{ {LINE} return ({LINES})(); }}")


def until_line(page, node: int, words: str) -> None:
    page.wait_for_function(
        f"([id, words]) => {{ {LINE} return (line(window.app.graph.getNodeById(id)) ?? '').includes(words); }}",
        arg=[node, words],
    )


@pytest.fixture
def made(pretended):
    """made(id, order, **values) -> folder of a job that is only files; gone afterwards."""
    folders = []

    def make(job_id: str, order: float = 500.0, **values) -> Path:
        folders.append(pretended / job_id)
        pretend(folders[-1], order, state=values.pop("state", "paused"), **values)
        return folders[-1]

    yield make
    for folder in folders:
        forget(folder)


@pytest.fixture
def graph(panel):
    """The template of LCD in the editor."""
    workflow = load_workflow(TEMPLATE)
    panel.evaluate("workflow => window.app.loadGraphData(workflow)", workflow)
    return workflow


@pytest.mark.parametrize("vue", [False, True], ids=["canvas", "nodes_2"])
def test_a_node_shows_its_job_and_keeps_its_id(panel, pretended, made, graph, vue):
    folder = made("nodes-job", name="Lake")
    panel.evaluate("vue => window.app.extensionManager.setting.set('Comfy.VueNodes.Enabled', vue)", vue)
    widgets = panel.evaluate("() => window.app.graph.serialize().nodes.map(node => node.widgets_values)")
    output = {"text": ["as it was then\nmemory 3 GB"], "pixart_delta_job": ["nodes-job"]}
    for node in (PREVIEW, TRAIN):
        panel.evaluate(EXECUTED, [node, output])
    panel.evaluate(EXECUTED, [STATUS, {"pixart_delta_job": ["made-0"]}])
    until_line(panel, TRAIN, "Lake: paused · step 900 of 1000 · loss 0.01")
    until_line(panel, TRAIN, "loss 0.01\nmemory 3 GB")  # its estimate stays, below how far it is now
    for other in ("of-another-server", "made-2"):
        panel.evaluate(EXECUTED, [DATASET, {"pixart_delta_job": [other]}])
        assert set(lines(panel)) == {str(TRAIN), str(STATUS)}, (
            "only of jobs that there are, under nodes of ours that can make them"
        )

    # Shown by the renderer, as text whatever it holds.
    shown = panel.locator(".pxd-line", has_text="Lake")
    shown.wait_for()
    assert shown.bounding_box()["height"] >= 16
    assert "<script>" in lines(panel)[str(STATUS)] and panel.locator(".pxd-line *").count() == 0
    assert panel.evaluate("() => window.hacked") is None
    keep(panel, f"node_line_{'nodes_2' if vue else 'canvas'}")

    # It follows the job, also in a page that is loaded anew with the saved workflow, whose values it does not shift.
    change(folder, result={"step": 950, "steps": 1000})
    until_line(panel, TRAIN, "step 950")
    saved = panel.evaluate("() => window.app.graph.serialize()")
    assert [node.get("widgets_values") for node in saved["nodes"]] == widgets
    panel.reload()
    open_panel(panel)
    panel.evaluate("workflow => window.app.loadGraphData(workflow)", saved)
    until_line(panel, TRAIN, "step 950")
    forget(folder)
    panel.wait_for_function(f"() => {{ {LINE} return !line(window.app.graph.getNodeById({TRAIN})); }}")
    panel.evaluate("() => window.app.extensionManager.setting.set('Comfy.VueNodes.Enabled', false)")


def test_an_estimate_is_shown_under_its_node(panel, pretended, graph):
    panel.evaluate(EXECUTED, [TRAIN, {"pixart_delta_job": ["made-2"]}])
    until_line(panel, TRAIN, "made 2: done")
    panel.evaluate(EXECUTED, [TRAIN, {"text": [f"memory 3 GB\n{HOSTILE}"]}])
    until_line(panel, TRAIN, "memory 3 GB\n<img")
    assert panel.evaluate("() => window.hacked") is None
    assert "pixart_delta_job" not in panel.evaluate(f"() => window.app.graph.getNodeById({TRAIN}).properties")
    # Other nodes of ours say theirs by the frontend's own means: it would be there twice.
    loader = panel.evaluate(
        """() => {
            const node = LiteGraph.createNode("PixArtDeltaModelLoader");
            window.app.graph.add(node);
            return node.id;
        }"""
    )
    panel.evaluate(EXECUTED, [loader, {"text": ["a plan"]}])
    assert set(lines(panel)) == {str(TRAIN)}


def test_what_a_running_job_waits_for_and_that_it_gets_little_is_seen(panel, made, graph):
    with subprocess.Popen(["sleep", "600"], start_new_session=True) as sleeper:
        try:
            ours = {"pid": sleeper.pid, "identity": process.identity(sleeper.pid)}
            folder = made("slow", 700.0, state="running", device="cuda:7", **ours)
            status = {"state": "running", "pid": sleeper.pid, "time": 1e9, "step": 1, "steps": 9}
            panel.evaluate(EXECUTED, [TRAIN, {"pixart_delta_job": ["slow"]}])
            for said in (
                {"notice": "gets 7% of the processor time that it could use: other programs keep this machine busy"},
                {"waiting": "waiting for the data's store, for 0:01:00: s3://data/dataset.json cannot be read"},
            ):
                (record(folder) / "status.json").write_text(json.dumps(status | said))
                (words,) = said.values()
                state_of(panel, "slow", "running")
                open_job(panel, "slow").locator(".pxd-reason", has_text=words).wait_for()
                until_line(panel, TRAIN, words)
        finally:
            sleeper.kill()


def test_a_dataset_has_words_of_its_own(panel, made):
    folder = made("made-dataset", command="prepare", name="Scenes", result={"step": 3, "steps": 48}, reason="paused")
    state_of(panel, "made-dataset", "paused")
    detail = open_job(panel, "made-dataset")
    detail.wait_for()
    head = row(panel, "made-dataset")
    assert head.locator(".pxd-summary").inner_text() == "3 of 48 pictures"
    assert head.locator("progress").evaluate("bar => [bar.value, bar.max]") == [3, 48]
    assert head.locator("progress").get_attribute("aria-label") == TEXTS["progress"]
    assert detail.locator(".pxd-chart, .pxd-samples").count() == 0
    assert detail.locator('[data-action="delete"]').get_attribute("title") == TEXTS["prepare_delete_hint"]
    keep(panel, "panel_dataset")
    change(folder, state="done", reason="")
    panel.locator(".p-toast-message", has_text="Dataset ready").wait_for()


def test_the_focus_stays_where_jobs_move_and_change(panel, made):
    made("first", 600.0)
    line = [made(f"line-{i}", 601.0 + i, state="queued", after="first") for i in range(3)]
    state_of(panel, "line-2", "queued")
    open_job(panel, "line-2").locator('[data-action="up"]').focus()
    order = "() => [...document.querySelectorAll('li[data-job^=line-]')].map(item => item.dataset.job.at(-1)).join('')"
    panel.keyboard.press("Enter")
    panel.wait_for_function(f"() => ({order})() === '021'")
    assert panel.evaluate(FOCUSED) == "up"
    panel.keyboard.press("Enter")
    panel.wait_for_function(f"() => ({order})() === '201'")
    assert panel.evaluate(FOCUSED) == "up"

    # Its button is gone with the state, or the whole job is: the head of the job, and of the next one.
    change(line[2], state="paused")
    state_of(panel, "line-2", "paused")
    assert panel.evaluate(FOCUSED) == "pxd-row"
    assert panel.evaluate("() => document.activeElement.closest('li').dataset.job") == "line-2"
    at = panel.evaluate("() => [...document.querySelectorAll('.pxd-row')].indexOf(document.activeElement)")
    forget(line[2])
    panel.locator('li[data-job="line-2"]').wait_for(state="detached")
    assert panel.evaluate("() => [...document.querySelectorAll('.pxd-row')].indexOf(document.activeElement)") == at


def test_a_button_at_work_keeps_the_focus_and_sends_once(panel, made):
    made("busy")
    asked = []
    panel.route("**/busy/resume", lambda route: asked.append(route))
    state_of(panel, "busy", "paused")
    resume = open_job(panel, "busy").locator('[data-action="resume"]')
    resume.focus()
    panel.keyboard.press("Enter")
    panel.locator('[data-action="resume"][aria-disabled="true"]').wait_for()
    panel.keyboard.press("Enter")
    assert panel.evaluate(FOCUSED) == "resume"
    assert len(asked) == 1
    asked[0].fulfill(status=409, json={"error": "not now"})
    panel.locator('[data-action="resume"][aria-disabled="false"]').wait_for()
    panel.unroute("**/busy/resume")


def test_the_open_row_closes_and_opens_again(panel, pretended):
    open_job(panel, "made-2")
    row(panel, "made-2").click()
    assert panel.locator(".pxd-detail").count() == 0
    assert row(panel, "made-2").get_attribute("aria-expanded") == "false"
    panel.reload()
    open_panel(panel)
    row(panel, "made-2").wait_for()
    assert panel.locator(".pxd-detail").count() == 0, "closed it stays, over a reload too"
    row(panel, "made-2").click()
    open_job(panel, "made-0")
    assert panel.locator(".pxd-detail").count() == 1
    assert row(panel, "made-2").get_attribute("aria-expanded") == "false"


def test_the_curve_is_that_of_the_last_attempt(panel, made):
    folder = made("curve", attempt=1)
    write_metrics(folder, 899)
    state_of(panel, "curve", "paused")
    open_job(panel, "curve")
    panel.wait_for_function(POINTS, arg=899)

    # The answer of attempt 2 is still under way when attempt 3 has begun a new file.
    held = []
    panel.route("**/curve/metrics*", lambda route: held.append((route, route.fetch())), times=1)
    change(folder, attempt=2)
    until(lambda: held or panel.wait_for_timeout(50))
    write_metrics(folder, 5)
    change(folder, attempt=3, name="third")
    panel.locator('li[data-job="curve"]', has_text="third").wait_for()
    held[0][0].fulfill(response=held[0][1])
    panel.wait_for_function(POINTS, arg=5)

    # One that began anew has no step yet.
    write_metrics(folder, 0)
    change(folder, attempt=4)
    panel.wait_for_function(POINTS, arg=0)
    assert panel.locator(".pxd-chart canvas").count() == 0
    assert panel.get_by_text(TEXTS["no_metrics"]).is_visible()


def test_samples_are_read_when_seen_and_anew_when_redrawn(panel, made):
    folder = made("drawn", attempt=1)
    Image.new("RGB", (8, 8)).save(folder / "samples" / "step_00000300.png")
    for step in range(300):
        (folder / "samples" / f"step_{step:08d}.png").hardlink_to(folder / "samples" / "step_00000300.png")
    asked = []
    panel.on("request", lambda request: asked.append(request.url) if "/drawn/samples/step" in request.url else None)
    state_of(panel, "drawn", "paused")
    open_job(panel, "drawn")
    newest = panel.locator(".pxd-samples img").first
    newest.wait_for()
    wide = "wide => document.querySelector('.pxd-samples img').naturalWidth === wide"
    panel.wait_for_function(wide, arg=8)
    panel.wait_for_load_state("networkidle")
    assert 0 < len(asked) < 100, "those far down are read when they are scrolled to"

    (folder / "samples" / "step_00000300.png").unlink()
    Image.new("RGB", (16, 16)).save(folder / "samples" / "step_00000300.png")
    change(folder, attempt=2)
    panel.wait_for_function(wide, arg=16)


def test_a_log_that_cannot_be_read_is_no_error(panel, pretended):
    open_job(panel, "made-2")
    with panel.expect_request("**/made-2/log"):
        panel.route("**/made-2/log", lambda route: route.abort())
        panel.locator(".pxd-log summary").click()
    panel.wait_for_timeout(200)
    assert panel.errors == []
    panel.unroute("**/made-2/log")


def test_every_text_is_in_the_locale():
    files = [ROOT / "web/pixart_delta.js", *(ROOT / "web").glob("panel/*.mjs"), *(ROOT / "web").glob("live/*.mjs")]
    code = {file.name: file.read_text(encoding="utf-8") for file in files}
    used = {key for text in code.values() for key in re.findall(r'\bt(?:For)?\((?:[\w.]+, )?"(\w+)"', text)}
    used |= {key for text in code.values() for key in re.findall(r'button\("(\w+)"', text)}
    assert used - set(TEXTS) == set() and {"steps", "seconds", "megabytes", "live_pen", "form_start"} <= used
    actions = re.search(r"const ORDER = \[(.*?)\]", code["detail.mjs"])[1].replace('"', "").split(", ")
    tools = [f"tool_{name}" for name in re.findall(r"(\w+): \"", re.search(r"const ICON = .*", code["tools.mjs"])[0])]
    assert len(tools) == 5
    assert {word for action in actions + tools for word in (action, f"{action}_hint")} - set(TEXTS) == set()
    ends = {f"{command}toast_{end}" for command in ("", "prepare_") for end in ("done", "stopped", "failed")}
    states = {"queued", "preparing", "running", "paused", "pausing", "stopping", "stopped", "done", "failed"}
    assert (ends | states | {"view_one", "view_two", "view_rows"}) - set(TEXTS) == set()


@pytest.mark.parametrize("language", ["zh", "ja"])
def test_other_languages_say_the_same_things(language):
    file = ROOT / "locales" / language / "main.json"
    texts = json.loads(file.read_text(encoding="utf-8"))["pixart_delta"]
    assert list(texts) == list(TEXTS)
    parts = {key: [sorted(re.findall(r"\{\w+\}", each[key])) for each in (TEXTS, texts)] for key in TEXTS}
    assert [key for key, (ours, theirs) in parts.items() if ours != theirs] == []


def test_speaks_another_language(panel_server, open_page, pretended):
    """With every string in another language no English word of ours is left, units and axes included."""
    other = {key: re.sub(r"[a-zA-Z]+(?![^{]*\})", "ж", text) for key, text in TEXTS.items()}
    page = open_page(panel_server, 1500, 1000)
    nodes = json.loads((ROOT / "locales/zh/nodeDefs.json").read_text(encoding="utf-8"))
    page.route("**/i18n", lambda route: route.fulfill(json={"en": {"pixart_delta": other, "nodeDefs": nodes}}))
    page.reload()
    open_panel(page)
    open_job(page, "made-2")
    page.wait_for_function(POINTS, arg=899)
    # No words of the page's: what the processes of jobs say, those of other tests included.
    said = [job[of] for job in jobs(panel_server) for of in ("reason", "says") if job.get(of)]
    data = re.compile("|".join([r"made-?\s?\d|cpu|lcd|AM|PM|e-\d|\d", *map(re.escape, said)]), re.DOTALL)
    words = page.locator(
        ".pxd-panel .pxd-state, .pxd-panel .pxd-summary, .pxd-panel h2, .pxd-panel h3, .pxd-panel dt, "
        ".pxd-panel .pxd-button, .pxd-panel .u-label, .pxd-panel label"
    ).all_inner_texts()
    assert len(words) > 10
    assert [word for word in words if re.search("[a-zA-Z]", data.sub("", word))] == []

    # A new training's settings are called as the node's inputs, with the trainer's own name below.
    page.locator('[data-form="new"]').click()
    for name, input in (("learning_rate", "learning_rate"), ("data", "dataset")):
        field = page.locator(".pxd-form label", has=page.locator(f'[data-setting="{name}"]'))
        assert (
            field.locator("span").first.inner_text()
            == f"{nodes['PixArtDeltaTrainLCD']['inputs'][input]['name']}\n{name}"
        )
    page.close()
