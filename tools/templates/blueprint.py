"""A template without its picture and its saver as one node: a subgraph blueprint, which ComfyUI finds in subgraphs/."""

from __future__ import annotations

import uuid
from collections.abc import Iterator, Mapping
from dataclasses import dataclass

from .layout import Column, Group, Node, Template, build, inputs_of

_APART = {"SaveImage", "PreviewImage", "MarkdownNote", "PixArtDeltaExamplePicture"}
_IN, _OUT = -10, -20
"""Ids of a subgraph's own two ends."""


@dataclass
class Blueprint:
    """A template as a node.

    Args:
        name: of the node, and of its file.
        inputs: (node, name of its input) that the node has in front.
        output: what it gives.
    """

    name: str
    about: str
    aliases: list[str]
    template: Template
    inputs: list[tuple[Node, str]]
    output: Node


def build_blueprint(blueprint: Blueprint, schemas: Mapping[str, Mapping]) -> dict:
    """The file of a blueprint as a JSON object."""
    inner = Template(blueprint.name, list(_columns(blueprint)))
    nodes = inner.nodes()
    for node in nodes:
        node.links = {name: link for name, link in node.links.items() if link[0] in nodes}
    graph = build(inner, schemas)
    links = [dict(zip(_LINK, link, strict=True)) for link in graph["links"]]
    reroutes, ends = graph["extra"].get("reroutes", []), graph["extra"].get("linkExtensions", [])
    for end in ends:
        links[end["id"] - 1]["parentId"] = end["parentId"]
    slots = []
    for slot, (node, name) in enumerate(blueprint.inputs):
        number = len(links) + 1
        kind = next(kind for each, kind, _ in inputs_of(schemas[node.kind]) if each == name)
        target = nodes.index(node) + 1
        links.append(
            {
                "id": number,
                "origin_id": _IN,
                "origin_slot": slot,
                "target_id": target,
                "target_slot": _connect(graph["nodes"][target - 1], name, kind, number),
                "type": kind,
            }
        )
        slots.append({"id": _id(blueprint, name), "name": name, "type": kind, "linkIds": [number], "pos": [0, 0]})
    last = nodes.index(blueprint.output) + 1
    number = len(links) + 1
    links.append(
        {"id": number, "origin_id": last, "origin_slot": 0, "target_id": _OUT, "target_slot": 0, "type": "IMAGE"}
    )
    graph["nodes"][last - 1]["outputs"][0]["links"].append(number)
    subgraph = {
        "id": _id(blueprint, "subgraph"),
        "version": 1,
        "state": {
            "lastGroupId": len(graph["groups"]),
            "lastNodeId": len(nodes),
            "lastLinkId": number,
            "lastRerouteId": len(reroutes),
        },
        "revision": 0,
        "config": {},
        "name": blueprint.name,
        "inputNode": {"id": _IN, "bounding": [-220, 40, 120, 40 + 20 * len(slots)]},
        "outputNode": {"id": _OUT, "bounding": [_right(graph) + 100, 60, 120, 60]},
        "inputs": slots,
        "outputs": [
            {"id": _id(blueprint, "out"), "name": "IMAGE", "type": "IMAGE", "linkIds": [number], "pos": [0, 0]}
        ],
        "widgets": [],
        "nodes": graph["nodes"],
        "groups": graph["groups"],
        "links": links,
        "reroutes": reroutes,
        "extra": {"workflowRendererVersion": "LG"},
        "category": "PixArt-δ",
        "description": blueprint.about,
    }
    return {
        "revision": 0,
        "last_node_id": len(nodes) + 1,
        "last_link_id": 0,
        "nodes": [_outer(blueprint, slots, subgraph["id"], nodes)],
        "links": [],
        "version": 0.4,
        "definitions": {"subgraphs": [subgraph]},
        "extra": {"BlueprintDescription": blueprint.about, "BlueprintSearchAliases": blueprint.aliases},
    }


_LINK = ("id", "origin_id", "origin_slot", "target_id", "target_slot", "type")


