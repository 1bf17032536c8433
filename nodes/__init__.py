"""The ComfyUI side: which nodes there are, and where they look for models."""

from __future__ import annotations

from comfy_api.latest import ComfyExtension, io

from . import checkpoints, conditioning, control, live, loaders, replacements, sampling, training
from .background import queue as jobs
from .background import routes
from .bridge import files

NODES: list[type[io.ComfyNode]] = [
    loaders.PixArtDeltaModelLoader,
    loaders.PixArtDeltaTextEncoderLoader,
    loaders.PixArtDeltaVAELoader,
    loaders.PixArtDeltaLoraLoader,
    conditioning.PixArtDeltaTextEncode,
    conditioning.PixArtDeltaResolution,
    sampling.PixArtDeltaLCMSampler,
    sampling.PixArtDeltaLCMSampling,
    checkpoints.PixArtDeltaSaveCheckpoint,
    control.PixArtDeltaControlNetLoader,
    control.PixArtDeltaApplyControlNet,
    control.PixArtDeltaHEDPreprocessor,
    control.PixArtDeltaExamplePicture,
    live.PixArtDeltaLiveCanvas,
    checkpoints.PixArtDeltaSplitControlNet,
    checkpoints.PixArtDeltaMergeControlNet,
    training.PixArtDeltaDataset,
    training.PixArtDeltaTrainLCD,
    training.PixArtDeltaTrainLCMLora,
    training.PixArtDeltaTrainControlNet,
    training.PixArtDeltaFineTune,
    training.PixArtDeltaTrainingStatus,
    training.PixArtDeltaTrainedResult,
    sampling.PixArtDeltaCudaGraphs,
]


class PixArtDeltaExtension(ComfyExtension):
    async def on_load(self) -> None:
        files.register_folder()
        if routes.register():
            await replacements.register()
            jobs.watcher()

    async def get_node_list(self) -> list[type[io.ComfyNode]]:
        return NODES
