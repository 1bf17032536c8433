"""The ComfyUI side: which nodes there are, and where they look for models."""

from __future__ import annotations

from comfy_api.latest import ComfyExtension, io

from . import checkpoints, conditioning, control, datasets, live, loaders, replacements, sampling, training
from .background import queue as jobs
from .background import routes
from .bridge import files, quiet

SUBJECTS = (loaders, conditioning, sampling, control, live, checkpoints, datasets, training)
NODES: list[type[io.ComfyNode]] = [
    node
    for subject in SUBJECTS
    for name, node in vars(subject).items()
    if name.startswith("PixArtDelta") and issubclass(node, io.ComfyNode)
]
"""Each class of a subject that is called so, in the order in which they stand there."""


class PixArtDeltaExtension(ComfyExtension):
    async def on_load(self) -> None:
        files.register_folder()
        if routes.register():
            quiet.register()
            await replacements.register()
            jobs.watcher()

    async def get_node_list(self) -> list[type[io.ComfyNode]]:
        return NODES
