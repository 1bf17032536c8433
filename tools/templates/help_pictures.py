"""Pictures of the help pages, made in ComfyUI's editor: python -m tools.templates.help_pictures [FOLDER].

A template that draws is shown after a run, one that trains as it opens; nodes that no template has stand in a small
graph of their own. Also what previews show: each step's of one run, by either of ComfyUI's ways.
"""

from __future__ import annotations

import io
import itertools
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

from PIL import Image

from ..comfy_server import ROOT
from ..screenshots import OPEN, SETTLED, browser_beside_server, open_page, run
from ..workflow_api import load_workflow, to_api
from .layout import Column, Group, Node, Template, build
from .pieces import loader
from .thumbnails import file
from .weights import NANO, RELEASED

IMAGES = ROOT / "web" / "docs" / "images"
DRAWN = {"text_to_image": 1, "loras": 7, "control": 14}
OPENED = {"training": 20, "trained": 30}
JOINT = RELEASED.control.name
WIDTH = 1152
"""px of the pictures, as wide as a help page shows them at most."""
_WIDE = 320
"""Of the columns of small graphs, in which names of files can be read."""
EDGE = 24
"""Units of the canvas around the nodes."""
_PREVIEW = 200
_WINDOW = (1500, 1000)
_SHOW = """(edge) => {
    const {canvas, graph} = app, within = canvas.canvas.getBoundingClientRect();
    const boxes = [...graph._nodes, ...graph._groups].map((each) => [...each.boundingRect]);
    for (const {pos} of graph.reroutes.values()) boxes.push([pos[0], pos[1], 0, 0]);
    const least = (k) => Math.min(...boxes.map((box) => box[k])) - edge;
    const most = (k) => Math.max(...boxes.map((box) => box[k] + box[k + 2])) + edge;
    const [left, top, width, height] = [least(0), least(1), most(0) - least(0), most(1) - least(1)];
    const [x, y] = [0.05 * within.width, 0.1 * within.height];
    const scale = Math.min(1.2, 0.93 * within.width / width, 0.85 * within.height / height);
    canvas.ds.scale = scale;
    canvas.ds.offset = [x / scale - left, y / scale - top];
    canvas.setDirty(true, true);
    return {x: within.x + x, y: within.y + y, width: scale * width, height: scale * height};
}"""
"""Puts the whole graph between the editor's bars, and says where it lies in the window."""
_BARE = ".graph-canvas-menu, .minimap-main-container, .p-toast, [aria-live] { visibility: hidden !important }"
"""Hides what the editor shows above the canvas."""


def small() -> Iterator[tuple[str, Template]]:
    """Name and graph of what no template has."""
    student = loader("ModelLoader", "model_name", NANO.student, 140)
    turned = Node("PixArtDeltaLCMSampling", 56, {}, {"model": student["MODEL"]})
    values = {"steps": 4, "cfg": 1.0, "sampler_name": "lcm", "scheduler": "simple"}
    sampler = Node("KSampler", 262, values, {"model": turned["MODEL"]})
    yield "lcm_sampling", _in_a_row(("Load", "blue", student), ("LCM", "purple", turned), ("Sample", "purple", sampler))

    base = loader("ModelLoader", "model_name", NANO.base, 140)
    lora = Node("PixArtDeltaLoraLoader", 104, {"lora_name": NANO.lora}, {"model": base["MODEL"]})
    saved = Node("PixArtDeltaSaveCheckpoint", 152, {}, {"model": lora["MODEL"]})
    yield "save_checkpoint", _in_a_row(("Load", "blue", base), ("LoRA", "yellow", lora), ("Save", "cyan", saved))

    split = Node("PixArtDeltaSplitControlNet", 152, {"control_net_name": JOINT})
    merge = Node("PixArtDeltaMergeControlNet", 152, {"model_name": NANO.base, "control_net_name": NANO.control})
    yield "split_merge", _in_a_row(("Split", "blue", split), ("Merge", "cyan", merge))


def _in_a_row(*groups: tuple[str, str, Node]) -> Template:
    columns = [Column(_WIDE, [Group(title, colour, [node])]) for title, colour, node in groups]
    return Template("", columns)


def pictures(folder: Path) -> Iterator[tuple[str, Image.Image]]:
    """Name and picture of each; `folder` is for the server's files."""
    joint = folder / "comfyui" / "models" / "controlnet" / JOINT
    joint.parent.mkdir(parents=True)
    joint.touch()  # so that the list has it; nothing reads it
    with browser_beside_server(folder) as (browser, server):
        page = open_page(browser, server, *_WINDOW, nodes_2=True)
        for name, number in (DRAWN | OPENED).items():
            workflow = load_workflow(file(number).with_suffix(".json"))
            workflow["extra"]["linearMode"] = False
            yield f"wiring_{name}", _shown(page, workflow, server if name in DRAWN else None)
        schemas = server.object_info()
        for name, template in small():
            yield f"wiring_{name}", _shown(page, build(template, schemas), None)
        page.close()
        yield "previews", _previews(server)


def _shown(page, workflow: dict, server) -> Image.Image:
    """The nodes of a workflow; after a run, where there is a server to run it."""
    page.evaluate(OPEN, ["wiring", workflow])
    page.wait_for_timeout(SETTLED)
    if server is not None:
        run(page, server)
    page.add_style_tag(content=_BARE)
    place = page.evaluate(_SHOW, EDGE)
    page.wait_for_timeout(SETTLED)
    picture = Image.open(io.BytesIO(page.screenshot(clip=place))).convert("RGB")
    picture.thumbnail((WIDTH, WIDTH), Image.Resampling.LANCZOS)
    return picture


def _previews(server) -> Image.Image:
    """A row for each of ComfyUI's ways, of the same run."""
    graph = to_api(load_workflow(file(1).with_suffix(".json")), server.object_info())
    rows = []
    for method in ("latent2rgb", "taesd"):
        server.post("/free", {"free_memory": True})  # else nothing runs a second time
        made = server.prompt(graph, extra_data={"preview_method": method})
        shown = [data for _, kind, data in made.events if kind == "preview"]
        rows.append([Image.open(io.BytesIO(data)).convert("RGB") for data in (*shown, *made.images)])
    sheet = Image.new("RGB", (len(rows[0]) * _PREVIEW, len(rows) * _PREVIEW))
    for (y, row), x in itertools.product(enumerate(rows), range(len(rows[0]))):
        sheet.paste(row[x].resize((_PREVIEW, _PREVIEW), Image.Resampling.BICUBIC), (x * _PREVIEW, y * _PREVIEW))
    return sheet


def main() -> None:
    folder = Path(sys.argv[1]) if len(sys.argv) > 1 else IMAGES
    folder.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory() as base:
        for name, picture in pictures(Path(base)):
            path = folder / f"{name}.webp"
            picture.save(path, quality=85, method=6)
            print(path, picture.size, flush=True)


if __name__ == "__main__":
    main()
