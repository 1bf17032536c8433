"""The ComfyUI side: which nodes there are, and where they look for models."""

from __future__ import annotations

from comfy_api.latest import ComfyExtension, io

from .background import queue as jobs
from .background import routes
from .bridge import files
from .checkpoints import PixArtDeltaMergeControlNet, PixArtDeltaSaveCheckpoint, PixArtDeltaSplitControlNet
from .conditioning import PixArtDeltaResolution, PixArtDeltaTextEncode
from .control import (
    PixArtDeltaApplyControlNet,
    PixArtDeltaControlNetLoader,
    PixArtDeltaExamplePicture,
    PixArtDeltaHEDPreprocessor,
)
from .loaders import (
    PixArtDeltaLoraLoader,
    PixArtDeltaModelLoader,
    PixArtDeltaTextEncoderLoader,
    PixArtDeltaVAELoader,
)
from .sampling import PixArtDeltaLCMSampler, PixArtDeltaLCMSampling
from .training import (
    PixArtDeltaDataset,
    PixArtDeltaFineTune,
    PixArtDeltaTrainControlNet,
    PixArtDeltaTrainedResult,
    PixArtDeltaTrainingStatus,
    PixArtDeltaTrainLCD,
    PixArtDeltaTrainLCMLora,
)

NODES: list[type[io.ComfyNode]] = [
    PixArtDeltaModelLoader,
    PixArtDeltaTextEncoderLoader,
    PixArtDeltaVAELoader,
    PixArtDeltaLoraLoader,
    PixArtDeltaTextEncode,
    PixArtDeltaResolution,
    PixArtDeltaLCMSampler,
    PixArtDeltaLCMSampling,
    PixArtDeltaSaveCheckpoint,
    PixArtDeltaControlNetLoader,
    PixArtDeltaApplyControlNet,
    PixArtDeltaHEDPreprocessor,
    PixArtDeltaExamplePicture,
    PixArtDeltaSplitControlNet,
    PixArtDeltaMergeControlNet,
    PixArtDeltaDataset,
    PixArtDeltaTrainLCD,
    PixArtDeltaTrainLCMLora,
    PixArtDeltaTrainControlNet,
    PixArtDeltaFineTune,
    PixArtDeltaTrainingStatus,
    PixArtDeltaTrainedResult,
]


class PixArtDeltaExtension(ComfyExtension):
    async def on_load(self) -> None:
        files.register_folder()
        if routes.register():
            jobs.watcher()

    async def get_node_list(self) -> list[type[io.ComfyNode]]:
        return NODES
