"""The template in which a picture follows what is drawn."""

from __future__ import annotations

import base64
from collections.abc import Iterator
from pathlib import Path

from .layout import Column, Group, Node, Template, note
from .pictures import named
from .pieces import Loaded, decode, lcm, size, stacked, text
from .weights import HUB, NANO, RELEASED


def templates() -> Iterator[Template]:
    yield drawing()


def drawing() -> Template:
    name = "Live Drawing"
    loaded = Loaded(NANO, NANO.student)
    control = loaded.more("ControlNetLoader", "control_net_name", NANO.control, 148)
    sheet = Node("PixArtDeltaLiveCanvas", 420, {"drawing": sketch(), "size": NANO.side})
    prompt = text(loaded, "a boat on a lake below blue mountains at sunset, the sun on the right")
    edges = Node("PixArtDeltaHEDPreprocessor", 220, {"hed_name": NANO.hed}, {"image": sheet["IMAGE"]})
    links = {
        "positive": prompt["positive"],
        "negative": prompt["negative"],
        "control_net": control["CONTROL_NET"],
        "image": edges["edges"],
        "vae": loaded.vae["VAE"],
    }
    applied = Node("PixArtDeltaApplyControlNet", 252, {"strength": 0.8}, links)
    shape = size(NANO)
    sampler = lcm(loaded.model["MODEL"], applied["positive"], shape["latent"], 3, steps=2)
    sampler.after = "fixed"  # Run shall not change the noise either
    decoded = decode(sampler, loaded)
    shown = Node("PreviewImage", 330, {}, {"images": decoded["IMAGE"]}, title="The picture follows")
    columns = [
        Column(240, [Group("Load", "blue", [node for node in loaded.nodes if node is not control])]),
        Column(270, [Group("Draw", "red", [sheet]), Group("Prompt", "green", [prompt])]),
        Column(235, [Group("Hint", "red", [control, edges]), Group("", "", [_note(name)])]),
        Column(235, [Group("Control", "yellow", [applied]), Group("Size", "green", [shape])]),
        Column(235, [Group("Sample", "purple", [sampler])]),
        Column(250, [stacked("Picture", decoded, shown)]),
    ]
    app = [(sheet, "drawing"), (prompt, "prompt"), (applied, "strength")]
    return Template(named(19, name), columns, (app, [shown]), as_app=True)


def _note(name: str) -> Node:
    edges = named(14, "ControlNet with Edges in 4 Steps", RELEASED)
    says = (
        "Draw on the sheet, and the picture follows. After each stroke the LCM model runs for 2 steps, from the same "
        "noise (the **seed** is fixed), so that the picture does not flicker. **strength** 0.8 leaves the prompt some "
        "freedom, 1 holds to every line; what the prompt does not name is hardly drawn. Only *Preview Image* runs by "
        "itself: to keep a picture save it from there, or connect *Save Image* and press **Run**. **live** off: only "
        "**Run** draws.\n\nFor real pictures, on a GPU, choose the "
        f"released files in the loaders, as the template *{edges}* does ([{RELEASED.control.repository}]"
        f"({HUB}/{RELEASED.control.repository})), its *bins*, and 1024 as *size* of the sheet.\n"
    )
    return note(name, says, 330, down=40)


def sketch() -> str:
    """The drawing as shipped, as the canvas of PixArt-δ Live Canvas keeps it."""
    picture = Path(__file__).with_name("sketch.png").read_bytes()
    return "data:image/png;base64," + base64.b64encode(picture).decode()
