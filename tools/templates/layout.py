"""Nodes in titled columns -> a workflow as ComfyUI's editor saves it.

A template is a row of columns of groups of nodes, read from left to right. Positions follow from the sizes; slots and
widgets are read from the schemas of a running ComfyUI, so that nothing here repeats them.
"""

from __future__ import annotations

import itertools
import uuid
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

COLOURS = {
    "blue": "#3f789e",
    "green": "#8A8",
    "purple": "#a1309b",
    "yellow": "#b58b2a",
    "cyan": "#8AA",
    "red": "#A88",
}
"""Of groups: those that the editor's own menu offers."""
NOTE_COLOURS = {"color": "#222", "bgcolor": "#000"}
"""Of notes: those of the official templates."""
_TITLE, _BAND, _PAD, _GAP, _AISLE = 30, 40, 12, 14, 36
"""Pixels: title bar of a node, title of a group, margin inside a group, between nodes, between columns."""
NARROWEST = 225
"""Pixels: Nodes 2.0 makes no node narrower; in a narrower column it would leave its frame and cover the next one."""
_FOOT = 16
"""More pixels below a node whose file may be missing: Nodes 2.0 hangs a line there that says so."""
_GROWING = "COMFY_AUTOGROW_V3"
"""An input that has one more slot than is used; three of them are saved."""
_WIDGETS = {"INT", "FLOAT", "STRING", "BOOLEAN", "COMBO"}


@dataclass(eq=False)
class Node:
    """A node of a template.

    Args:
        kind: its class.
        height: pixels, with room for what a run shows in it.
        widgets: values by name; what is not named has the schema's default.
        links: name of an input -> (node, name or number of its output).
        models: files to download, as ComfyUI's dialog on missing models reads them: name, url, directory.
        down: pixels to leave free above it.
        wide: pixels that it is wider than its column.
        after: what becomes of its seed after a run, such as fixed; the schema's default if it says nothing.
        labels: what widgets are called, where their names say too little: in an app there is no title beside them.
    """

    kind: str
    height: int
    widgets: dict[str, Any] = field(default_factory=dict)
    links: dict[str, tuple[Node, str | int]] = field(default_factory=dict)
    title: str = ""
    models: tuple[dict[str, str], ...] = ()
    down: int = 0
    wide: int = 0
    after: str = ""
    labels: dict[str, str] = field(default_factory=dict)

    @property
    def foot(self) -> int:
        """Pixels that it may need below itself."""
        return _FOOT if self.models else 0

    def __getitem__(self, output: str | int) -> tuple[Node, str | int]:
        return self, output


class Front(Node):
    """Where the links from outside enter a subgraph: no node of the file, but it has a place and outputs like one.

    Args:
        slots: (name, type) of each.
    """

    ID = -10

    def __init__(self, slots: list[tuple[str, str]]):
        super().__init__("", 28 + 20 * (len(slots) + 1))  # the editor's: rounded corners, and a slot for one more
        self.slots = slots

    def saved(self) -> dict:
        """What links need of it."""
        return {"outputs": [{"name": name, "type": kind, "links": []} for name, kind in self.slots]}


def note(title: str, text: str, height: int, **more) -> Node:
    """A note in the official colours. Its first sentence is a heading, to be read as the graph opens: there the rest is
    small, because ComfyUI shows notes in the size of its text boxes, at the zoom of the whole graph."""
    lead, _, rest = text.partition(". ")
    return Node("MarkdownNote", height, {"": f"## {lead}\n\n{rest}"}, title=title, **more)


@dataclass
class Group:
    """Nodes below one another, in a coloured frame with a title; without a title there is no frame."""

    title: str
    colour: str
    nodes: list[Node]


@dataclass
class Column:
    """Groups below one another, all `width` pixels wide, the first `down` pixels lower than the top of the template."""

    width: int
    groups: list[Group]
    down: int = 0

    def __post_init__(self) -> None:
        if self.width < NARROWEST:
            raise ValueError(f"a column of {self.width} px: nodes are at least {NARROWEST} px wide")


@dataclass
class Template:
    """A workflow of the bundle.

    Args:
        name: its file, which is its title in ComfyUI's list.
        app: [(node, widget)] that ComfyUI's App mode shows, and the nodes whose results it shows.
        as_app: whether it opens in App mode.
    """

    name: str
    columns: list[Column]
    app: tuple[list[tuple[Node, str]], list[Node]] | None = None
    as_app: bool = False

    def nodes(self) -> list[Node]:
        return [node for column in self.columns for group in column.groups for node in group.nodes]


