"""tools/templates/layout.py: links of the bundled templates pass behind no node, nodes stay in their frames, and the
whole can be read as it opens."""

from __future__ import annotations

import json
import math
from collections.abc import Iterator
from pathlib import Path

import pytest

from tools.templates.layout import NARROWEST, Column, Front
from tools.workflow_api import load_workflow

ROOT = Path(__file__).resolve().parents[2]
WORKFLOWS = sorted((ROOT / "workflows").glob("PixArt *.json"))
BLUEPRINTS = sorted((ROOT / "subgraphs").glob("*.json"))
MARGIN = 4
"""Pixels that a curve may graze a node; beside its own two ends it may begin."""
END = 25
WINDOW = (1366, 768)
SHARE, EDGE = 0.75, 10
"""Of the window that ComfyUI gives to the nodes of a template that opens, and pixels that it adds around them."""
ZOOM = 8 / 14
"""Below it the classic canvas draws no text: its letters of 14 px would be smaller than 8."""
TITLE = 30

Point = tuple[float, float]


def curve(start: Point, end: Point) -> Iterator[Point]:
    """As the editor draws a link: a cubic that leaves to the right and arrives from the left."""
    pull = min(math.dist(start, end) / 4, 80)
    points = (start, (start[0] + pull, start[1]), (end[0] - pull, end[1]), end)
    for step in range(41):
        t = step / 40
        weights = ((1 - t) ** 3, 3 * (1 - t) ** 2 * t, 3 * (1 - t) * t**2, t**3)
        yield tuple(sum(w * point[axis] for w, point in zip(weights, points, strict=True)) for axis in (0, 1))


def stops(workflow: dict, link: list) -> list[Point]:
    """The ends of a link, and the dots that lead it."""
    nodes = {node["id"]: node for node in workflow["nodes"]}
    number, source, output, target, entry, _ = link
    start, end = nodes[source], nodes[target]
    dots = {dot["id"]: dot for dot in workflow["extra"].get("reroutes", ())}
    last = {each["id"]: each["parentId"] for each in workflow["extra"].get("linkExtensions", ())}.get(number)
    way = []
    while last:
        way.insert(0, tuple(dots[last]["pos"]))
        last = dots[last].get("parentId")
    out = (start["pos"][0] + start["size"][0], start["pos"][1] + 14 + 20 * output)
    return [out, *way, (end["pos"][0], end["pos"][1] + 14 + 20 * entry)]


def is_behind(point: Point, node: dict, link: list) -> bool:
    (x, y), (left, top), (width, height) = point, node["pos"], node["size"]
    if node["id"] == link[1] and x > left + width - END or node["id"] == link[3] and x < left + END:
        return False
    return min(x - left, left + width - x, y - top + 30, top + height - y) > MARGIN


def inside(path: Path) -> dict:
    """The subgraph of a blueprint as a workflow, with the place where its inputs enter as a node."""
    (subgraph,) = json.loads(path.read_text(encoding="utf-8"))["definitions"]["subgraphs"]
    left, top, width, height = subgraph["inputNode"]["bounding"]
    front = {"id": Front.ID, "type": "inputs", "pos": [left, top + 10], "size": [width - 14, height - 10]}
    names = ("id", "origin_id", "origin_slot", "target_id", "target_slot", "type")
    extra = {
        "reroutes": subgraph["reroutes"],
        "linkExtensions": [link for link in subgraph["links"] if "parentId" in link],
    }
    links = [[link[name] for name in names] for link in subgraph["links"] if link["target_id"] > 0]
    return {"nodes": [front, *subgraph["nodes"]], "links": links, "groups": subgraph["groups"], "extra": extra}


@pytest.mark.parametrize("path", WORKFLOWS + BLUEPRINTS, ids=lambda path: path.stem)
def test_no_link_passes_behind_a_node(path):
    workflow = inside(path) if path in BLUEPRINTS else load_workflow(path)
    for link in workflow["links"]:
        way = stops(workflow, link)
        for start, end in zip(way, way[1:], strict=False):
            behind = [node["type"] for p in curve(start, end) for node in workflow["nodes"] if is_behind(p, node, link)]
            assert not behind, (link, behind)


@pytest.mark.parametrize("path", BLUEPRINTS, ids=lambda path: path.stem)
def test_what_enters_a_blueprint_is_seen_as_it_opens(path):
    """The editor fits its view to the nodes, and not to the place where inputs enter."""
    front, *nodes = inside(path)["nodes"]
    assert min(node["pos"][0] for node in nodes) <= front["pos"][0]
    assert max(node["pos"][1] + node["size"][1] for node in nodes) >= front["pos"][1] + front["size"][1]


@pytest.mark.parametrize("path", WORKFLOWS, ids=lambda path: path.stem)
def test_no_frame_is_too_narrow_for_its_nodes(path):
    """In Nodes 2.0 either: whatever is saved, no node is narrower there than its minimum."""
    workflow = load_workflow(path)
    for node in workflow["nodes"]:
        (x, y), (width, height) = node["pos"], node["size"]
        assert width >= NARROWEST, node["type"]
        for group in workflow["groups"]:
            left, top, wide, high = group["bounding"]
            if left < x + width / 2 < left + wide and top < y < top + high:
                assert left < x and x + width < left + wide, (node["type"], group["title"])
                assert top < y - TITLE and y + height < top + high, (node["type"], group["title"])


@pytest.mark.parametrize("path", WORKFLOWS, ids=lambda path: path.stem)
def test_it_can_be_read_as_it_opens(path):
    """ComfyUI zooms so that all nodes fit into a part of the window."""
    nodes = load_workflow(path)["nodes"]
    left, top = min(node["pos"][0] for node in nodes), min(node["pos"][1] for node in nodes) - TITLE
    right, bottom = (max(node["pos"][axis] + node["size"][axis] for node in nodes) for axis in (0, 1))
    extent = right - left + 2 * EDGE, bottom - top + 2 * EDGE
    assert min(SHARE * side / size for side, size in zip(WINDOW, extent, strict=True)) >= ZOOM


def test_a_column_is_never_narrower_than_a_node():
    with pytest.raises(ValueError, match="at least 225"):
        Column(NARROWEST - 1, [])
