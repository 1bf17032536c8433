"""The paper's Table 2 on the device at hand: seconds for a picture of 1024 px, with random weights.

    python -m tools.bench table2 [--rehearse] [--rounds 5] [--json output/bench/table2.json]

PixArt-δ with 4 steps, PixArt-α with 14, SDXL with 25, SDXL with LCM-LoRA with 4, all through diffusers' pipelines, and
their text encoders. A LoRA that is fused into its model costs nothing, so the last is SDXL with LCM's scheduler and
without guidance. The paper measured on an A100 in float16; seconds and ratios stand beside its own. Random weights take
the time of trained ones. Ours is measured by `python -m tools.bench gpu`. A CPU takes bfloat16 where it is fast in it
and one round without a warm-up, because SDXL's 25 steps are many minutes there, and 14 GB of memory. --rehearse runs
small networks, whose figures mean nothing. `python -m tools.paper tables` reads the file.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import statistics
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT))

import torch  # noqa: E402
from torch import nn  # noqa: E402

import pixart_core as pc  # noqa: E402
from pixart_core.convert import config_to_diffusers  # noqa: E402
from pixart_core.functional import preferred_dtype  # noqa: E402
from tests.bench import bench_gpu  # noqa: E402

TOKENS = {"t5": 120, "clip": 77}


@dataclass(frozen=True)
class Row:
    """A model's time."""

    name: str
    paper: float
    """Seconds in the paper."""
    seconds: float
    ratio: float
    """Of PixArt-δ's seconds."""


def measure(device: torch.device, rehearse: bool, rounds: int) -> Iterator[Row]:
    """The rows, PixArt-δ's first; one model is on the device at a time."""
    make = Maker(device, rehearse)
    first = 0.0
    for name, paper, build in (
        ("PixArt-δ, 4 steps", 0.5, lambda: make.pixart(steps=4, lcm=True)),
        ("PixArt-α, 14 steps", 2.2, lambda: make.pixart(steps=14, lcm=False)),
        ("SDXL, 25 steps", 3.8, lambda: make.sdxl(steps=25, lcm=False)),
        ("SDXL LCM-LoRA, 4 steps", 1.2, lambda: make.sdxl(steps=4, lcm=True)),
    ):
        call = build()
        seconds = _seconds(call, device, rounds)
        del call
        if device.type == "cuda":
            torch.cuda.empty_cache()
        first = first or seconds
        yield Row(name, paper, seconds, seconds / first)


