"""The live canvas: what its node makes of a drawing, and in a browser a picture that follows the pen."""

from __future__ import annotations

import base64
import io
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from tests.nodes.graphs import difference, node, pictures
from tools.workflow_api import find_node, load_workflow, to_api

pytestmark = pytest.mark.host
ROOT = Path(__file__).resolve().parents[2]
WORKFLOW = ROOT / "workflows" / "PixArt 19 Live Drawing.json"


def address(picture: Image.Image) -> str:
    data = io.BytesIO()
    picture.save(data, "PNG")
    return "data:image/png;base64," + base64.b64encode(data.getvalue()).decode()


def drawn(server, drawing: str, size: int = 64):
    graph = {
        "canvas": node("PixArtDeltaLiveCanvas", drawing=drawing, size=size, live=False),
        "save": node("SaveImage", images=["canvas", 0], filename_prefix="test"),
    }
    return server.prompt(graph)


def test_a_drawing_comes_out_on_white(comfy_server):
    sheet = Image.new("RGBA", (32, 32))
    sheet.paste((0, 0, 0, 255), (0, 0, 16, 32))
    (picture,) = pictures(drawn(comfy_server, address(sheet)))
    assert picture.shape == (64, 64, 3)
    assert picture[:, :24].max() < 20 and picture[:, 40:].min() > 235
    (blank,) = pictures(drawn(comfy_server, ""))
    assert blank.min() == 255


@pytest.mark.parametrize(
    "drawing",
    [
        "painter-1.png",
        "data:image/png;base64,!!!",
        "data:image/png;base64,iVBORw0KGgo=",
        "data:image/gif;base64,R0lGOD",
    ],
)
def test_what_is_no_drawing_is_one_clear_error(comfy_server, drawing):
    (error,) = drawn(comfy_server, drawing).errors
    assert "drawing" in error and "canvas" in error


def test_a_huge_drawing_is_refused_before_it_is_unpacked(comfy_server):
    (error,) = drawn(comfy_server, address(Image.new("1", (5000, 8)))).errors
    assert "4096" in error


def test_the_picture_follows_the_drawing_and_nothing_else(comfy_server):
    """Two drawings give two pictures; the same one again, from the same noise, the same."""
    graph = to_api(load_workflow(WORKFLOW), comfy_server.object_info())
    canvas = graph[find_node(graph, "PixArtDeltaLiveCanvas")]["inputs"]
    first = pictures(comfy_server.prompt(graph))[-1]
    kept, canvas["drawing"] = canvas["drawing"], ""
    second = pictures(comfy_server.prompt(graph))[-1]
    canvas["drawing"] = kept
    third = pictures(comfy_server.prompt(graph))[-1]
    assert difference(first, second) > 2 and difference(first, third) == 0


@pytest.fixture(scope="module")
def canvas(panel_server, open_page):
    page = open_page(panel_server, 1500, 950)
    page.wait_for_function("() => window.app?.extensionManager && window.app.graph")
    workflow = load_workflow(WORKFLOW)
    workflow["extra"]["linearMode"] = False
    page.evaluate(
        """async (workflow) => {
            await window.app.loadGraphData(workflow);
            window.shown = []; window.ran = [];
            const api = window.app.api, id = String(workflow.nodes.find(node => node.type === "PreviewImage").id);
            api.addEventListener("execution_start", () => window.ran.push(1));
            api.addEventListener("executed", ({ detail }) => {
                if (String(detail.node) === id) window.shown.push(detail.output.images[0]);
            });
        }""",
        workflow,
    )
    page.locator(".pxd-sheet").wait_for()
    yield page
    assert page.errors == []
    page.close()


def stroke(page, row: float) -> None:
    box = page.locator(".pxd-sheet").bounding_box()
    page.mouse.move(box["x"] + 20, box["y"] + row * box["height"])
    page.mouse.down()
    page.mouse.move(box["x"] + box["width"] - 20, box["y"] + row * box["height"], steps=4)
    page.mouse.up()


def shown(page, server, count: int) -> np.ndarray:
    """The last picture, when there are so many, and no run is under way."""
    page.wait_for_function("count => window.shown.length >= count", arg=count)
    page.wait_for_timeout(1500)
    file = page.evaluate("() => window.shown.at(-1)")
    data = server.request("/view?" + "&".join(f"{key}={value}" for key, value in file.items()))
    return np.asarray(Image.open(io.BytesIO(data)).convert("RGB"), np.float32)


def test_strokes_prompt_and_undo_are_followed_in_the_browser(panel_server, canvas):
    stroke(canvas, 0.3)
    first = shown(canvas, panel_server, 1)
    before = canvas.evaluate("() => window.shown.length")
    stroke(canvas, 0.7)
    second = shown(canvas, panel_server, before + 1)
    assert difference(first, second) > 0.5

    before = canvas.evaluate("() => window.shown.length")
    canvas.locator('[data-tool="live_undo"]').click()
    assert difference(shown(canvas, panel_server, before + 1), first) == 0, "the same drawing, the same noise"

    # The drawing is part of the workflow, and nothing was uploaded.
    saved = canvas.evaluate("() => window.app.graph.serialize()")
    value = next(each for each in saved["nodes"] if each["type"] == "PixArtDeltaLiveCanvas")["widgets_values"][0]
    assert value.startswith("data:image/png;base64,")
    assert not list((panel_server.base / "input").glob("painter*"))

    # Off it waits for Run.
    canvas.evaluate(
        """() => {
            const node = window.app.graph._nodes.find(node => node.type === "PixArtDeltaLiveCanvas");
            node.widgets.find(widget => widget.name === "live").value = false;
        }"""
    )
    ran = canvas.evaluate("() => window.ran.length")
    stroke(canvas, 0.5)
    canvas.wait_for_timeout(1500)
    assert canvas.evaluate("() => window.ran.length") == ran
