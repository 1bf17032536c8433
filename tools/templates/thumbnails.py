"""The pictures beside the templates that draw, as ComfyUI lists them: python -m tools.templates.thumbnails [FOLDER].

Each is what the template makes as shipped, with what it starts from in a corner. Those for the released weights, which
nobody could run where this is made, show the bundled model's picture and say for what they are. The trainings' pictures
are screenshots.
"""

from __future__ import annotations

import io
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

from PIL import Image, ImageDraw, ImageFont, ImageOps

from ..comfy_server import ROOT, ComfyServer, comfyui_trees
from ..workflow_api import find_node, load_workflow, to_api

WORKFLOWS = ROOT / "workflows"
SIDE, INSET, EDGE = 384, 128, 10
"""Of the pictures, as ComfyUI's own are; of what is in their corner; and of its distance to the borders. In px."""
SAVED = "SaveImage"
SKETCH = Path(__file__).with_name("sketch.png")
TWINS = {1: 2, 3: 4, 5: 6, 14: 15, 16: 17}
"""Templates of the bundled model -> those of the released weights that are drawn alike."""


def thumbnails(server: ComfyServer) -> Iterator[tuple[Path, Image.Image]]:
    """File and picture of each."""
    for number in (1, 3, 5, 11, 12, 14, 16, 18, 19):
        (made,), seen = run(server, number)
        if number == 19:  # it shows its picture, and saves none
            drawing = Image.open(SKETCH).convert("RGBA")
            seen = [Image.alpha_composite(Image.new("RGBA", drawing.size, "white"), drawing).convert("RGB")]
        picture = with_inset(square(made), *seen)
        yield file(number), picture
        if number in TWINS:
            yield file(TWINS[number]), marked(picture)
    plain, styled = (run(server, 7, strength)[0][0] for strength in (0.0, None))
    yield file(7), with_inset(square(styled), plain)
    yield file(8), marked(square(plain))
    yield file(13), sheet(run(server, 13)[1])


def run(server: ComfyServer, number: int, style: float | None = None) -> tuple[list[Image.Image], list[Image.Image]]:
    """The pictures that a template saves, and those that it starts from or shows on the way.

    style: strength of the style LoRA, where there is one; None = as shipped.
    """
    graph = to_api(load_workflow(file(number).with_suffix(".json")), server.object_info())
    if style is not None:
        strengths = [node["inputs"] for node in graph.values() if "strength" in node["inputs"]]
        next(inputs for inputs in strengths if "sepia" in inputs["lora_name"])["strength"] = style
    result = server.prompt(graph)
    if result.errors:
        raise RuntimeError("\n".join(result.errors))
    pictures = iter(Image.open(io.BytesIO(data)).convert("RGB") for data in result.images)
    saved, shown = [], []
    for node in sorted(result.outputs, key=int):
        count = len(result.outputs[node].get("images", ()))
        (saved if graph[node]["class_type"] == SAVED else shown).extend(next(pictures) for _ in range(count))
    if number in (11, 12):
        name = graph[find_node(graph, "PixArtDeltaExamplePicture")]["inputs"]["picture"]
        shown = [Image.open(ROOT / "models" / "nano256" / "examples" / name).convert("RGB")]
    return (saved, shown) if saved else (shown, [])


def file(number: int) -> Path:
    """The picture of a template."""
    (path,) = WORKFLOWS.glob(f"PixArt {number:02} *.json")
    return path.with_suffix(".jpg")


def square(picture: Image.Image) -> Image.Image:
    """The middle of it: wide ones would stand between bars in ComfyUI's list."""
    return ImageOps.fit(picture, (SIDE, SIDE), Image.Resampling.LANCZOS)


def with_inset(picture: Image.Image, *inset: Image.Image) -> Image.Image:
    """With the first of what it starts from, if any, in the upper left corner, framed."""
    out = picture.copy()
    for each in inset[:1]:
        small = ImageOps.expand(ImageOps.contain(each, (INSET, INSET), Image.Resampling.LANCZOS), 3, "white")
        out.paste(small, (EDGE, EDGE))
    return out


def marked(picture: Image.Image) -> Image.Image:
    """Said to be for the released weights."""
    out = picture.copy()
    draw = ImageDraw.Draw(out, "RGBA")
    draw.rectangle((0, SIDE - 42, SIDE, SIDE), fill=(16, 20, 28, 215))
    font = ImageFont.load_default(22)
    draw.text((SIDE / 2, SIDE - 21), "released weights, 1024 px", font=font, anchor="mm", fill="white")
    return out


def sheet(pictures: list[Image.Image], across: int = 4) -> Image.Image:
    """Drafts beside one another."""
    side = SIDE // across
    out = Image.new("RGB", (SIDE, SIDE))
    for index, picture in enumerate(pictures[: across * across]):
        tile = ImageOps.fit(picture, (side, side), Image.Resampling.LANCZOS)
        out.paste(tile, (index % across * side, index // across * side))
    return out


def main() -> None:
    folder = Path(sys.argv[1]) if len(sys.argv) > 1 else WORKFLOWS
    folder.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory() as base, ComfyServer(next(iter(comfyui_trees().values())), base) as server:
        for path, picture in thumbnails(server):
            picture.save(folder / path.name, quality=90)
            print(folder / path.name, flush=True)


if __name__ == "__main__":
    main()
