"""Texts for the person at the screen."""

from __future__ import annotations

import logging

from comfy_execution.utils import get_executing_context
from server import PromptServer

log = logging.getLogger(__name__)


def say(text: str, level: int = logging.INFO) -> None:
    """Log a text and show it under the node that is running."""
    log.log(level, text)
    context = get_executing_context()
    if context is not None and PromptServer.instance is not None:
        PromptServer.instance.send_progress_text(text, context.node_id)
