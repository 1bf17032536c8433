"""Writes locales/en/nodeDefs.json from the nodes' own schemas, and the short help pages of other languages from theirs.

    python -m tools.locales

The other languages' nodeDefs.json are translated by hand; a test compares their keys with the English ones. Their help
pages hold what those say, and the example of the English page.
"""

from __future__ import annotations

import json
import tempfile
from collections.abc import Iterator, Mapping
from pathlib import Path

from .comfy_server import ComfyServer, comfyui_trees

ROOT = Path(__file__).resolve().parents[1]
LOCALES, DOCS = ROOT / "locales", ROOT / "web" / "docs"
FILE = LOCALES / "en" / "nodeDefs.json"
HEADINGS = {
    "zh": ("输入", "含义", "输出", "示例", "更多内容见英文帮助页。"),
    "ja": ("入力", "意味", "出力", "例", "くわしくは英語のヘルプにあります。"),
}
"""Of the help pages: input, meaning, output, example, and that the English page says more."""


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


def help_pages() -> Iterator[tuple[Path, str]]:
    """Path and text of every help page that is made from a translation."""
    for language, headings in HEADINGS.items():
        for node, texts in json.loads((LOCALES / language / "nodeDefs.json").read_text(encoding="utf-8")).items():
            english = (DOCS / f"{node}.md").read_text(encoding="utf-8")
            yield DOCS / node / f"{language}.md", _page(texts, headings, english.partition("## Example\n")[2])


def _page(texts: Mapping, headings: tuple[str, ...], example: str) -> str:
    entry, meaning, output, example_title, more = headings
    lines = [f"# {texts['display_name']}", "", texts["description"], ""]
    for title, part in ((entry, "inputs"), (output, "outputs")):
        rows = texts.get(part, {})
        if rows:
            lines += [f"| {title} | {meaning} |", "|---|---|"]
            # An input is called in the graph what its key says, where no translation of it is shown.
            keys = {key: f" (`{key}`)" if part == "inputs" else "" for key in rows}
            lines += [f"| {row['name']}{keys[key]} | {row.get('tooltip', '')} |" for key, row in rows.items()]
            lines.append("")
    return "\n".join([*lines, f"## {example_title}", example, more, ""])


def as_json(texts: Mapping) -> str:
    return json.dumps(texts, indent=2, ensure_ascii=False) + "\n"


def main() -> None:
    with tempfile.TemporaryDirectory() as base, ComfyServer(next(iter(comfyui_trees().values())), base) as server:
        FILE.write_text(as_json(node_texts(server.object_info())), encoding="utf-8")
    for path, text in help_pages():
        path.parent.mkdir(exist_ok=True)
        path.write_text(text, encoding="utf-8")


if __name__ == "__main__":
    main()
