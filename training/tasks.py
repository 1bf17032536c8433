"""The task of each training command."""

from __future__ import annotations

from .config import TrainConfig
from .control import ControlNet
from .distill import Lcd, LcmLora
from .finetune import Finetune
from .task import Task

TASKS: dict[str, type[Task]] = {task.command: task for task in (Finetune, Lcd, LcmLora, ControlNet)}


def make_task(config: TrainConfig) -> Task:
    """The task of these settings, its networks made."""
    return TASKS[config.command](config)  # type: ignore[arg-type]  # each takes its own settings alone
