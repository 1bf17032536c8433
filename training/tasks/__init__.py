"""What each command trains: its networks, its loss for a batch, and what it exports. The loop knows nothing more."""

from .base import Task
from .controlnet import ControlNet
from .distill import Lcd, LcmLora
from .finetune import Finetune

TASKS: dict[str, type[Task]] = {task.command: task for task in (Finetune, Lcd, LcmLora, ControlNet)}

__all__ = ["TASKS", "Task"]
