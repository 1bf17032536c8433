"""A template without its picture and its saver as one node: a subgraph blueprint, which ComfyUI finds in subgraphs/."""

from __future__ import annotations

import uuid
from collections.abc import Iterator, Mapping
from dataclasses import dataclass

from .layout import NARROWEST, Column, Front, Group, Node, Template, build, inputs_of, note, places_of

_APART = {"SaveImage", "PreviewImage", "MarkdownNote", "PixArtDeltaExamplePicture"}
_OUT = -20
"""Id of the end of a subgraph."""
_FRONT_WIDTH = 153
"""Pixels that the editor makes of the names of the inputs."""
_ABOVE = 60
"""Pixels that the view begins above the columns: links pass there, which the editor's bars would cover."""


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
    front = Front([(name, _type(schemas[node.kind], name)) for node, name in blueprint.inputs])
    inner = Template(blueprint.name, [_entrance(blueprint, front), *_columns(blueprint)])
    nodes = [node for node in inner.nodes() if node is not front]
    for node in nodes:
        node.links = {name: link for name, link in node.links.items() if link[0] in nodes}
    for node, name in blueprint.inputs:
        node.links[name] = front[name]
    graph = build(inner, schemas)
    links = [dict(zip(_LINK, link, strict=True)) for link in graph["links"]]
    reroutes, ends = graph["extra"].get("reroutes", []), graph["extra"].get("linkExtensions", [])
    for end in ends:
        links[end["id"] - 1]["parentId"] = end["parentId"]
    slots = [
        {"id": _id(blueprint, name), "name": name, "type": kind, "linkIds": [link["id"]], "pos": [0, 0]}
        for slot, (name, kind) in enumerate(front.slots)
        for link in links
        if (link["origin_id"], link["origin_slot"]) == (Front.ID, slot)
    ]
    last = nodes.index(blueprint.output) + 1
    number = len(links) + 1
    links.append(
        {"id": number, "origin_id": last, "origin_slot": 0, "target_id": _OUT, "target_slot": 0, "type": "IMAGE"}
    )
    graph["nodes"][last - 1]["outputs"][0]["links"].append(number)
    x, y, _, height = places_of(inner)[front]
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
        "inputNode": {"id": Front.ID, "bounding": [x + NARROWEST - _FRONT_WIDTH, y, _FRONT_WIDTH, height]},
        "outputNode": {"id": _OUT, "bounding": [_right(graph) + 70, 60, 100, 68]},
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


def _entrance(blueprint: Blueprint, front: Front) -> Column:
    """What comes from outside, and a note: it makes the editor, which fits the view to nodes alone, show the names of
    the inputs, and the links above the columns, too."""
    says = (
        f"{blueprint.about} Open this node to see or change how. What enters on the left are the inputs of the node "
        "outside, where most of them are widgets."
    )
    remark = note(blueprint.name, says, 240 + _ABOVE)
    return Column(NARROWEST, [Group("", "", [remark]), Group("", "", [front])], down=-_ABOVE)


def _type(schema: Mapping, name: str) -> str:
    return next(kind for each, kind, _ in inputs_of(schema) if each == name)


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
