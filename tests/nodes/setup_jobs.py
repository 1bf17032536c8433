"""A server's folders and our modules of background jobs. No watcher runs: no job ever gets a process."""

from __future__ import annotations

import contextlib
import json
from pathlib import Path
from unittest import mock

BASE = "bundled/nano (base)"
WEIGHTS = "diffusion_pytorch_model.safetensors"
DESCRIPTION = {
    "kind": "pixart_delta_features",
    "version": 2,
    "scaling_factor": 1.0,
    "caption_channels": 64,
    "max_tokens": 40,
    "hints": "",
    "shards": [
        {"name": f"128x128_{number}.tar", "bucket": [128, 128], "count": count, "bytes": 1, "sha256": "0" * 64}
        for number, count in enumerate((12, 5))
    ],
}
"""Of a dataset without hints."""


class Setup:
    """Our modules, and a server's folders with two pictures and a prepared dataset in them."""

    def __init__(self, part, folder: Path):
        import folder_paths

        self.jobs, self.training, self.dataset = (
            part(f"nodes.background.{name}") for name in ("queue", "start", "dataset")
        )
        self.files, self.identify = part("nodes.bridge.files"), part("pixart_core.identify")
        self.estimate, self.result = part("nodes.background.estimate"), part("nodes.background.result")
        self.root, self.hints = part("training.jobs.job"), part("nodes.bridge.hint_kind")
        self.input, self.output = folder / "input", folder / "output"
        folder_paths.set_input_directory(str(self.input))
        folder_paths.set_output_directory(str(self.output))
        folder_paths.set_user_directory(str(folder / "user"))
        self.jobs._queue.cache_clear()  # a node's list of jobs was made before the folders were ours
        self.jobs.watcher = mock.Mock()
        (self.output / "data").mkdir(parents=True, exist_ok=True)
        (self.output / "data" / "dataset.json").write_text(json.dumps(DESCRIPTION))
        self.pictures(self.input / "pictures")
        self.dataset._PATIENCE = 0.1

    @staticmethod
    def pictures(folder: Path, names=("a", "b")) -> None:
        from PIL import Image

        folder.mkdir(parents=True, exist_ok=True)
        for name in names:
            Image.new("RGB", (64, 64), "red").save(folder / f"{name}.png")
            (folder / f"{name}.txt").write_text("red")

    def train(self, name: str, command="lcd", *, more="", estimate_only=False, free=False, recipe="", **changed):
        values = {"base": BASE, "data": "data", "steps": 3, **changed}
        return self.training.start_training(command, name, values, more, estimate_only, free, recipe)

    def prepare(self, name: str, place: str = "pictures", **more):
        values = {"input": place, "models": "bundled/nano", "resolution": 128, **more}
        return self.dataset.prepare_dataset(name, values, "", 16)

    def put(self, job_id: str, state: str, **more):
        """A job as it would be later."""
        job = self.jobs.queue().job(job_id)
        job.state = state
        for name, value in more.items():
            setattr(job, name, value)
        self.root.write_job(self.jobs.queue().records / job_id, job)

    def finish(self, made) -> None:
        """As `prepare` leaves it."""
        made.folder.mkdir(exist_ok=True)
        for name in ("dataset.json", "report.json", "report.txt"):
            (made.folder / name).write_text("{}")
        self.put(made.job, "done")


@contextlib.contextmanager
def raises(text: str):
    try:
        yield
    except (ValueError, OSError, ImportError) as error:
        assert text in str(error), error
    else:
        raise AssertionError(f"no error {text!r}")
