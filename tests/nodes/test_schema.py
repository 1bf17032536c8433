"""Every node: its schema fits its execute, and says enough to be used without reading the source."""

from __future__ import annotations

import ast
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
IDS = {
    "PixArtDeltaModelLoader",
    "PixArtDeltaTextEncoderLoader",
    "PixArtDeltaVAELoader",
    "PixArtDeltaLoraLoader",
    "PixArtDeltaTextEncode",
    "PixArtDeltaResolution",
    "PixArtDeltaLCMSampler",
    "PixArtDeltaLCMSampling",
    "PixArtDeltaSaveCheckpoint",
    "PixArtDeltaControlNetLoader",
    "PixArtDeltaApplyControlNet",
    "PixArtDeltaHEDPreprocessor",
    "PixArtDeltaExamplePicture",
    "PixArtDeltaLiveCanvas",
    "PixArtDeltaSplitControlNet",
    "PixArtDeltaMergeControlNet",
    "PixArtDeltaCudaGraphs",
}
"""Saved workflows name nodes by these: removing or renaming one breaks them."""


def node_classes() -> dict[str, ast.ClassDef]:
    """Class name -> source of every node."""
    classes = {}
    for path in sorted((ROOT / "nodes").glob("*.py")):
        for node in ast.parse(path.read_text(encoding="utf-8")).body:
            bases = [ast.unparse(base) for base in node.bases] if isinstance(node, ast.ClassDef) else []
            # What the training nodes share makes its inputs of the trainer's settings: test_training.py reads those.
            if "io.ComfyNode" in bases and node.name != "TrainingNode":
                classes[node.name] = node
    return classes


NODES = node_classes()


def method(node: ast.ClassDef, name: str) -> ast.FunctionDef:
    return next(part for part in node.body if isinstance(part, ast.FunctionDef) and part.name == name)


def test_ids_are_kept():
    assert IDS <= set(NODES)


@pytest.mark.parametrize("name", NODES)
def test_input_ids_are_the_parameters_of_execute(name):
    inputs = [
        call.args[0].value
        for call in ast.walk(method(NODES[name], "define_schema"))
        if isinstance(call, ast.Call) and ast.unparse(call.func).endswith((".Input", "_input"))
    ]
    arguments = method(NODES[name], "execute").args
    assert arguments.kwarg is None and inputs == [argument.arg for argument in arguments.args[1:]]


@pytest.mark.parametrize("name", NODES)
def test_help_page_names_every_input(name):
    page = (ROOT / "web" / "docs" / f"{name}.md").read_text(encoding="utf-8")
    arguments = [argument.arg for argument in method(NODES[name], "execute").args.args[1:]]
    assert not [argument for argument in arguments if f"`{argument}`" not in page]


@pytest.mark.parametrize("name", NODES)
def test_execute_is_short(name):
    body = method(NODES[name], "execute").body
    assert body[-1].end_lineno - body[0].lineno < 12, "real work belongs in the bridge or in pixart_core"
