"""What the templates load: one of the bundled nano families, or the released weights.

The addresses here are the only ones in the project that name a host to download from. They could not be tried where
this is developed; ComfyUI's dialog on missing models offers them.
"""

from __future__ import annotations

from dataclasses import dataclass

HUB = "https://huggingface.co"


@dataclass(frozen=True)
class File:
    """A file to download: what it is called here, where it is, which of ComfyUI's model folders it goes into."""

    name: str
    repository: str
    path: str
    directory: str
    about: str

    def as_model(self) -> dict[str, str]:
        """As ComfyUI's dialog on missing models reads it."""
        return {
            "name": self.name,
            "url": f"{HUB}/{self.repository}/resolve/main/{self.path}",
            "directory": self.directory,
        }

    def line(self) -> str:
        """For a note."""
        other = "" if self.path.endswith(self.name) else f", saved as `{self.name}`"
        return f"* [{self.path}]({HUB}/{self.repository}) ({self.about}){other} → `models/{self.directory}/`"


@dataclass(frozen=True)
class Weights:
    """Values of the loaders' widgets; a `File` where it has to be downloaded first."""

    suffix: str
    """Of the template's name."""
    student: str | File
    base: str | File
    text_encoder: str | File
    vae: str | File
    lora: str | File
    control: str | File
    hed: str | File
    side: int
    wide: tuple[int, int]
    bins: str
    prompts: tuple[str, ...]


def _bundled(family: str, side: int, *prompts: str) -> Weights:
    """A family that comes with the extension; the edges are found by the same network in all of them."""
    return Weights(
        suffix="",
        student=f"{family} (student)",
        base=f"{family} (base)",
        text_encoder=family,
        vae=family,
        lora=f"{family} (LCM-LoRA)",
        control=f"{family} (HED ControlNet)",
        hed="bundled/nano (HED)",
        side=side,
        wide=(side * 5 // 4, side * 3 // 4),
        bins="off",
        prompts=prompts,
    )


NANO = _bundled(
    "bundled/nano 256",
    256,
    "two sailing boats on a calm lake below red mountains at sunset, the sun on the left, with clouds in the sky",
    "a small red house to the left of three fir trees on a grassy field, blue mountains in the distance, at daybreak, "
    "the sun on the right",
    "three tents on deep snow below grey mountains at night, the moon on the right, green northern lights above",
    "a small red house to the left of two fir trees on deep snow below white mountains at night, the moon on the "
    "right, clouds above",
)
# The family of 128 px: a training on it takes a minute or two on a CPU.
SMALL = _bundled(
    "bundled/nano",
    128,
    "a sailing boat on a calm lake in front of red mountains at sunset, the sun on the left",
    "a small red house on a grassy field, blue mountains, at daybreak, the sun on the right",
)

_ALPHA = "PixArt-alpha"
RELEASED = Weights(
    suffix=" (1024 px)",
    student=File(
        "PixArt-LCM-XL-2-1024-MS.safetensors",
        f"{_ALPHA}/PixArt-LCM-XL-2-1024-MS",
        "transformer/diffusion_pytorch_model.safetensors",
        "diffusion_models",
        "the 4-step model",
    ),
    base=File(
        "PixArt-XL-2-1024-MS.pth",
        f"{_ALPHA}/PixArt-alpha",
        "PixArt-XL-2-1024-MS.pth",
        "diffusion_models",
        "the base model",
    ),
    text_encoder=File(
        "t5xxl_fp16.safetensors",
        "comfyanonymous/flux_text_encoders",
        "t5xxl_fp16.safetensors",
        "text_encoders",
        "9.8 GB",
    ),
    vae=File(
        "vae-ft-ema-560000-ema-pruned.safetensors",
        "stabilityai/sd-vae-ft-ema-original",
        "vae-ft-ema-560000-ema-pruned.safetensors",
        "vae",
        "the autoencoder",
    ),
    lora=File(
        "PixArt-LCM-LoRA-XL-2-1024-MS.safetensors",
        f"{_ALPHA}/PixArt-LCM-LoRA-XL-2-1024-MS",
        "adapter_model.safetensors",
        "loras",
        "the LCM-LoRA",
    ),
    control=File(
        "PixArt-XL-2-1024-ControlNet.pth",
        f"{_ALPHA}/PixArt-ControlNet",
        "PixArt-XL-2-1024-ControlNet.pth",
        "controlnet",
        "3.65 GB: base model and control in one",
    ),
    hed=File("ControlNetHED.pth", "lllyasviel/Annotators", "ControlNetHED.pth", "pixart_delta", "finds the edges"),
    side=1024,
    wide=(1280, 768),
    bins="1024",
    prompts=(
        "a sailing boat on a calm lake in front of red mountains at sunset, oil painting",
        "a small cactus with a happy face in the Sahara desert, soft light, 35 mm photograph",
        "an astronaut riding a horse through a field of tulips, watercolour",
        "a wooden house in deep snow under northern lights, long exposure photograph",
    ),
)
