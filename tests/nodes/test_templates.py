"""The bundled templates as they look: made by tools/templates, nothing behind anything, before and after a run."""

from __future__ import annotations

import itertools
import json
from pathlib import Path

import pytest

from tests.nodes.panel import until
from tools.comfy_server import comfyui_trees
from tools.templates.__main__ import files
from tools.workflow_api import load_workflow

ROOT = Path(__file__).resolve().parents[2]
NAMES = sorted(path.stem for path in (ROOT / "workflows").glob("*.json"))
GRAPHS = [name for name in NAMES if not load_workflow(ROOT / "workflows" / f"{name}.json")["extra"].get("linearMode")]
"""Those that open as graphs; the others open in App mode."""
RUN = [name for name in NAMES if name.split()[1] in ("01", "05", "13", "16")]
"""One of each kind that draws is run; a training would go on beside the other tests of this server."""
STEPS = 2
"""That a sampler takes here at most: where things lie does not depend on it, and it shows its preview all the same."""
ZOOM = 8 / 14
"""Below it the classic canvas draws no text: its letters of 14 px would be smaller than 8."""
BOXES = """() => Object.fromEntries(window.app.graph._nodes.map(node => {
    const element = document.querySelector(`[data-node-id="${node.id}"]`);
    const { x, y, width, height } = element?.getBoundingClientRect() ?? {};
    const { scale, offset } = window.app.canvas.ds, at = window.app.canvas.canvas.getBoundingClientRect();
    const seen = [(x - at.x) / scale - offset[0], (y - at.y) / scale - offset[1], width / scale, height / scale];
    return [`${node.id} ${node.type}`, element ? seen : [...node.boundingRect]];
}))"""
FRAMES = "() => Object.fromEntries(window.app.graph._groups.map(group => [group.title, [...group._bounding]]))"
SAID = {
    "Dataset": "first\n" + "a line of a report, rather long\n" * 12,
    "Train": "first\n" + "a line of an estimate, rather long\n" * 12,
    "FineTune": "first\n" + "a line of an estimate, rather long\n" * 12,
    "PromptDataset": "first\n" + "a line of a report, rather long\n" * 12,
    "TrainingStatus": "taught: preparing · this training gets 31% of the processor time that it could use: "
    "other programs keep this machine busy",
    "TrainedResult": "taught: running · step 100 of 200 · loss 0.07605 · 1.2 min left\nNo result yet: what is behind "
    "this node waits. Run again when there is one.",
}
"""The longest that nodes of jobs say, by the end of their class."""
SAY = """async said => {
    for (const node of window.app.graph._nodes) {
        const name = Object.keys(said).filter(each => node.type.startsWith(`PixArtDelta${each}`)).at(-1);
        if (name) node.onExecuted({ text: [said[name]] });
    }
    await new Promise(resolve => setTimeout(resolve, 700));
}"""
OPEN = """async ([name, workflow]) => {
    await window.app.loadGraphData(workflow, true, true, name, { openSource: "template" });
    await new Promise(resolve => setTimeout(resolve, 700));
    return window.app.canvas.ds.scale;
}"""


def newest(comfyui_path) -> bool:
    return comfyui_path == next(iter(comfyui_trees().values()))


def test_the_files_are_what_the_tool_makes(comfy_server, comfyui_path):
    """`python -m tools.templates` makes them anew, after a node has got an input, too."""
    if not newest(comfyui_path):
        pytest.skip("made with the schemas of the newest ComfyUI")
    for path, text in files(comfy_server.object_info()):
        assert json.loads(path.read_text(encoding="utf-8")) == json.loads(text), path.name


@pytest.mark.parametrize("name", NAMES)
def test_a_name_says_what_it_is_and_is_found_by_pixart(name):
    """ComfyUI shows file names as titles, and searches nothing else of an extension's templates."""
    assert name.startswith("PixArt ")
    assert name.isascii()
    assert "_" not in name


@pytest.mark.parametrize("name", NAMES)
def test_three_or_more_titled_groups_in_the_editors_colours(name):
    groups = load_workflow(ROOT / "workflows" / f"{name}.json")["groups"]
    assert len(groups) >= 3 and all(group["title"] and group["color"] for group in groups)
    for one, other in itertools.combinations(groups, 2):
        assert not overlap(one["bounding"], other["bounding"]), (one["title"], other["title"])