def build(template: Template, schemas: Mapping[str, Mapping]) -> dict:
    """The workflow of a template as a JSON object.

    Args:
        schemas: what ComfyUI gives under /object_info.
    """
    fronts = [node for node in template.nodes() if isinstance(node, Front)]
    nodes = [node for node in template.nodes() if node not in fronts]
    ids = {node: number for number, node in enumerate(nodes, 1)} | dict.fromkeys(fronts, Front.ID)
    places = places_of(template)
    links: list[list] = []
    saved = {node: _saved(node, ids[node], places[node], schemas.get(node.kind)) for node in nodes}
    saved |= {front: front.saved() for front in fronts}
    for node in nodes:
        for name, (source, output) in node.links.items():
            _join(links, ids, saved, source, output, node, name)
    extra = Lanes(template, places).route(links, {number: node for node, number in ids.items()})
    if template.app:
        inputs, outputs = template.app
        extra["linearData"] = {
            "inputs": [[ids[node], widget] for node, widget in inputs],
            "outputs": [ids[node] for node in outputs],
        }
        extra["linearMode"] = template.as_app
    return {
        "id": str(uuid.uuid5(uuid.NAMESPACE_URL, f"pixart-delta/{template.name}")),
        "revision": 0,
        "last_node_id": len(nodes),
        "last_link_id": len(links),
        "nodes": [saved[node] for node in nodes],
        "links": links,
        "groups": list(_frames(template, places)),
        "config": {},
        "extra": extra,
        "version": 0.4,
    }


def places_of(template: Template) -> dict[Node, tuple[int, int, int, int]]:
    """Where every node stands: x, y, width, height; y is below the title bar, as LiteGraph counts."""
    return dict(_places(template))


def _places(template: Template) -> Iterator[tuple[Node, tuple[int, int, int, int]]]:
    x = 0
    for column in template.columns:
        y = column.down
        for group in column.groups:
            y += _BAND if group.title else 0
            for node in group.nodes:
                y += _TITLE + node.down
                yield node, (x + _PAD, y, column.width + node.wide, node.height)
                y += node.height + node.foot + _GAP
            y += _PAD + _GAP
        x += column.width + 2 * _PAD + _AISLE


def _frames(template: Template, places: Mapping) -> Iterator[dict]:
    titled = [group for column in template.columns for group in column.groups if group.title]
    for number, group in enumerate(titled, 1):
        x, top, width, _ = places[group.nodes[0]]
        _, y, _, height = places[group.nodes[-1]]
        y += group.nodes[-1].foot
        top -= _TITLE + _BAND + group.nodes[0].down
        yield {
            "id": number,
            "title": group.title,
            "bounding": [x - _PAD, top, width + 2 * _PAD, y + height + _PAD - top],
            "color": COLOURS[group.colour],
            "font_size": 24,
            "flags": {},
        }


def _saved(node: Node, number: int, place: tuple[int, int, int, int], schema: Mapping | None) -> dict:
    x, y, width, height = place
    saved: dict[str, Any] = {
        "id": number,
        "type": node.kind,
        "pos": [x, y],
        "size": [width, height],
        "flags": {},
        "order": number - 1,
        "mode": 0,
        "inputs": [],
        "outputs": [],
        "properties": {},
        "widgets_values": list(node.widgets.values()),
    }
    if node.title:
        saved["title"] = node.title
    if schema is None:  # a note: the editor's own
        return saved | NOTE_COLOURS
    saved["properties"]["Node name for S&R"] = node.kind
    if node.models:
        saved["properties"]["models"] = list(node.models)
    inputs = list(inputs_of(schema))
    unknown = set(node.widgets) - {name for name, kind, options in inputs if _is_widget(kind, options)}
    if unknown:
        raise ValueError(f"{node.kind} has no widgets {', '.join(sorted(unknown))}")
    for name, kind, options in inputs:
        if not _is_widget(kind, options):
            saved["inputs"].append({"name": name, "type": kind, "link": None})
        elif name in node.links or name in node.labels:
            label = {"label": node.labels[name]} if name in node.labels else {}
            saved["inputs"].append({"name": name, "type": kind, "link": None, "widget": {"name": name}} | label)
    names = schema.get("output_name") or schema["output"]
    saved["outputs"] = [
        {"name": name, "type": kind if isinstance(kind, str) else "COMBO", "links": []}
        for name, kind in zip(names, schema["output"], strict=True)
    ]
    saved["widgets_values"] = [
        value
        for name, kind, options in inputs
        if _is_widget(kind, options)
        for value in _values(node, name, kind, options)
    ]
    return saved


def inputs_of(schema: Mapping) -> Iterator[tuple[str, str, Mapping]]:
    """Name, type and options of every input, in the order of the editor."""
    for part in ("required", "optional"):
        for name in schema["input_order"].get(part, ()):
            kind, *rest = schema["input"][part][name]
            options = dict(rest[0]) if rest else {}
            if isinstance(kind, list):  # the old way to say what a combo offers
                kind, options = "COMBO", {"options": kind} | options
            if kind == _GROWING:
                prefix, ((_, (inner, *_)),) = (
                    options["template"]["prefix"],
                    options["template"]["input"]["required"].items(),
                )
                yield from ((f"{name}.{prefix}{number}", inner, {}) for number in range(3))
            else:
                yield name, kind, options


