"""Writes workflows/*.json and subgraphs/*.json anew: python -m tools.templates."""

from __future__ import annotations

import json
import tempfile
from collections.abc import Iterator, Mapping
from pathlib import Path

from ..comfy_server import ComfyServer, comfyui_trees
from . import bundled
from .blueprint import blueprints, build_blueprint
from .layout import build

ROOT = Path(__file__).resolve().parents[2]


def files(schemas: Mapping[str, Mapping]) -> Iterator[tuple[Path, str]]:
    """Path and text of every file that is made here."""
    for template in bundled():
        yield ROOT / "workflows" / f"{template.name}.json", _text(build(template, schemas))
    for blueprint in blueprints():
        yield ROOT / "subgraphs" / f"{blueprint.name}.json", _text(build_blueprint(blueprint, schemas))


def _text(graph: dict) -> str:
    return json.dumps(graph, indent=1, ensure_ascii=False) + "\n"


def main() -> None:
    with tempfile.TemporaryDirectory() as base, ComfyServer(next(iter(comfyui_trees().values())), base) as server:
        schemas = server.object_info()
    for path, text in files(schemas):
        path.parent.mkdir(exist_ok=True)
        path.write_text(text, encoding="utf-8")
        print(path.relative_to(ROOT))


if __name__ == "__main__":
    main()
