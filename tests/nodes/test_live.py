"""The live canvas: what its node makes of a drawing, and in a browser a picture that follows the pen."""

from __future__ import annotations

import base64
import contextlib
import io
import json
import uuid
from collections.abc import Iterator
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


@contextlib.contextmanager
def connected(server, client: str) -> Iterator:
    import websocket

    socket = websocket.create_connection(
        f"ws://127.0.0.1:{server.port}/ws?clientId={client}", timeout=120, http_no_proxy=["127.0.0.1"]
    )
    yield socket
    socket.close()


def kinds(socket, last: str, of: str) -> set[str]:
    """What a connection is told of the prompt `of`, until the prompt `last` has ended."""
    found = set()
    while True:
        message = socket.recv()
        if not isinstance(message, str):
            continue
        event = json.loads(message)
        if event["data"].get("prompt_id") == of:
            found.add(event["type"])
        if event["type"] == "executing" and event["data"].get("prompt_id") == last and event["data"]["node"] is None:
            return found


def test_runs_that_follow_the_canvas_tell_a_connection_of_their_own(comfy_server):
    page = uuid.uuid4().hex

    def run(canvas: str, targets: list[str]) -> str:
        graph = {
            canvas: node("PixArtDeltaLiveCanvas", drawing="", size=64, live=True),
            "shown": node("PreviewImage", images=[canvas, 0]),
        }
        body = {"prompt": graph, "client_id": page, "partial_execution_targets": targets}
        return comfy_server.post("/prompt", body)["prompt_id"]

    with connected(comfy_server, page) as editor:
        alone = run("first", ["shown", "first"])
        assert "executed" in kinds(editor, alone, alone), "nobody listens for it"
        with connected(comfy_server, f"pixart_delta_live_{page}") as apart:
            quiet, loud = run("second", ["shown", "second"]), run("third", ["shown"])
            assert {"execution_start", "executing", "executed", "execution_success"} <= kinds(apart, quiet, quiet)
            assert kinds(editor, loud, quiet) == set()


RUN = [
    ("status", {"sid": "another"}),
    ("execution_start", {"prompt_id": "a"}),
    ("progress_state", {"prompt_id": "a", "nodes": {}}),
    ("executing", {"prompt_id": "a", "node": "3", "display_node": "3"}),
    ("executing", {"prompt_id": "other", "node": "4"}),
    ("progress", {"prompt_id": "a", "node": "3", "value": 1, "max": 2}),
    ("pixart_delta.said", {"prompt": "a", "node": "3", "text": "far"}),
]
QUIET = """async messages => {
    const { Quiet } = await import("/extensions/pixart-delta/live/quiet.mjs");
    const told = [], ended = [], sockets = [], real = window.WebSocket;
    window.WebSocket = class extends EventTarget {
        static CONNECTING = 0; static OPEN = 1;
        readyState = 0;
        constructor(address) { super(); this.address = String(address); sockets.push(this); }
        say(type, data) { this.dispatchEvent(new MessageEvent("message", { data: JSON.stringify({ type, data }) })); }
        close() {}
    };
    const wait = (ms = 0) => new Promise(resolve => setTimeout(resolve, ms));
    try {
        const api = { clientId: "mine", api_base: "", dispatchCustomEvent: (...event) => told.push(event) };
        const quiet = new Quiet(api);
        for (const name of ["execution_start", "execution_success", "execution_interrupted"])
            quiet.addEventListener(name, ({ detail }) => ended.push([name, detail.prompt_id]));
        const ready = [quiet.listen()];
        const [socket] = sockets;
        socket.readyState = 1;
        ready.push(quiet.listen());
        for (const message of messages) socket.say(...message);
        await wait(20);
        const held = told.length;
        socket.say("executed", { prompt_id: "a", node: "3", output: {} });
        socket.say("execution_success", { prompt_id: "a" });
        socket.say("executing", { prompt_id: "a", node: null });
        await wait(50);
        const passed = told.splice(0).map(([type, detail]) => [type, detail]);
        socket.say("execution_start", { prompt_id: "b" });
        await wait(3300);
        const slow = told.splice(0).length;
        socket.say("executing", { prompt_id: "b", node: "3" });
        await wait(20);
        const followed = told.splice(0);
        socket.dispatchEvent(new Event("close"));
        await wait(20);
        return { address: socket.address, ready, held, passed, slow, followed, lost: told, ended };
    } finally { window.WebSocket = real; }
}"""


def test_the_editor_hears_of_a_short_run_at_its_end(canvas):
    found = canvas.evaluate(QUIET, RUN)
    assert found["address"].startswith("ws:") and found["address"].endswith("/ws?clientId=pixart_delta_live_mine")
    assert found["ready"] == [False, True] and found["held"] == 0
    names = ["execution_start", "executing", "pixart_delta.said", "executed", "execution_success", "executing"]
    assert [name for name, _ in found["passed"]] == names
    assert [detail for name, detail in found["passed"] if name == "executing"] == ["3", None]
    assert found["slow"] == 1 and found["followed"] == [["executing", "3"]], "a long run is followed after all"
    assert found["lost"] == [["executing", None]]
    ended = ["execution_start", "execution_success", "execution_start", "execution_interrupted"]
    assert [name for name, _ in found["ended"]] == ended


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
