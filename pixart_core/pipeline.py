"""Prompts to pictures without ComfyUI: encode, sample (LCM, or DPM-Solver++ with guidance), decode."""

from __future__ import annotations

import contextlib
import logging
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from .aliases import Device, DType, PathLike
from .checkpoint import load_controlnet, load_pixart
from .compiled import KernelFolder
from .controlnet import ControlNetTransformer, Hint, hint_rgb
from .convert import is_transformer
from .errors import CheckpointError
from .functional import sampling_dtype
from .graphs import Graphs
from .identify import inspect_file, is_scaled_linear
from .layers import compile_blocks
from .lcm import NotFiniteError
from .memory import MemoryPlan, TextShape, VaeShape, memory_plan
from .model import PixArt
from .resolution import nearest_bin, resize_and_crop
from .sampling import GUIDANCE, Callback, dpm_timesteps, guided, plan_steps, sample
from .schedule import alphas_cumprod
from .steps import Control, Steps
from .t5 import is_t5
from .text import EmbeddingCache, TextEncoder
from .vae import FACTOR, decode, encode, is_autoencoder, load_vae, to_pil
from .weightfolder import find_part, snapshot

logger = logging.getLogger(__name__)


class Pipeline:
    """A transformer, its text encoder and its autoencoder.

    Args:
        transformer: a `PixArt` on `device`.
        text: a `TextEncoder` as wide as the transformer's captions.
        vae: from `vae.load_vae`.
        controlnet: a ControlNet's file or folder, read when the first hint comes, or the network itself in the
            transformer's dtype; None = no hints.
        device: where everything runs.
        low_memory: keep only the model on the device that is working; the text encoder leaves memory after a prompt,
            or, quantised and on CUDA, waits in pinned host memory.
        graphs: on a CUDA device capture what a size launches, and replay it from the third use on (see `graphs`): a
            picture at batch 1 then no longer waits for Python, and takes memory for its activations for good. Never
            with low_memory.
        compile: torch.compile the blocks and the decoder, in place: half a minute once on a GPU. A folder keeps what
            was compiled from run to run, see `compiled.KernelFolder`; with True torch alone does, in a temporary one.
    """

    _may_widen = False
    """Whether float16 was our choice: where it overflows we may choose again."""
    table: Tensor | None = None
    """ᾱ of the noise schedule of LCM sampling; None = PixArt's. `from_pretrained` takes that of the training."""

    def __init__(
        self,
        transformer: PixArt,
        text: TextEncoder,
        vae: Any,
        controlnet: ControlNetTransformer | PathLike | None = None,
        device: Device = None,
        low_memory: bool = False,
        graphs: bool = True,
        compile: bool | PathLike = False,
    ):
        if text.width != transformer.config.caption_channels:
            raise ValueError(
                f"the text encoder {text.folder} makes embeddings {text.width} wide, the transformer "
                f"takes {transformer.config.caption_channels}: use the encoder that it was trained with"
            )
        self.transformer, self.text, self.vae = transformer, text, vae
        self.device = torch.device("cpu" if device is None else device)
        self.low_memory = low_memory
        self.graphs = text.graphs = Graphs() if graphs and not low_memory else None
        self._kernels: KernelFolder | None = None
        if compile:
            compile_blocks(transformer)
            vae.decoder.compile()
            if not isinstance(compile, bool):
                self._kernels = KernelFolder(compile, self.device)
                self._kernels.restore()
        self.seconds: dict[str, float] = {}
        """Seconds of the last call: encode, sample, decode."""
        self.controlnet = controlnet

    @classmethod
    def from_pretrained(
        cls,
        folder: PathLike,
        dtype: DType = None,
        device: Device = None,
        quantization: str | None = None,
        *,
        transformer: PathLike | None = None,
        controlnet: ControlNetTransformer | PathLike | None = None,
        cache: EmbeddingCache | PathLike | None = None,
        low_memory: bool = False,
        graphs: bool = True,
        compile: bool | PathLike = False,
    ) -> Pipeline:
        """Open a diffusers pipeline folder: transformer/, text_encoder/, tokenizer/, vae/ and maybe controlnet/.

        Args:
            dtype: of the weights; None = what the device is fast in (the autoencoder: float32 on a CPU), and on a GPU
                float16 for the networks that sample: as fast as bfloat16 and eight times as exact (x₀ of one step is
                off by 0.007 standard deviations, and not by 0.06). A model that overflows it goes on in bfloat16. The
                text encoder takes bfloat16 for float16, which T5 overflows.
            device: None = the accelerator if there is one, else the CPU.
            quantization: of the text encoder: None or "none", "int8", "int4".
            transformer, controlnet: other files or folders to take these from.
            cache: folder, or `EmbeddingCache`, that keeps embeddings.
            low_memory, graphs, compile: see `Pipeline`.

        Raises:
            CheckpointError: naming the folder or file that is missing, damaged or of another kind.
        """
        folder = Path(folder)
        if not folder.is_dir():
            problem = "is a file, not a folder" if folder.exists() else "does not exist"
            raise CheckpointError(f"pipeline folder {folder} {problem}: give a folder with model_index.json")
        folder = snapshot(folder)
        needed: dict[str, Callable[[Mapping[str, Any]], bool]] = {"text_encoder": is_t5, "vae": is_autoencoder}
        if transformer is None:
            needed["transformer"] = is_transformer
        parts = {name: find_part(folder, name, is_it) for name, is_it in needed.items()}
        if lacking := [name for name, part in parts.items() if part == folder]:
            raise CheckpointError(
                f"{folder} is not a pipeline folder: it has no {'/, '.join(lacking)}/. One is made "
                f"of {'/, '.join(needed)}/, as PixArt's repositories on Hugging Face are"
            )
        device = torch.device(device) if device is not None else default_device()
        text_dtype = torch.bfloat16 if dtype == torch.float16 else dtype
        text = TextEncoder.from_pretrained(folder, text_dtype, device, quantization, cache)
        start = "cpu" if low_memory else device
        weights = parts["transformer"] if transformer is None else transformer
        model = load_pixart(weights, dtype or sampling_dtype(device), start)
        if controlnet is None and (folder / "controlnet").is_dir():
            controlnet = folder / "controlnet"
        pipeline = cls(model, text, load_vae(folder, dtype, device), controlnet, device, low_memory, graphs, compile)
        pipeline._may_widen = dtype is None
        if is_scaled_linear(inspect_file(weights)):
            pipeline.table = alphas_cumprod(scaled_linear=True)
        logger.info("%s", pipeline.memory_plan())
        return pipeline

    def memory_plan(
        self, width: int | None = None, height: int | None = None, batch: int = 1, tile: int | None = None
    ) -> MemoryPlan:
        """What a picture needs in memory, stage by stage."""
        return memory_plan(
            self.transformer.config,
            TextShape.from_config(self.text.config),
            VaeShape.from_module(self.vae),
            height,
            width,
            batch,
            self._dtype,
            self.text.quantization,
            vae_dtype=self.vae.dtype,
            text_dtype=self.text.dtype,
            keep=not self.low_memory,
            tile=tile,
            int8_blocks=self.transformer.has_int8_blocks,
        )

    def __call__(
        self,
        prompt: str | Sequence[str],
        steps: int | None = None,
        seed: int = 0,
        *,
        width: int | None = None,
        height: int | None = None,
        use_bins: bool = False,
        tile: int | None = None,
        **options: Any,
    ) -> list[Any]:
        """Make pictures.

        Args:
            prompt, steps, seed, width, height, options: see `sample`.
            use_bins: sample at the nearest size that the model was trained at, then resize and crop.
            tile: side in px of the tiles to decode large pictures in, see `vae.decode`; None = whole.

        Returns:
            len(prompts) · batch PIL images.

        Raises:
            ValueError: as `sample`.
        """
        asked = self._size(width, height)
        size = nearest_bin(*asked, self.transformer.config.input_size * FACTOR) if use_bins else asked
        latent = self.sample(prompt, steps, seed, width=size[1], height=size[0], **options)
        with self._stage("decode"):
            pictures = to_pil(decode(self.vae, latent, asked, self.graphs, tile))
        if self._kernels is not None:
            self._kernels.keep((latent.shape, tile))
        return pictures

    @torch.no_grad()
    def sample(
        self,
        prompt: str | Sequence[str],
        steps: int | None = None,
        seed: int = 0,
        *,
        width: int | None = None,
        height: int | None = None,
        sampler: str = "lcm",
        grid: str = "diffusers",
        guidance: float | None = None,
        negative_prompt: str = "",
        clean_caption: bool = False,
        hint: Any = None,
        batch: int = 1,
        callback: Callback | None = None,
    ) -> Tensor:
        """As `__call__`, but returns the latent (B, 4, height / 8, width / 8), float32.

        Args:
            prompt: one, or several for one picture each.
            steps: 1 … 8 with "lcm" (None = 4), any number with "dpm" (None = 14).
            seed: of the noise. One generator on the CPU draws the starting noise of the whole batch, then that of every
                LCM step but the last; so the same seed gives the same picture everywhere.
            width, height: in px, multiples of 8; None = the model's own size.
            sampler: "lcm" for PixArt-δ, "dpm" (DPM-Solver++) for PixArt-α.
            grid: LCM timesteps, see `lcm_timesteps`.
            guidance: None = off for "lcm" (it is distilled into the model), 4.5 for "dpm"; 0 and 1 are off.
            negative_prompt: what guidance leads away from; "" takes the learned null caption if the model has one.
            clean_caption: see `text.normalize_prompt`.
            hint: for the ControlNet: a `Hint`, or its image alone.
            batch: pictures of every prompt.
            callback: called as callback(step, denoised latent) after every step; raising from it stops the run.

        Raises:
            ValueError: on a size, number of steps, sampler, prompt or hint that cannot be used, and on models that
                return NaN.
        """
        prompts = [prompt] if isinstance(prompt, str) else list(prompt)
        height, width = self._size(width, height)
        if not prompts or batch < 1:
            raise ValueError(f"nothing to make: {len(prompts)} prompts, batch {batch}")
        timesteps = plan_steps(sampler, steps, grid)
        guidance = GUIDANCE[sampler] if guidance is None else guidance
        if sampler == "lcm" and guidance > 1:
            logger.warning("guidance %g on LCM sampling: a distilled model has its guidance built in", guidance)
        if hint is not None and self.controlnet is None:
            raise ValueError("a hint needs a ControlNet: give from_pretrained a controlnet")
        hint = hint if isinstance(hint, Hint | None) else Hint(hint)
        self.seconds = {}

        with self._stage("encode"):
            caption, mask = self._encode(prompts, negative_prompt, guidance > 1, batch, clean_caption)
        hint_latent = None
        if hint is not None and hint.strength != 0:
            with self._stage("hint"):
                hint_latent = self._hint_latent(hint.image, height, width, len(prompts) * batch)
        shape = (len(prompts) * batch, self.transformer.config.in_channels, height // FACTOR, width // FACTOR)

        def denoise() -> Tensor:
            generator = torch.Generator("cpu").manual_seed(seed)
            noise = torch.randn(shape, generator=generator, dtype=torch.float32).to(self.device)
            predictor = self._predictor(timesteps, hint, hint_latent)
            model_fn = guided(predictor, {"caption": caption, "caption_mask": mask}, guidance)
            return sample(model_fn, noise, timesteps, generator=generator, callback=callback, table=self.table)

        with self._stage("sample"):
            try:
                return denoise()
            except NotFiniteError:
                if not self._widen():
                    raise
            return denoise()

    @property
    def _dtype(self) -> torch.dtype:
        return self.transformer.product_dtype

    def _load_controlnet(self) -> ControlNetTransformer:
        assert self.controlnet is not None, "`sample` refuses hints without one"
        if not isinstance(self.controlnet, ControlNetTransformer):
            self.controlnet = load_controlnet(self.controlnet, self._dtype, self.device, config=self.transformer.config)
        return self.controlnet

    def _size(self, width: int | None, height: int | None) -> tuple[int, int]:
        side = self.transformer.config.input_size * FACTOR
        height, width = side if height is None else height, side if width is None else width
        for name, value in (("width", width), ("height", height)):
            if isinstance(value, bool) or not isinstance(value, int) or value < FACTOR or value % FACTOR:
                nearest = max(FACTOR, int(value) // FACTOR * FACTOR)
                raise ValueError(
                    f"{name} must be a multiple of {FACTOR} px, got {value}: try {nearest} or {nearest + FACTOR}"
                )
        return height, width

    def _encode(
        self, prompts: list[str], negative: str, guided: bool, batch: int, clean_caption: bool
    ) -> tuple[Tensor, Tensor]:
        """Captions and masks for every picture; with guidance the unconditional half comes second."""
        length = self.transformer.config.model_max_length
        learned = guided and not negative.strip() and self.transformer.y_embedder.y_embedding is not None
        texts = prompts + ([negative] if guided and not learned else [])
        caption, mask = self.text.encode(texts, length, clean_caption)
        count = len(prompts)
        conditional, conditional_mask = (x[:count].repeat_interleave(batch, 0) for x in (caption, mask))
        if not guided:
            return conditional, conditional_mask
        if learned:  # under the caption's own mask, as it was trained (caption dropout) and as the authors sample
            null = self.transformer.null_caption(count * batch, length).to(caption)
            return torch.cat([conditional, null]), conditional_mask.repeat(2, 1)
        null, null_mask = caption[count:].expand(count * batch, -1, -1), mask[count:].expand(count * batch, -1)
        return torch.cat([conditional, null]), torch.cat([conditional_mask, null_mask])

    def _predictor(self, steps: Sequence[int] | int, hint: Hint | None, latent: Tensor | None) -> Steps:
        """The transformer for the steps of `plan_steps`, with the ControlNet's residuals for a hint's latent
        (B, 4, h, w) where the hint acts."""
        timesteps = dpm_timesteps(steps) if isinstance(steps, int) else steps
        control = None
        if hint is not None and latent is not None:
            active = [hint.covers(timestep) for timestep in timesteps]
            if any(active):
                control = Control(self._load_controlnet(), latent, hint.strength, active)
        return Steps(self.transformer, timesteps, control, self.graphs)

    def _widen(self) -> bool:
        """Give the networks that sample bfloat16's range, where float16 was our choice."""
        if not self._may_widen or self._dtype != torch.float16:
            return False
        logger.warning("the model overflows float16: it goes on in bfloat16, and this picture is sampled anew")
        networks: list[PixArt | ControlNetTransformer] = [self.transformer]
        if isinstance(self.controlnet, ControlNetTransformer):
            networks.append(self.controlnet)
        for network in networks:
            for tensor in (*network.parameters(), *network.buffers()):
                if tensor.dtype == torch.float16:
                    tensor.data = tensor.data.bfloat16()
        return True

    def _hint_latent(self, hint: Any, height: int, width: int, count: int) -> Tensor:
        if not isinstance(hint, Tensor):
            import numpy

            mode = "RGBA" if hint.has_transparency_data else "RGB"
            hint = torch.from_numpy(numpy.array(hint.convert(mode))).float()[None] / 255
        if hint.ndim == 4 and hint.shape[-1] in (1, 3, 4) and hint.shape[1] != self.transformer.config.in_channels:
            pictures = resize_and_crop(hint_rgb(hint.movedim(-1, 1)), height, width, average=True)
            hint = encode(self.vae, pictures.permute(0, 2, 3, 1))
        shape = (self.transformer.config.in_channels, height // FACTOR, width // FACTOR)
        if tuple(hint.shape[1:]) != shape or len(hint) not in (1, count):
            raise ValueError(
                f"a hint is a PIL image, 1 or {count} pictures (B, H, W, 3), or a latent (B, "
                f"{', '.join(map(str, shape))}); got shape {tuple(hint.shape)}"
            )
        if not hint.isfinite().all():
            raise ValueError(
                "the hint's latent holds NaN or infinite values: the autoencoder is damaged, or its dtype overflows"
            )
        return hint.to(self.device).expand(count, -1, -1, -1)

    @contextlib.contextmanager
    def _stage(self, name: str) -> Iterator[None]:
        """Times a stage and, with low_memory, has only its models on the device."""
        if self.low_memory:
            self._make_room(name)
        start = time.perf_counter()
        try:
            yield
        finally:
            if self.device.type == "cuda":
                torch.cuda.synchronize(self.device)
            self.seconds[name] = time.perf_counter() - start

    def _make_room(self, name: str) -> None:
        if name != "encode":
            self.text.leave_device()
        self.transformer.to(self.device if name == "sample" else "cpu")
        if isinstance(self.controlnet, ControlNetTransformer):
            self.controlnet.to(self.device if name == "sample" else "cpu")
        self.vae.to(self.device if name in ("decode", "hint") else "cpu")
        if self.device.type == "cuda":
            torch.cuda.empty_cache()


def default_device() -> torch.device:
    """The accelerator if there is one, else the CPU."""
    if torch.cuda.is_available():
        return torch.device("cuda")
    return torch.device("mps" if torch.backends.mps.is_available() else "cpu")