def _is_widget(kind: str, options: Mapping) -> bool:
    return kind in _WIDGETS and not options.get("forceInput")


def _values(node: Node, name: str, kind: str, options: Mapping) -> Iterator[Any]:
    first = (options.get("options") or [None])[0] if kind == "COMBO" else {"STRING": "", "BOOLEAN": False}.get(kind, 0)
    yield node.widgets.get(name, options.get("default", first))
    if control := options.get("control_after_generate"):
        yield node.after or (control if isinstance(control, str) else "randomize")
    if options.get("image_upload"):
        yield "image"


def _join(links: list, ids: Mapping, saved: Mapping, source: Node, output, target: Node, name: str) -> None:
    outputs = saved[source]["outputs"]
    slot = output if isinstance(output, int) else [entry["name"] for entry in outputs].index(output)
    entry = [each["name"] for each in saved[target]["inputs"]].index(name)
    number = len(links) + 1
    outputs[slot]["links"].append(number)
    saved[target]["inputs"][entry]["link"] = number
    links.append([number, ids[source], slot, ids[target], entry, outputs[slot]["type"]])


class Lanes:
    """Leads the links that pass by a column through free space, so that none runs behind a node.

    A lane is a height at which nothing stands in any column between the two ends; a dot (a reroute) in the aisle beside
    each end holds the link to it. A link to the node below turns back to the left in the gap between both.
    """

    def __init__(self, template: Template, places: Mapping[Node, tuple[int, int, int, int]]):
        self.places = places
        self.column = {
            node: number
            for number, column in enumerate(template.columns)
            for group in column.groups
            for node in group.nodes
        }
        self.taken = [list(self._standing(column)) for column in template.columns]
        self.lanes: dict[tuple, int] = {}

    def _standing(self, column: Column) -> Iterator[tuple[int, int]]:
        """From where to where something stands in a column: nodes with their titles, titles of groups."""
        for group in column.groups:
            for number, node in enumerate(group.nodes):
                _, y, _, height = self.places[node]
                band = _BAND + node.down if group.title and not number else 0
                yield y - _TITLE - band, y + height

    def route(self, links: list[list], nodes: Mapping[int, Node]) -> dict[str, list]:
        """The reroutes of a workflow, as its `extra` holds them."""
        reroutes: dict[tuple, dict] = {}
        extensions = []
        for link, source, output, target, entry, _ in links:
            ends = nodes[source], nodes[target]
            first, last = (self.column[node] for node in ends)
            if last - first == 1:
                continue
            if last == first:
                y = self._gap(*ends)
            else:
                y = self._lane(source, output, first, last, self._slot(ends[0], output), self._slot(ends[1], entry))
            left, right = self._aisles(*ends)
            parent = None
            for x in dict.fromkeys((left, right)):
                key = source, output, x, y
                if key not in reroutes:
                    reroutes[key] = {"id": len(reroutes) + 1, "pos": [x, y], "linkIds": []}
                    if parent:
                        reroutes[key]["parentId"] = parent
                reroutes[key]["linkIds"].append(link)
                parent = reroutes[key]["id"]
            extensions.append({"id": link, "parentId": parent})
        return {"reroutes": list(reroutes.values()), "linkExtensions": extensions} if extensions else {}

    def _slot(self, node: Node, number: int) -> int:
        return self.places[node][1] + 14 + 20 * number

    def _gap(self, above: Node, below: Node) -> int:
        """The middle between a node and the title of the next."""
        _, y, _, height = self.places[above]
        return (y + height + self.places[below][1] - _TITLE) // 2

    def _aisles(self, source: Node, target: Node) -> tuple[int, int]:
        half = _PAD + _AISLE // 2
        x, _, width, _ = self.places[source]
        return x + width - source.wide + half, self.places[target][0] - half

    def _lane(self, source: int, output: int, first: int, last: int, *wished: int) -> int:
        """The free height nearest to both ends; every output has its own."""
        standing = sorted(itertools.chain.from_iterable(self.taken[first + 1 : last]))
        used = [y for key, y in self.lanes.items() if key != (source, output)]
        low, high = standing[0][0] - 300, max(end for _, end in standing) + 300
        free = [
            y
            for y in range(low, high, 2)
            if all(not top - 10 <= y <= bottom + 10 for top, bottom in standing)
            and all(abs(y - other) >= 12 for other in used)
        ]
        own = self.lanes.get((source, output))
        y = own if own in free else min(free, key=lambda y: sum(abs(y - wish) for wish in wished))
        self.lanes[source, output] = y
        return y
