"""Writes locales/en/nodeDefs.json from the nodes' own schemas: python -m tools.locales.

The other languages are translated by hand; a test compares their keys with these.
"""

from __future__ import annotations

import json
import tempfile
from collections.abc import Mapping
from pathlib import Path

from .comfy_server import ComfyServer, comfyui_trees

FILE = Path(__file__).resolve().parents[1] / "locales" / "en" / "nodeDefs.json"


def node_texts(object_info: Mapping[str, Mapping]) -> dict:
    """What the editor shows of our nodes, as its translations are laid out: names, descriptions, tooltips."""
    ours = {name: info for name, info in object_info.items() if name.startswith("PixArtDelta")}
    return {name: _texts(info) for name, info in sorted(ours.items())}


def _texts(info: Mapping) -> dict:
    inputs = {}
    for part in ("required", "optional"):
        for name, (_, *options) in info["input"].get(part, {}).items():
            inputs[name] = {"name": name} | _tooltip((dict(*options)).get("tooltip"))
    names, tooltips = info["output_name"], info.get("output_tooltips") or [None] * len(info["output_name"])
    outputs = {
        str(index): {"name": name} | _tooltip(tip)
        for index, (name, tip) in enumerate(zip(names, tooltips, strict=True))
    }
    texts = {"display_name": info["display_name"], "description": info["description"]}
    return texts | {key: value for key, value in (("inputs", inputs), ("outputs", outputs)) if value}


def _tooltip(text: str | None) -> dict[str, str]:
    return {"tooltip": text} if text else {}


def as_json(texts: Mapping) -> str:
    return json.dumps(texts, indent=2, ensure_ascii=False) + "\n"


def main() -> None:
    with tempfile.TemporaryDirectory() as base, ComfyServer(next(iter(comfyui_trees().values())), base) as server:
        FILE.write_text(as_json(node_texts(server.object_info())), encoding="utf-8")
    print(FILE)


if __name__ == "__main__":
    main()
