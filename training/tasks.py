"""The task of each training command."""

from __future__ import annotations

from .control import ControlNet
from .distill import Lcd, LcmLora
from .finetune import Finetune
from .task import Task

TASKS: dict[str, type[Task]] = {task.command: task for task in (Finetune, Lcd, LcmLora, ControlNet)}
