"""Runs that follow a drawing tell a connection of their own (web/live/quiet.mjs) how far they are, and not the editor.

A run sends some thirty messages. For each the editor draws itself anew, which takes a browser without a GPU longer than
the small model takes for the picture.
"""

from __future__ import annotations

from collections.abc import Container
from typing import Any

from server import PromptServer

CANVAS = "PixArtDeltaLiveCanvas"
PREFIX = "pixart_delta_live_"
"""Before the id of the page's own connection: the id of the other one."""


def register() -> None:
    """Look at every prompt that ComfyUI's server is given."""
    server = PromptServer.instance
    server.add_on_prompt_handler(lambda prompt: send_apart(prompt, server.sockets))


def send_apart(request: dict[str, Any], connected: Container[str]) -> dict[str, Any]:
    """A request to run a prompt as the server shall take it.

    It is one of those that follow a drawing where its page asks for the canvas among the outputs to run, which ComfyUI
    passes over as it is no output; and where the page listens for it.

    Args:
        connected: ids of all connections.
    """
    targets, nodes = request.get("partial_execution_targets"), request.get("prompt")
    if not isinstance(targets, list) or not isinstance(nodes, dict):
        return request
    apart = f"{PREFIX}{request.get('client_id')}"
    asked = [nodes[target] for target in targets if isinstance(target, str) and target in nodes]
    if apart in connected and any(isinstance(node, dict) and node.get("class_type") == CANVAS for node in asked):
        return request | {"client_id": apart}
    return request
