"""What `prepare` is told; see `Settings`. Standard library only."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

from ..settings import MILLION, ConfigError, Settings, path, setting

DETECTED = ("canny", "lineart_standard", "lineart", "lineart_anime", "depth", "mlsd", "normal", "softedge", "pose")
"""Hints that a detector of controlnet_aux finds."""
WITHOUT_WEIGHTS = ("canny", "lineart_standard")
"""Those of them that need no file."""


@dataclass(kw_only=True)
class PrepareConfig(Settings):
    """`prepare`: check pictures and captions, then cache what training reads: latents, text embeddings, hints."""

    command: ClassVar[str] = "prepare"
    required: ClassVar[tuple[str, ...]] = ("output",)

    input: str = path(
        "folder of pictures with captions beside them (picture.txt or .caption; several lines are different wordings), "
        "or a list: metadata.jsonl, metadata.csv or data_info.json, or a folder with one; or archives: tars "
        "(img2dataset's), Parquet (the Hub's) or zips, a folder of them, a pattern (0*.tar, {00..99}.tar), or several "
        "with :: between them, each also at a URL (https, s3 …)"
    )
    output: str = path("folder for the dataset and its report; the same command with the same folder resumes")
    models: str = path("pipeline folder (text_encoder/, tokenizer/, vae/) that encodes")
    resolution: int = setting(
        1024,
        "px of the square bucket, a multiple of 16; the others have about its area, and are most with 256, 512, 768 …",
        low=16,
        high=65536,
    )
    multi_aspect: bool = setting(True, "sort pictures into buckets by aspect ratio; false crops all to the square")
    hints: str = setting(
        "none",
        "for ControlNet: edges that HED finds, pictures of a folder, or what a detector of controlnet_aux of this name "
        "finds",
        choices=("none", "hed", "folder", *DETECTED),
    )
    annotators: str = path(
        "folder with the weights of controlnet_aux's detectors (lllyasviel/Annotators); canny and lineart_standard "
        "need none"
    )
    hint_kind: str = setting(
        "", "for hints=folder: what they are; the ControlNet remembers it", choices=("", "hed", *DETECTED)
    )
    hint_folder: str = path("for hints=folder: pictures or HED features (.npz) named as the pictures")
    hed: str = path("ControlNetHED.pth or a narrower one, for hints=hed")
    pictures: str = path("folder that a list's names are relative to; empty = where the list is")
    caption_column: str = setting(
        "", "of a list, of Parquet, or in the .json files of a tar; empty = text, caption or prompt, or the only text"
    )
    image_column: str = setting("", "of a Parquet file; empty = the only one that holds pictures")
    encoding: str = setting(
        "", "of captions and lists that are no Unicode: cp1252, gbk, shift_jis …; empty = UTF-8, or as their mark says"
    )
    trigger: str = setting(
        "", "words put before every caption, with a comma: a name that a fine-tune is to learn for what it sees"
    )
    repeats: dict = setting(
        dict,
        'how often the pictures of a folder come in each epoch, as JSON: {"cats": 3}; those of others once',
    )
    flip: bool = setting(
        False,
        "also prepare each picture mirrored; a training draws which of the two it sees. Not where captions say left or "
        "right",
    )
    masks: str = setting(
        "none",
        "which part of a picture is trained on: alpha = what is not transparent, folder = what is white in the masks "
        "of mask_folder; the loss of each picture is the mean over that part",
        choices=("none", "alpha", "folder"),
    )
    mask_folder: str = path("for masks=folder: pictures named as the pictures")
    prompts: str = path(
        "instead of input, to make a model fast without any pictures: a text file of prompts, one a line; base draws "
        "the latents itself, and lcd or lcm-lora distil it from them"
    )
    base: str = path("for prompts: the base model that draws, in any layout that load_pixart reads")
    lora: str = path("for prompts: a LoRA that base draws with, such as a style")
    lora_strength: float = setting(1.0, "for prompts: how much of lora is added", low=-10.0, high=10.0)
    draws: int = setting(1, "for prompts: pictures of each prompt, each from other noise", low=1, high=1000)
    draw_steps: int = setting(14, "for prompts: steps of DPM-Solver++ for a picture", low=1, high=1000)
    guidance: float = setting(
        4.5, "for prompts: classifier-free guidance that pictures are drawn with (cfg)", low=1.0, high=100.0
    )
    shapes: list = setting(
        lambda: ["1:1", "2:3", "3:2"],
        "for prompts: shapes that pictures are drawn in, one after the other, as a JSON list of width:height; the "
        "nearest buckets are taken",
    )
    seed: int = setting(0, "for prompts: of the noise that pictures begin with", low=0, high=2**63 - 1)
    keep_duplicates: bool = setting(False, "keep pictures whose file is the same as another's")
    latents: str = path("folder of VAE features (.npy) that PixArt's authors' tools made; empty = encode")
    embeddings: str = path("folder of T5 features (.npz) that PixArt's authors' tools made; empty = encode")
    max_tokens: int = setting(120, "tokens that a caption is cut to", low=1, high=65536)
    clean_caption: bool = setting(False, "remove addresses, markup and the like from captions, as the authors did")
    quantization: str = setting("none", "of the text encoder (bitsandbytes)", choices=("none", "int8", "int4"))
    precision: str = setting(
        "auto", "of the networks; auto = float32, T5 on a GPU bfloat16", choices=("auto", "fp32", "bf16")
    )
    device: str = setting("auto", "where the networks run: auto, cpu, cuda, cuda:1, mps …")
    run: str = path(
        "folder for status.json, as trainings keep it, and for the request `stop` in its control/; one of its own for "
        "each part (of processes that torchrun starts the first one keeps it); empty = none"
    )
    only_inside: list = setting(
        list,
        "JSON list of folders: pictures, captions, lists and hints that are, links followed, in none of them are left "
        "out and reported; empty = anywhere",
    )
    batch_size: int = setting(
        8,
        "pictures encoded at once; it decides about the last bits of what is encoded, so that with another one all "
        "shards are made anew",
        low=1,
        high=MILLION,
    )
    shard_size: int = setting(512, "largest number of pictures in a shard", low=1, high=MILLION)
    workers: int = setting(2, "processes that read pictures", low=0, high=1024)
    part: int = setting(0, "which part of the shards this process makes, 0 … parts - 1", low=0, high=MILLION)
    parts: int = setting(
        1,
        "processes or hosts that share the work, and a disk; torchrun and accelerate launch multiply it",
        low=1,
        high=MILLION,
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        self._check_prompts()
        if self.part >= self.parts:
            raise ConfigError(f"part is {self.part}: with parts {self.parts} it must be below {self.parts}")
        if self.resolution % 16:
            nearest = max(16, round(self.resolution / 16) * 16)
            raise ConfigError(
                f"resolution is {self.resolution}: a multiple of 16 is wanted (8 px are one of a latent, and a patch "
                f"takes two of those); the nearest is {nearest}"
            )
        if not all(isinstance(each, str) and each for each in self.only_inside):
            raise ConfigError(f"only_inside is {self.only_inside!r}: a JSON list of folders is wanted")
        if self.encoding:
            try:
                b"text".decode(self.encoding, "replace")  # of none, Python does not look the name up
            except LookupError as error:
                raise ConfigError(f"encoding is {self.encoding!r}: Python knows none of that name") from error
        if self.hints == "hed" and not self.hed:
            raise ConfigError("hints=hed needs hed: the file of the edge detector, ControlNetHED.pth")
        if self.hints in DETECTED and bool(self.annotators) == (self.hints in WITHOUT_WEIGHTS):
            wants = "no annotators" if self.annotators else "annotators: the folder with the weights of its detector"
            raise ConfigError(f"hints={self.hints} needs {wants}")
        if self.hint_kind and self.hints != "folder":
            raise ConfigError(f"hint_kind is set, but hints is {self.hints}: it is for hints=folder, leave it out")
        if (self.masks == "folder") != bool(self.mask_folder):
            raise ConfigError(
                "masks=folder and mask_folder, the folder of masks named as the pictures, need each other"
            )
        if self.latents and (self.flip or self.masks == "alpha"):
            raise ConfigError("flip and masks=alpha need the pictures, and latents are cached: leave latents out")
        if self.embeddings and self.trigger:
            raise ConfigError(
                "trigger needs captions to put it before, and embeddings are cached: leave embeddings out"
            )
        if not all(type(times) is int and 0 < times <= 1000 for times in self.repeats.values()):
            raise ConfigError(
                f'repeats is {self.repeats!r}: for each folder how often, 1 to 1000, such as {{"cats": 3}}'
            )
        if self.hints == "folder" and not self.hint_folder:
            raise ConfigError("hints=folder needs hint_folder: the folder of hints named as the pictures")
        if self.hint_folder and self.hints != "folder":
            raise ConfigError(f"hint_folder is set, but hints is {self.hints}: set hints=folder, or leave it out")

    def _check_prompts(self) -> None:
        if bool(self.input) == bool(self.prompts):
            raise ConfigError(
                "give either input (pictures: "
                f"{type(self).__dataclass_fields__['input'].metadata['help']}) or prompts (a text file, for pictures "
                "that base draws itself)"
            )
        if bool(self.prompts) != bool(self.base):
            raise ConfigError("prompts and base, the model that draws them, need each other")
        if self.lora and not self.prompts:
            raise ConfigError("lora is set, and prompts is not: it is what base draws prompts with, leave it out")
        if not self.prompts:
            return
        for name in ("latents", "embeddings", "flip", "masks", "hints", "repeats", "pictures"):
            if getattr(self, name) not in ("", False, "none", {}):
                raise ConfigError(f"{name} is set, and with prompts there are no pictures that it could be of")
        if not self.models:
            raise ConfigError("models is not set: the pipeline folder with text_encoder/ and tokenizer/ for prompts")
        if not self.sides or not all(1 <= width <= 4 * height and height <= 4 * width for width, height in self.sides):
            raise ConfigError(
                f'shapes is {self.shapes!r:.200}: a JSON list of width:height is wanted, such as ["1:1", "2:3"], '
                "with no side of more than 4 times the other"
            )

    @property
    def sides(self) -> list[tuple[int, int]]:
        """Width and height of each of `shapes`; (0, 0) for what is none."""
        found = [re.fullmatch(r"([0-9]{1,5}):([0-9]{1,5})", str(each)) for each in self.shapes]
        return [(int(each[1]), int(each[2])) if each else (0, 0) for each in found]

    @property
    def finds_hints(self) -> bool:
        """Whether hints are found in the pictures."""
        return self.hints not in ("none", "folder")

    @property
    def kind_of_hints(self) -> str:
        """What hints are; "" for those of a folder that nobody said it of."""
        return self.hints if self.finds_hints else self.hint_kind

    @classmethod
    def upgraded(cls, values: Mapping[str, Any]) -> dict[str, Any]:
        """In earlier versions `hints` was hed, a folder, or empty."""
        hints = values.get("hints")
        known = cls.__dataclass_fields__["hints"].metadata["choices"]
        if not isinstance(hints, str) or hints in known or values.get("hint_folder"):
            return dict(values)
        return {**values, "hints": "folder" if hints else "none", "hint_folder": hints}
