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
BADGE = 28
"""Pixels that a badge needs between two nodes."""
MENU, RUN_BAR, PATH = (186, 86), (1003, 89), 89
"""Pixels of the window that the editor's bars cover at the top of the canvas: the graph's menu as far right and as far
down, the bar with Run from there on and as far down; a subgraph's path between both."""

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
    """The editor fits its view to the nodes, and not to the place where inputs enter, nor to links."""
    workflow = inside(path)
    front, *nodes = workflow["nodes"]
    left, top, right, bottom = extent(nodes)
    assert left <= front["pos"][0] and front["pos"][1] + front["size"][1] <= bottom
    highest = min(y for link in workflow["links"] for _, y in stops(workflow, link))
    assert WINDOW[1] / 2 - zoom(nodes) * ((top + bottom) / 2 - highest) >= PATH


def extent(nodes: list[dict]) -> tuple[float, float, float, float]:
    """Left, top, right and bottom of nodes with their titles."""
    left, top = (min(node["pos"][axis] for node in nodes) for axis in (0, 1))
    right, bottom = (max(node["pos"][axis] + node["size"][axis] for node in nodes) for axis in (0, 1))
    return left, top - TITLE, right, bottom


def zoom(nodes: list[dict]) -> float:
    """At which the editor shows what is opened: so that all nodes fit into a part of the window."""
    left, top, right, bottom = extent(nodes)
    sizes = right - left + 2 * EDGE, bottom - top + 2 * EDGE
    return min(SHARE * side / size for side, size in zip(WINDOW, sizes, strict=True))


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


@pytest.mark.parametrize("path", WORKFLOWS + BLUEPRINTS, ids=lambda path: path.stem)
def test_it_can_be_read_as_it_opens(path):
    nodes = inside(path)["nodes"][1:] if path in BLUEPRINTS else load_workflow(path)["nodes"]
    assert zoom(nodes) >= ZOOM


@pytest.mark.parametrize("path", WORKFLOWS, ids=lambda path: path.stem)
def test_no_bar_covers_a_frame_or_a_bend_as_it_opens(path):
    """At the top of the canvas stand the menu of the graph, on the left, and the bar with Run, on the right."""
    workflow = load_workflow(path)
    left, top, right, bottom = extent(workflow["nodes"])
    bends = [point for link in workflow["links"] for point in stops(workflow, link)[1:-1]]
    for group in workflow["groups"]:
        x, y, width, _ = group["bounding"]
        bends += [(x, y), (x + width, y)]
    for x, y in bends:
        across = WINDOW[0] / 2 + zoom(workflow["nodes"]) * (x - (left + right) / 2)
        down = WINDOW[1] / 2 + zoom(workflow["nodes"]) * (y - (top + bottom) / 2)
        assert across > MENU[0] or down >= MENU[1], (x, y)
        assert across < RUN_BAR[0] or down >= RUN_BAR[1], (x, y)


@pytest.mark.parametrize("path", WORKFLOWS, ids=lambda path: path.stem)
def test_no_badge_covers_a_widget(path):
    """The classic canvas draws a node's pack above its title; text boxes push the last widget down to a node's edge."""
    nodes = load_workflow(path)["nodes"]
    for full in (node for node in nodes if node["type"] == "PixArtDeltaTextEncode"):
        end = full["pos"][1] + full["size"][1]
        for node in nodes:
            if node["pos"][0] == full["pos"][0] and node["pos"][1] > end and node["type"].startswith("PixArtDelta"):
                assert node["pos"][1] - TITLE - end >= BADGE, node["type"]


def test_a_column_is_never_narrower_than_a_node():
    with pytest.raises(ValueError, match="at least 225"):
        Column(NARROWEST - 1, [])