def _columns(blueprint: Blueprint) -> Iterator[Column]:
    """Those of the template, without the nodes that stay outside and what that leaves empty."""
    for column in blueprint.template.columns:
        groups = []
        for group in column.groups:
            nodes = [node for node in group.nodes if node.kind not in _APART]
            if nodes:
                groups.append(Group(group.title, group.colour, nodes))
        if groups:
            yield Column(column.width, groups, column.down)


def _connect(saved: dict, name: str, kind: str, link: int) -> int:
    """Put a link on an input of a saved node; returns its slot."""
    names = [entry["name"] for entry in saved["inputs"]]
    if name not in names:
        saved["inputs"].append({"name": name, "type": kind, "link": None, "widget": {"name": name}})
        names.append(name)
    slot = names.index(name)
    saved["inputs"][slot]["link"] = link
    return slot


def _outer(blueprint: Blueprint, slots: list[dict], kind: str, nodes: list[Node]) -> dict:
    inputs, widgets = [], []
    for slot, (node, name) in zip(slots, blueprint.inputs, strict=True):
        entry = {"name": name, "type": slot["type"], "link": None}
        if slot["type"] != "IMAGE":
            entry["widget"] = {"name": name}
            widgets.append([str(nodes.index(node) + 1), name])
            if name == "seed":
                widgets.append([str(nodes.index(node) + 1), "control_after_generate"])
        inputs.append(entry)
    return {
        "id": len(nodes) + 1,
        "type": kind,
        "pos": [0, 0],
        "size": [400, 420],
        "flags": {},
        "order": 0,
        "mode": 0,
        "inputs": inputs,
        "outputs": [{"name": "IMAGE", "type": "IMAGE", "links": []}],
        "title": blueprint.name,
        "properties": {"proxyWidgets": widgets},
        "widgets_values": [],
    }


def _right(graph: dict) -> int:
    return max(node["pos"][0] + node["size"][0] for node in graph["nodes"])


def _id(blueprint: Blueprint, part: str) -> str:
    return str(uuid.uuid5(uuid.NAMESPACE_URL, f"pixart-delta/blueprint/{blueprint.name}/{part}"))


def blueprints() -> Iterator[Blueprint]:
    """Every blueprint of the bundle."""
    from . import control, pictures
    from .weights import NANO

    drawn = pictures.text_to_image(NANO)
    yield Blueprint(
        "Text to Image (PixArt-δ)",
        "A prompt to a picture in 4 steps.",
        ["pixart", "lcm", "fast", "turbo", "text to image"],
        drawn,
        _front(
            drawn,
            ("PixArtDeltaTextEncode", "prompt"),
            ("PixArtDeltaResolution", "width"),
            ("PixArtDeltaResolution", "height"),
            ("PixArtDeltaResolution", "bins"),
            ("PixArtDeltaLCMSampler", "steps"),
            ("PixArtDeltaLCMSampler", "seed"),
            *_LOADERS,
        ),
        _one(drawn, "VAEDecode"),
    )
    controlled = control.edges(NANO)
    yield Blueprint(
        "ControlNet (PixArt-δ)",
        "The edges of a picture and a prompt to a new picture in 4 steps.",
        ["pixart", "control", "edges", "soft edge", "canny", "hed"],
        controlled,
        _front(
            controlled,
            ("PixArtDeltaHEDPreprocessor", "image"),
            ("PixArtDeltaTextEncode", "prompt"),
            ("PixArtDeltaApplyControlNet", "strength"),
            ("PixArtDeltaResolution", "width"),
            ("PixArtDeltaResolution", "height"),
            ("PixArtDeltaResolution", "bins"),
            ("PixArtDeltaLCMSampler", "seed"),
            *_LOADERS,
            ("PixArtDeltaControlNetLoader", "control_net_name"),
            ("PixArtDeltaHEDPreprocessor", "hed_name"),
        ),
        _one(controlled, "VAEDecode"),
    )


_LOADERS = (
    ("PixArtDeltaModelLoader", "model_name"),
    ("PixArtDeltaTextEncoderLoader", "text_encoder_name"),
    ("PixArtDeltaVAELoader", "vae_name"),
)


def _one(template: Template, kind: str) -> Node:
    return next(node for node in template.nodes() if node.kind == kind)


def _front(template: Template, *inputs: tuple[str, str]) -> list[tuple[Node, str]]:
    return [(_one(template, kind), name) for kind, name in inputs]
