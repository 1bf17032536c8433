"""What the parts of bench_gpu.py measure with."""

from __future__ import annotations

import contextlib
import gc
import importlib.util
import json
import shutil
import statistics
import sys
import time
import traceback
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT))

import torch  # noqa: E402

import pixart_core as pc  # noqa: E402

NANO = ROOT / "models" / "nano"
PROMPT = "a small house under a red tree at the lake, mountains in the evening sun, a boat on the water"
GB = 1e9


class Bench:
    """What a part measures with: the device, sizes, and the file that each figure goes to as soon as it is there."""

    def __init__(self, out: Path, folder: Path, rehearse: bool):
        self.out, self.rehearse, self._folder = out, rehearse, folder
        self.device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
        self.rounds = 1 if rehearse else 7
        self.large, self.small = (128, 64) if rehearse else (1024, 512)
        self.figures: list[dict[str, Any]] = []
        self.left_out: list[str] = []
        self.failed: list[str] = []

    @property
    def folder(self) -> Path:
        """The true-shape pipeline, or the bundled family in a rehearsal."""
        if self.rehearse:
            return NANO
        if not (self._folder / "model_index.json").is_file():
            from tests.bench.bench_pipeline import make_folder

            begun = self._folder.with_name(f"{self._folder.name}.begun")  # a part may be ended while it makes it
            shutil.rmtree(begun, ignore_errors=True)
            make_folder(begun)
            begun.rename(self._folder)
        return self._folder

    def add(self, what: str, value: float, unit: str = "", most: float | None = None, least: float | None = None):
        """A figure, with its target: at most, or at least."""
        figure: dict[str, Any] = {"what": what, "value": float(value), "unit": unit}
        if most is not None:
            figure |= {"target": f"≤ {most:g}", "met": value <= most}
        if least is not None:
            figure |= {"target": f"≥ {least:g}", "met": value >= least}
        self.figures.append(figure)
        self._write()
        print(f"  {what}: {value:.4g} {unit}", flush=True)

    @contextlib.contextmanager
    def apart(self, what: str) -> Iterator[None]:
        """What fails inside fails the part, but only after the rest of it was measured."""
        try:
            yield
        except Exception as error:
            traceback.print_exc()
            self.failed.append(f"{what}: {type(error).__name__}: {str(error)[:500]}")
            self._write()

    @contextlib.contextmanager
    def needing(self, *packages: str) -> Iterator[None]:
        """What is inside is left out, and said, where one of these is not there."""
        try:
            yield
        except ImportError as error:
            lacking = next((name for name in packages if name in str(error)), None)
            if lacking is None:
                raise
            self.leave_out(f"what needs {lacking}: {error}")

    def has(self, package: str) -> bool:
        """Whether it is there; what needs it in another process is left out, and said, where it is not."""
        found = importlib.util.find_spec(package) is not None
        if not found:
            self.leave_out(f"what needs {package}: it is not installed")
        return found

    def leave_out(self, text: str) -> None:
        self.left_out.append(text)
        self._write()

    def _write(self) -> None:
        self.out.write_text(json.dumps({"figures": self.figures, "left_out": self.left_out, "failed": self.failed}))

    def wait(self) -> None:
        """Until the device has done what it was given."""
        if self.device.type == "cuda":
            torch.cuda.synchronize()

    def seconds(self, call: Callable[[], Any], warm: int = 3) -> float:
        """Median of some rounds, after some that do not count."""
        for _ in range(1 if self.rehearse else warm):
            call()
        taken = []
        for _ in range(self.rounds):
            self.wait()
            begin = time.perf_counter()
            call()
            self.wait()
            taken.append(time.perf_counter() - begin)
        return statistics.median(taken)

    def peak(self, call: Callable[[], Any]) -> float:
        """GB that a call needs beyond what is there before; 0 without CUDA."""
        call()
        if self.device.type != "cuda":
            return 0.0
        self.free()
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        call()
        return (torch.cuda.max_memory_allocated() - before) / GB

    def free(self) -> None:
        gc.collect()
        if self.device.type == "cuda":
            torch.cuda.empty_cache()

    def pipeline(self, **options: Any) -> pc.Pipeline:
        return pc.Pipeline.from_pretrained(self.folder, device=self.device, **options)