@pytest.mark.parametrize("name", NAMES)
def test_what_an_app_shows_says_what_it_is(name):
    """There a widget stands without the title of its node."""
    workflow = load_workflow(ROOT / "workflows" / f"{name}.json")
    nodes = {node["id"]: node for node in workflow["nodes"]}
    for number, widget in workflow["extra"].get("linearData", {"inputs": ()})["inputs"]:
        labels = {each["widget"]["name"]: each.get("label") for each in nodes[number]["inputs"] if "widget" in each}
        assert (labels.get(widget) or widget) not in ("value", "batch_index"), nodes[number]["type"]


def overlap(one: list[float], other: list[float]) -> bool:
    return all(min(one[i] + one[i + 2], other[i] + other[i + 2]) - max(one[i], other[i]) > 0.5 for i in (0, 1))


def covered(boxes: dict[str, list[float]]) -> list[tuple[str, str]]:
    """Pairs of nodes of which one covers a part of the other."""
    return [(a, b) for (a, one), (b, other) in itertools.combinations(boxes.items(), 2) if overlap(one, other)]


def outside(boxes: dict[str, list[float]], frames: dict[str, list[float]]) -> list[tuple[str, str]]:
    """Nodes that leave the frame in which the middle of their title lies."""
    return [
        (name, title)
        for name, (x, y, width, height) in boxes.items()
        for title, (left, top, wide, high) in frames.items()
        if left < x + width / 2 < left + wide and top < y + 15 < top + high
        if min(x - left, left + wide - x - width, y - top, top + high - y - height) < -1
    ]


@pytest.fixture(scope="module", params=[False, True], ids=["canvas", "nodes_2"])
def page(request, panel_server, open_page):
    panel_server.post("/settings", {"Comfy.Execution.PreviewMethod": "latent2rgb"})
    page = open_page(panel_server, 1366, 768)
    page.wait_for_function("() => window.app && window.app.extensionManager && window.app.graph")
    set_vue(page, request.param)
    yield page
    assert page.errors == []
    set_vue(page, False)
    panel_server.post("/settings", {"Comfy.Execution.PreviewMethod": "default"})
    page.close()


def set_vue(page, on: bool) -> None:
    page.evaluate("on => window.app.extensionManager.setting.set('Comfy.VueNodes.Enabled', on)", on)


@pytest.mark.parametrize("name", GRAPHS)
def test_opened_it_can_be_read_and_nothing_covers_anything(page, name):
    zoom = page.evaluate(OPEN, [name, load_workflow(ROOT / "workflows" / f"{name}.json")])
    assert zoom >= ZOOM
    boxes = page.evaluate(BOXES)
    assert covered(boxes) == []
    assert outside(boxes, page.evaluate(FRAMES)) == []


@pytest.mark.parametrize(
    "name", [name for name in GRAPHS if name.split()[1] in ("20", "21", "22", "23", "24", "30", "31")]
)
def test_what_jobs_say_covers_nothing(page, name):
    """And the nodes stay in the frames of their groups."""
    page.evaluate(OPEN, [name, load_workflow(ROOT / "workflows" / f"{name}.json")])
    before = page.evaluate(BOXES)
    page.evaluate(SAY, SAID)
    page.wait_for_function("() => document.querySelectorAll('.pxd-line').length >= 1")
    after = page.evaluate(BOXES)
    assert covered(after) == []
    assert outside(after, page.evaluate(FRAMES)) == []
    assert {name: box for name, box in after.items() if box[3] > before[name][3] + 1} == {}


@pytest.mark.parametrize("name", RUN)
def test_after_a_run_nothing_covers_anything(page, panel_server, name):
    workflow = load_workflow(ROOT / "workflows" / f"{name}.json")
    for node in workflow["nodes"]:
        if node["type"] in ("KSampler", "PixArtDeltaLCMSampler"):
            node["widgets_values"][2] = min(node["widgets_values"][2], STEPS)
    page.evaluate(OPEN, [name, workflow])
    page.evaluate("() => window.app.queuePrompt(0)")
    page.wait_for_function("() => window.app.graph._nodes.some(node => node.imgs?.length)")
    page.wait_for_function(
        """async () => {
            const queue = await (await fetch("/queue")).json();
            return !queue.queue_running.length && !queue.queue_pending.length;
        }"""
    )
    page.wait_for_timeout(1000)
    until(lambda: not covered(page.evaluate(BOXES)), 30)  # a busy machine draws late
