"""Grids of pictures that show how far a training is: the same captions, hints and noise every time; and `sample`."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from ..pixart_core.pipeline import default_device
from ..pixart_core.sampling import GUIDANCE, guided, plan_steps
from ..pixart_core.sampling import sample as denoise
from ..pixart_core.text import TextEncoder
from ..pixart_core.vae import decode, load_vae, to_pil
from .checkpoint import restore
from .config import ConfigError, SampleConfig
from .data import FeatureDataset
from .data.contents import current_path
from .data.waiting import Patience
from .task import Task
from .watch.prompts import Prompts

if TYPE_CHECKING:
    from PIL.Image import Image

_PATIENCE = 20.0
"""Seconds."""
_COLUMNS = 4
_GAP = 4
"""Pixels between pictures."""
_SIZED = ("latent", "hint", "image_size", "aspect_ratio")
"""Of an example: what goes with the size of its hint."""
_CONDITIONS = ("caption", "caption_mask", "image_size", "aspect_ratio", "hint")


def sample(config: SampleConfig) -> Path:
    """Draw a grid and write it; returns its path."""
    task, trained, run, step = restore(config.run, config.base)
    models = current_path("models", trained.to_dict(), run.path, config.models)
    if not models:
        raise ConfigError("models is not set, and the run has none: the pipeline folder to make samples with")
    device = default_device()
    # The text encoder goes before the networks come: both at once may be too much for the device.
    data = ""
    if task.needs_hint or not config.prompts:
        data = current_path("data", trained.to_dict(), run.path, config.data)
    if config.prompts:
        batch = _prompted(task, models, data, config.prompts, device)
    else:
        batch, _ = FeatureDataset(data).examples(config.count, task.needs_hint)
    for network in (task.model, task.ema, *task.frozen):
        if network is not None:
            network.to(device)
    path = Path(config.output) if config.output else run.path / "samples" / f"sample_{step:08d}_{config.seed}.png"
    draw_grid(task, batch, load_vae(models, device=device), config.seed).save(path)
    return path


def draw_examples(task: Task, data: str, models: str, count: int) -> tuple[Image, list[str]] | None:
    """A grid of at most `count` pictures for the data's own captions, the same ones every time, and these captions;
    None without a pipeline folder.

    Args:
        data: folder or URL of prepared features.
        models: pipeline folder to decode pictures with; may be empty.

    Raises:
        StoreBusy: if the data's store does not answer soon; samples are not worth a training's waiting.
    """
    if not models:
        return None
    features = FeatureDataset(data, patience=Patience(limit=_PATIENCE))
    batch, captions = features.examples(count, task.needs_hint)
    return draw_grid(task, batch, load_vae(models, device=task.device)), captions


def draw_prompts(task: Task, data: str, models: str, count: int, prompts: Prompts) -> tuple[Image, list[str]]:
    """A row of `count` pictures for each prompt, behind its hint where the task needs one, and the prompts; the n-th
    picture of every row, and of every time, begins with the same noise. Arguments and errors as of `draw_examples`, but
    that there must be a pipeline folder."""
    vae, shape = load_vae(models, device=task.device), task.model.config
    texts, caption, mask = prompts
    latent = torch.empty(count, shape.in_channels, shape.input_size, shape.input_size)
    examples: dict[str, Tensor] = {}
    if task.needs_hint:
        features = FeatureDataset(data, patience=Patience(limit=_PATIENCE))
        examples = {name: value for name, value in features.examples(len(texts), True)[0].items() if name in _SIZED}
    rows = []
    for row in range(len(texts)):
        one = {name: value[row % len(value)].expand(count, *value.shape[1:]) for name, value in examples.items()}
        batch = {"latent": latent, **one}
        batch["caption"] = caption[row].expand(count, *caption.shape[1:])
        batch["caption_mask"] = mask[row].expand(count, -1)
        hints = pictures(vae, one["hint"][:1].to(task.device)) if task.needs_hint else []
        rows.append([*hints, *_draw(task, batch, vae)])
    return contact_sheet(rows), texts


def draw_grid(task: Task, batch: Mapping[str, Any], vae: Any, seed: int = 0) -> Image:
    """Pictures for the captions (and hints) of a batch, with what `task` has learned so far, in rows of four, each row
    below its hints.

    Args:
        vae: from `load_vae`.
        seed: of the noise.
    """
    hints = pictures(vae, batch["hint"].to(task.device)) if task.needs_hint else None
    made, rows = _draw(task, batch, vae, seed), []
    for start in range(0, len(made), _COLUMNS):
        rows += [part[start : start + _COLUMNS] for part in (hints, made) if part is not None]
    return contact_sheet(rows)


def _draw(task: Task, batch: Mapping[str, Any], vae: Any, seed: int = 0) -> list[Image]:
    """A picture for each row of a batch."""
    batch = {name: value.to(task.device) for name, value in batch.items() if isinstance(value, Tensor)}
    with task.autocast():
        latents = sample_latents(task.predictor(), batch, task.sampler, task.null_caption(), seed, task.table)
    return pictures(vae, latents)


@torch.no_grad()
def sample_latents(
    predictor: Callable[..., Tensor],
    batch: Mapping[str, Tensor],
    sampler: str,
    null: Tensor | None,
    seed: int = 0,
    table: Tensor | None = None,
    steps: int | None = None,
    guidance: float | None = None,
) -> Tensor:
    """Latents for the captions (and hints) of a batch.

    Args:
        predictor: see `Task.predictor`.
        batch: as in training; of the latents only the shape is read.
        sampler: "lcm" or "dpm".
        null: unconditional caption (L, D) for the guidance of "dpm"; None = no guidance.
        seed: of the noise.
        table: see `sample_lcm`.
        steps, guidance: None = what the sampler is used with.

    Returns:
        (B, 4, h, w), float32.
    """
    conditions = {name: batch[name] for name in _CONDITIONS if name in batch}
    if sampler == "dpm" and null is not None:
        caption = batch["caption"]
        conditions = {name: torch.cat([value, value]) for name, value in conditions.items()}
        conditions["caption"] = torch.cat([caption, null[: caption.shape[1]].to(caption).expand_as(caption)])
    generator = torch.Generator().manual_seed(seed)
    noise = torch.randn(batch["latent"].shape, generator=generator).to(batch["caption"].device)
    model_fn = guided(predictor, conditions, GUIDANCE[sampler] if guidance is None else guidance)
    return denoise(model_fn, noise, plan_steps(sampler, steps), generator=generator, table=table)


def pictures(vae: Any, latents: Iterable[Tensor]) -> list[Image]:
    """Latents (4, h, w) to pictures, one after the other: at 1024 px an autoencoder takes gigabytes for each."""
    return [to_pil(decode(vae, latent[None]))[0] for latent in latents]


def contact_sheet(rows: list[list[Image]]) -> Image:
    """Pictures side by side, a row each; cells are as large as the largest picture."""
    from PIL import Image

    width, height = (max(getattr(picture, side) for row in rows for picture in row) for side in ("width", "height"))
    columns = max(len(row) for row in rows)
    sheet = Image.new("RGB", (columns * (width + _GAP) - _GAP, len(rows) * (height + _GAP) - _GAP), "white")
    for y, row in enumerate(rows):
        for x, picture in enumerate(row):
            offset = (width - picture.width) // 2, (height - picture.height) // 2
            sheet.paste(picture, (x * (width + _GAP) + offset[0], y * (height + _GAP) + offset[1]))
    return sheet


def _prompted(task: Task, models: str, data: str, prompts: list[str], device: torch.device) -> dict[str, Tensor]:
    """A batch for prompts, in the model's own size; for a ControlNet with the hints of the run's data."""
    shape = task.model.config
    caption, mask = TextEncoder.from_pretrained(models, device=device).encode(prompts, shape.model_max_length)
    batch = {"latent": torch.empty(len(prompts), shape.in_channels, shape.input_size, shape.input_size)}
    if task.needs_hint:
        examples, _ = FeatureDataset(data).examples(len(prompts), True)
        batch = {name: value for name, value in examples.items() if name != "keys"}
        hints = len(batch["latent"])
        if hints < len(prompts):
            raise ConfigError(f"prompts are {len(prompts)}, but the run's data has only {hints} hints of one size")
    return {**batch, "caption": caption.float(), "caption_mask": mask}
