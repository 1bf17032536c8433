"""What nodes say to the person at the screen."""

from __future__ import annotations

import logging
from typing import Any

from comfy_api.latest import ui
from comfy_execution.utils import get_executing_context
from server import PromptServer

log = logging.getLogger(__name__)


JOB_KEY = "pixart_delta_job"
"""In what a node reports of its execution: the job that it is about, whose progress the browser then shows there."""


SAID = "pixart_delta.said"
"""The event by which the browser shows a text under a node (web/said.mjs): prompt, node, text, alone."""


def about_job(text: str, job_id: str) -> dict[str, Any]:
    """A node's report: its text, whose first line says how far its job is, and the id of the job if there is one."""
    return ui.PreviewText(text).as_dict() | ({JOB_KEY: [job_id]} if job_id else {})


def say(text: str, level: int = logging.INFO) -> None:
    """Log a text and show it under the node that is running."""
    log.log(level, text)
    show(text)


_said: dict[str, set[tuple[str, str]]] = {}
"""What `say_once` has said in the prompt that is running: its id -> pairs of node and text."""


def say_once(text: str, level: int = logging.INFO) -> None:
    """`say`, once for a node of a prompt, however often it samples."""
    context = get_executing_context()
    if context is not None:
        if context.prompt_id not in _said:
            _said.clear()
        said = _said.setdefault(context.prompt_id, set())
        if (context.node_id, text) in said:
            return
        said.add((context.node_id, text))
    say(text, level)


def show_progress(text: str) -> None:
    """Show how far the running node is, in the place of what it said before; an empty text takes it away."""
    _send(text, alone=True)


def show(text: str) -> None:
    """Show a text under the node that is running, until it runs again.

    One of several texts of a run, each on its own line. Not by ComfyUI's own `send_progress_text`: its place is three
    lines high, and breaks in the middle of words.
    """
    _send(text, alone=False)


def _send(text: str, alone: bool) -> None:
    context, server = get_executing_context(), getattr(PromptServer, "instance", None)
    if context is not None and server is not None:
        said = {"prompt": context.prompt_id, "node": context.node_id, "text": text, "alone": alone}
        server.send_sync(SAID, said, server.client_id)
