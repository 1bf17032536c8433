"""What a hint is, going by the node of the graph that made it, and whether a ControlNet was trained on such."""

from __future__ import annotations

import logging
import re
from collections.abc import Mapping
from typing import Any

from .ui import say

# By the names of preprocessor nodes, ours, ComfyUI's and those of other packs; the first that fits counts.
_NODES = {
    "canny": r"Canny",
    "hed": r"HED|SoftEdge|FakeScribble",
    "lineart_anime": r"AnimeLine|LineArtAnime",
    "lineart_standard": r"LineartStandard",
    "lineart": r"Line[Aa]rt|AnyLine",
    "depth": r"Depth|Mi[dD]a[sS]|Zoe|LeRes",
    "normal": r"Normal(Map|Bae|Crafter)",
    "mlsd": r"M-?LSD",
    "softedge": r"Pidi",
    "pose": r"(Open|DW)[Pp]ose",
}
_FAR = 32
"""Nodes that are looked at on the way up."""


def kind_of_image(prompt: Mapping[str, Any] | None, node: str | None, input: str) -> tuple[str, str]:
    """What an IMAGE input of a node is, and the class of the node that made it so: the nearest preprocessor above.

    Args:
        prompt: the graph that is running (id -> class_type and inputs).

    Returns:
        A kind of `training.config.DETECTED` or "hed"; two empty texts if nothing tells.
    """
    seen: set[str] = set()
    graph = prompt or {}
    waiting = _links(graph.get(str(node), {}).get("inputs", {}), input)
    while waiting and len(seen) < _FAR:
        above = waiting.pop(0)
        if above in seen or above not in graph:
            continue
        seen.add(above)
        found = graph[above]
        name = str(found.get("class_type", ""))
        for kind, pattern in _NODES.items():
            if re.search(pattern, name):
                return kind, name
        waiting += _links(found.get("inputs", {}))
    return "", ""


def warn_of_another(trained: str, prompt: Mapping[str, Any] | None, node: str | None) -> str:
    """Say, in the log and at the node, if a ControlNet is given hints of another kind than it was trained on; what is
    said, empty if nothing is.

    trained: the kind that its file remembers; "" for files that do not.
    """
    kind, name = kind_of_image(prompt, node, "image")
    if not trained or not kind or kind == trained:
        return ""
    text = (
        f"this ControlNet was trained on {trained}, and its image comes from {name}, which makes {kind}: the picture "
        "may not follow it"
    )
    say(text, logging.WARNING)
    return text


def _links(inputs: Mapping[str, Any], only: str = "") -> list[str]:
    """Ids of the nodes that inputs are connected to."""
    chosen = [inputs.get(only)] if only else inputs.values()
    return [str(value[0]) for value in chosen if isinstance(value, list) and len(value) == 2]