class Maker:
    """Pipelines with random weights on a device: at true shape, or small ones."""

    def __init__(self, device: torch.device, small: bool):
        self.device, self.small = device, small
        half = torch.float32 if small else preferred_dtype(device)
        self.dtype = torch.float16 if device.type == "cuda" else half

    def pixart(self, steps: int, lcm: bool) -> Callable[[], Any]:
        from diffusers import (
            DPMSolverMultistepScheduler,
            LCMScheduler,
            PixArtAlphaPipeline,
            PixArtTransformer2DModel,
        )
        from transformers import T5Config, T5EncoderModel

        shape = {
            "input_size": 16,
            "hidden_size": 48,
            "depth": 2,
            "num_heads": 4,
            "caption_channels": 64,
            "micro_condition": False,
        }
        config = pc.PixArtConfig(**shape) if self.small else pc.PIXART_1024_MS
        width = config.caption_channels
        layers = {"num_layers": 2, "num_heads": 2, "d_kv": 32, "d_ff": 64}
        true = {"num_layers": 24, "num_heads": 64, "d_kv": 64, "d_ff": 10240}
        t5 = T5Config(d_model=width, feed_forward_proj="gated-gelu", **(layers if self.small else true))
        text = self._random(lambda: T5EncoderModel(t5), torch.bfloat16 if self.device.type == "cuda" else None)
        transformer = self._random(lambda: PixArtTransformer2DModel.from_config(config_to_diffusers(config)))
        scheduler = (LCMScheduler if lcm else DPMSolverMultistepScheduler)(
            beta_start=1e-4, beta_end=0.02, beta_schedule="linear"
        )
        pipeline = PixArtAlphaPipeline(
            tokenizer=None, text_encoder=None, vae=self._vae(), transformer=transformer, scheduler=scheduler
        )
        side = 8 * config.input_size
        ids = torch.ones(1, TOKENS["t5"], dtype=torch.long, device=self.device)

        def encode() -> torch.Tensor:
            return text(input_ids=ids, attention_mask=ids).last_hidden_state.to(self.dtype)

        def call() -> Any:
            positive = encode()
            guided = {} if lcm else {"negative_prompt_embeds": encode(), "negative_prompt_attention_mask": ids}
            return pipeline(
                prompt=None,
                negative_prompt=None,
                prompt_embeds=positive,
                prompt_attention_mask=ids,
                num_inference_steps=steps,
                guidance_scale=0.0 if lcm else 4.5,
                height=side,
                width=side,
                use_resolution_binning=False,
                **guided,
            )

        return self._quiet(pipeline, call)

    def sdxl(self, steps: int, lcm: bool) -> Callable[[], Any]:
        from diffusers import EulerDiscreteScheduler, LCMScheduler, StableDiffusionXLPipeline, UNet2DConditionModel
        from transformers import CLIPTextConfig, CLIPTextModel, CLIPTextModelWithProjection

        small = self.small
        first = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 2}
        second = {**first, "projection_dim": 32}
        if not small:
            first = {"hidden_size": 768, "intermediate_size": 3072, "num_hidden_layers": 12, "num_attention_heads": 12}
            second = {"hidden_size": 1280, "intermediate_size": 5120, "num_hidden_layers": 32}
            second |= {"num_attention_heads": 20, "projection_dim": 1280}
        one = self._random(lambda: CLIPTextModel(CLIPTextConfig(**first)))
        two = self._random(lambda: CLIPTextModelWithProjection(CLIPTextConfig(**second)))
        width = first["hidden_size"] + second["hidden_size"]
        time_dim = 8 if small else 256
        unet = self._random(
            lambda: UNet2DConditionModel(
                sample_size=16 if small else 128,
                down_block_types=("DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"),
                up_block_types=("CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"),
                block_out_channels=(32, 64, 64) if small else (320, 640, 1280),
                layers_per_block=1 if small else 2,
                transformer_layers_per_block=(1, 1, 1) if small else (1, 2, 10),
                attention_head_dim=(1, 2, 2) if small else (5, 10, 20),
                cross_attention_dim=width,
                addition_embed_type="text_time",
                addition_time_embed_dim=time_dim,
                projection_class_embeddings_input_dim=6 * time_dim + second["projection_dim"],
                use_linear_projection=True,
            )
        )
        scheduler = (LCMScheduler if lcm else EulerDiscreteScheduler)(
            beta_start=0.00085, beta_end=0.012, beta_schedule="scaled_linear"
        )
        pipeline = StableDiffusionXLPipeline(
            self._vae(), None, None, None, None, unet, scheduler, add_watermarker=False
        )
        ids = torch.ones(1, TOKENS["clip"], dtype=torch.long, device=self.device)
        side = 128 if small else 1024

        def encode() -> tuple[torch.Tensor, torch.Tensor]:
            hidden, pooled = one(ids, output_hidden_states=True), two(ids, output_hidden_states=True)
            return torch.cat([hidden.hidden_states[-2], pooled.hidden_states[-2]], -1), pooled.text_embeds

        def call() -> Any:
            positive, negative = encode(), None if lcm else encode()
            guided = {}
            if negative is not None:
                guided = {"negative_prompt_embeds": negative[0], "negative_pooled_prompt_embeds": negative[1]}
            return pipeline(
                prompt_embeds=positive[0],
                pooled_prompt_embeds=positive[1],
                num_inference_steps=steps,
                guidance_scale=1.0 if lcm else 7.0,
                height=side,
                width=side,
                **guided,
            )

        return self._quiet(pipeline, call)

    def _vae(self) -> nn.Module:
        from diffusers import AutoencoderKL

        widths = (32, 32, 32, 32) if self.small else (128, 256, 512, 512)
        return self._random(
            lambda: AutoencoderKL(
                block_out_channels=widths,
                down_block_types=("DownEncoderBlock2D",) * 4,
                up_block_types=("UpDecoderBlock2D",) * 4,
                layers_per_block=1 if self.small else 2,
                latent_channels=4,
                force_upcast=False,
            )
        )

    def _random(self, make: Callable[[], nn.Module], dtype: torch.dtype | None = None) -> nn.Module:
        """A network made on the device, with small weights: large ones would end in NaN."""
        with torch.device(self.device), default_dtype(dtype or self.dtype):
            network = make().to(dtype or self.dtype).eval().requires_grad_(False)
        for parameter in network.parameters():
            if parameter.ndim > 1:
                parameter.data.normal_(std=0.02)
        return network

    @staticmethod
    def _quiet(pipeline: Any, call: Callable[[], Any]) -> Callable[[], Any]:
        pipeline.set_progress_bar_config(disable=True)
        return torch.no_grad()(call)


@contextlib.contextmanager
def default_dtype(dtype: torch.dtype) -> Iterator[None]:
    """What is made inside is made in this dtype: T5-XXL in float32 would be 19 GB for a moment."""
    before = torch.get_default_dtype()
    torch.set_default_dtype(dtype)
    try:
        yield
    finally:
        torch.set_default_dtype(before)


def _seconds(call: Callable[[], Any], device: torch.device, rounds: int) -> float:
    """The median of some rounds after a warm-up, or the first where there is one round."""
    taken = []
    for _ in range(rounds + 1 if rounds > 1 else 1):
        begin = time.perf_counter()
        call()
        if device.type == "cuda":
            torch.cuda.synchronize()
        taken.append(time.perf_counter() - begin)
    return statistics.median(taken[1:] or taken)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rehearse", action="store_true")
    parser.add_argument("--rounds", type=int, default=5 if torch.cuda.is_available() else 1)
    parser.add_argument("--json", type=Path, default=ROOT / "output" / "bench" / "table2.json")
    options = parser.parse_args()
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    about = bench_gpu.circumstances(options.rehearse)
    print(f"{about['device']}{', small networks: the figures mean nothing' * options.rehearse}\n")
    print("| model | seconds | ratio | the paper (A100) | its ratio |\n|---|---|---|---|---|")
    rows = []
    for row in measure(device, options.rehearse, options.rounds):
        print(
            f"| {row.name} | {row.seconds:.3f} | {row.ratio:.2f} | {row.paper:g} | {row.paper / 0.5:.2f} |", flush=True
        )
        rows += figures(row)
    options.json.parent.mkdir(parents=True, exist_ok=True)
    options.json.write_text(json.dumps({"about": about, "parts": {"table2": {"figures": rows}}}, indent=1) + "\n")
    return 0


def figures(row: Row) -> list[dict[str, Any]]:
    """A row as two figures, in the form of `bench_gpu`'s file."""
    return [
        {"what": f"{row.name} (the paper: {row.paper:g} s)", "value": row.seconds, "unit": "s"},
        {"what": f"{row.name} / PixArt-δ (the paper: {row.paper / 0.5:.2g})", "value": row.ratio, "unit": "x"},
    ]


if __name__ == "__main__":
    sys.exit(main())
