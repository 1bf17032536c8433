"""tools/templates/layout.py: links of the bundled templates pass behind no node."""

from __future__ import annotations

import math
from collections.abc import Iterator
from pathlib import Path

import pytest

from tools.workflow_api import load_workflow

ROOT = Path(__file__).resolve().parents[2]
WORKFLOWS = sorted((ROOT / "workflows").glob("PixArt *.json"))
MARGIN = 4
"""Pixels that a curve may graze a node; beside its own two ends it may begin."""
END = 25

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


@pytest.mark.parametrize("path", WORKFLOWS, ids=lambda path: path.stem)
def test_no_link_passes_behind_a_node(path):
    workflow = load_workflow(path)
    for link in workflow["links"]:
        way = stops(workflow, link)
        for start, end in zip(way, way[1:], strict=False):
            behind = [node["type"] for p in curve(start, end) for node in workflow["nodes"] if is_behind(p, node, link)]
            assert not behind, (link, behind)
