"""Compiled kernels, kept from run to run: torch's own cache is a temporary folder, which a restart may clear."""

from __future__ import annotations

import logging
from pathlib import Path

import torch

from .aliases import PathLike
from .saving import replacing

logger = logging.getLogger(__name__)


class KernelFolder:
    """A folder with a file of compiled kernels for each version of torch and kind of device (torch's "mega-cache").

    They are programs: the folder has to be one that only its user writes to. Needs torch 2.7; earlier ones compile in
    every run, and say so.
    """

    def __init__(self, folder: PathLike, device: torch.device):
        self.folder = Path(folder)
        kind = torch.cuda.get_device_name(device) if device.type == "cuda" else device.type
        self.file = self.folder / f"torch-{torch.__version__}-{kind.replace(' ', '_')}.kernels"
        self._kept: set[object] = set()

    def restore(self) -> None:
        """Give torch's cache what earlier runs kept. What cannot be read is compiled again."""
        if not hasattr(torch.compiler, "load_cache_artifacts"):
            logger.warning("this torch (%s) keeps no compiled kernels: torch 2.7 does", torch.__version__)
            return
        if self.file.is_file() and torch.compiler.load_cache_artifacts(self.file.read_bytes()) is None:
            logger.warning("compiling anew: %s is damaged", self.file)  # torch's own log says how

    def keep(self, size: object) -> None:
        """Write what was compiled so far, if `size` is new in this run."""
        if size in self._kept or not hasattr(torch.compiler, "save_cache_artifacts"):
            return
        self._kept.add(size)
        if (artifacts := torch.compiler.save_cache_artifacts()) is not None:
            self.folder.mkdir(parents=True, exist_ok=True)
            with replacing(self.file) as temporary:
                temporary.write_bytes(artifacts[0])
