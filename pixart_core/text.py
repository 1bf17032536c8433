"""Prompts to T5 embeddings: the authors' preprocessing, leaving memory, a cache on disk."""

from __future__ import annotations

import ctypes
import functools
import gc
import hashlib
import importlib.util
import json
import logging
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import torch
from torch import Tensor

from .aliases import Device, DType, PathLike
from .errors import CheckpointError, MissingFileError, read_by
from .functional import preferred_dtype
from .graphs import Graphs
from .host_copy import HostCopy
from .saving import save_weights
from .t5 import QUANTIZATIONS, T5_VOCABULARY, check_t5, is_t5, load_t5, read_t5_config, require_bitsandbytes
from .tokenizer import TOKENIZER_FILES, load_tokenizer
from .weightfile import open_weights
from .weightfolder import find_part

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast

logger = logging.getLogger(__name__)

MAX_LENGTH = 120
"""Tokens a PixArt-α caption is cut to (paper Sec. 3.1 of PixArt-α)."""
_MICRO_BATCH = 8
"""Prompts encoded at once: bounds the activations, however many prompts come in."""
_LENGTHS = 16
"""Tokens that a GPU's batch is padded to a multiple of."""
_PARKS = ("cuda",)
"""Types of devices whose quantised weights may wait in host memory."""


def normalize_prompt(text: str, clean_caption: bool = False) -> str:
    """A prompt as PixArt was trained to read it: lower case, no outer spaces.

    Args:
        text: the prompt; empty is fine.
        clean_caption: also remove addresses, markup, hashtags, file names and the like, twice, as the authors do.

    Raises:
        TypeError: if text is not a string.
        ImportError: if clean_caption is set and beautifulsoup4, ftfy or diffusers is missing.
    """
    if not isinstance(text, str):
        raise TypeError(f"a prompt is a string, got {type(text).__name__}")
    if not clean_caption:
        return text.lower().strip()
    missing = [
        name
        for module, name in (("bs4", "beautifulsoup4"), ("ftfy", "ftfy"), ("diffusers", "diffusers"))
        if importlib.util.find_spec(module) is None
    ]
    if missing:
        raise ImportError(
            f"clean_caption needs {' and '.join(missing)}: pip install {' '.join(missing)}, or turn clean_caption off"
        )
    from diffusers import PixArtAlphaPipeline

    clean = functools.partial(PixArtAlphaPipeline._clean_caption, PixArtAlphaPipeline)  # reads class attributes only
    return clean(clean(text))


class TextEncoder:
    """A T5 encoder with its tokenizer. Weights are read at the first prompt that the cache does not hold.

    Args:
        folder: of config.json and weights.
        tokenizer_folder: of tokenizer.json or spiece.model.
        dtype: of the weights that are not quantised; None = bfloat16 or float32, whatever the device is fast in, and
            bfloat16 beside quantised ones. Never float16 by itself: T5's activations overflow it. bfloat16 weights
            are multiplied in float32 on a CPU that is slow in bfloat16.
        device: where it runs.
        quantization: "none", "int8" (LLM.int8) or "int4" (NF4), both by bitsandbytes.
        cache: an `EmbeddingCache`, or a folder for one.
        streamed: leave the matrices in their file, mapped, and bring each where it is multiplied only for that: as good
            as no memory, for some more time a prompt. The numbers are the same. Not with quantised weights.
    """

    def __init__(
        self,
        folder: PathLike,
        tokenizer_folder: PathLike,
        dtype: DType = None,
        device: Device = None,
        quantization: str | None = "none",
        cache: EmbeddingCache | PathLike | None = None,
        streamed: bool = False,
    ):
        self.folder, self.tokenizer_folder = Path(folder), Path(tokenizer_folder)
        self.device = torch.device("cpu" if device is None else device)
        self.quantization = quantization or "none"
        self.dtype = _default_dtype(self.device, self.quantization) if dtype is None else dtype
        self.cache = cache if cache is None or isinstance(cache, EmbeddingCache) else EmbeddingCache(cache)
        self.config = read_t5_config(self.folder)
        self.streamed = streamed and self.quantization == "none"
        self._model: Any = None
        self._host: HostCopy | None = None
        self.graphs: Graphs | None = None
        """Replays what was captured of earlier prompts; a `Pipeline` shares its own."""
        if self.quantization not in QUANTIZATIONS:
            raise ValueError(f"unknown quantization {quantization!r}: choose one of {', '.join(QUANTIZATIONS)}")
        if self.quantization != "none":
            require_bitsandbytes(self.device)
        check_t5(self.config, open_weights(self.folder))

    @classmethod
    def from_pretrained(cls, path: PathLike, *arguments: Any, **options: Any) -> TextEncoder:
        """Open a pipeline folder (text_encoder/ and tokenizer/) or a text-encoder folder.

        Args:
            arguments, options: of the class, behind its folders: dtype, device, quantization, cache, streamed.

        Raises:
            MissingFileError (a FileNotFoundError, a CheckpointError): on a missing folder or tokenizer.
            CheckpointError: on a folder that is not a T5 encoder, or is damaged.
            ValueError: on an unknown quantization.
            ImportError: if quantization is asked for and bitsandbytes is missing.
        """
        return cls(*find_text_encoder(path), *arguments, **options)

    @property
    def width(self) -> int:
        """Channels of an embedding."""
        return int(self.config["d_model"])

    @property
    def loaded(self) -> bool:
        """Whether the weights are in memory."""
        return self._model is not None

    @functools.cached_property
    def tokenizer(self) -> PreTrainedTokenizerFast:
        return load_tokenizer(self.tokenizer_folder)

    @functools.cached_property
    def identity(self) -> str:
        """Names these weights, this tokenizer and this precision; equal identities give equal embeddings."""
        parts = {"config": self.config, "dtype": str(self.dtype), "quantization": self.quantization}
        for file in weight_files(self.folder) + [self.tokenizer_folder / name for name in TOKENIZER_FILES]:
            if file.is_file():
                parts[file.name] = _fingerprint(file)
        return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()

    def load(self) -> Any:
        """Bring the weights into memory and return transformers' T5EncoderModel."""
        if self._model is None:
            logger.info("loading the text encoder %s (%s, %s)", self.folder, self.dtype, self.quantization)
            self._model = load_t5(self.folder, self.dtype, self.device, self.quantization, self.streamed)
        if self._host is not None:
            self._host.come_back(self.device)
        return self._model

    def unload(self) -> None:
        """Let the weights leave memory; the next prompt that is not cached loads them again."""
        self._model = self._host = None
        gc.collect()
        if self.device.type == "cuda":
            torch.cuda.empty_cache()
        _return_freed_memory()

    def leave_device(self) -> None:
        """Let the weights leave the device. Quantised ones wait in pinned host memory (6 GB for T5-XXL in 4 bits, 8 in
        8), because to read and quantise them again takes 1.6 s; others are unloaded."""
        if self._model is None or self.quantization == "none" or self.device.type not in _PARKS:
            return self.unload()
        try:
            self._host = self._host or HostCopy(self._model)
        except RuntimeError as error:  # so much memory cannot be pinned
            logger.warning("the text encoder is read again for each prompt: %s", str(error).strip().splitlines()[0])
            return self.unload()
        self._host.leave()

    def tokenize(self, texts: Sequence[str], max_length: int = MAX_LENGTH) -> list[list[int]]:
        """Token ids of normalised texts, each ending in </s>; logs what `max_length` cuts off.

        Raises:
            CheckpointError: if the tokenizer is another encoder's, and has tokens that this one lacks.
        """
        with read_by("tokenizers", self.tokenizer_folder, "a tokenizer"):
            rows = self.tokenizer(list(texts), add_special_tokens=True).input_ids
        known = self.config.get("vocab_size", T5_VOCABULARY)
        if (largest := max(map(max, rows))) >= known:
            raise CheckpointError(
                f"the tokenizer in {self.tokenizer_folder} is not that of the text encoder {self.folder}: "
                f"it gives token {largest}, and the encoder knows {known}"
            )
        for index, ids in enumerate(rows):
            if len(ids) > max_length:
                cut = self.tokenizer.decode(ids[max_length - 1 : -1])
                logger.warning(
                    "the prompt has %d tokens and PixArt reads %d; this was cut off: %r", len(ids), max_length, cut
                )
                rows[index] = ids[: max_length - 1] + ids[-1:]
        return rows

    @torch.no_grad()
    def encode(
        self, prompts: str | Sequence[str], max_length: int = MAX_LENGTH, clean_caption: bool = False
    ) -> tuple[Tensor, Tensor]:
        """Embed prompts, each exactly as it would be alone.

        Args:
            prompts: one or more; empty strings are fine.
            max_length: tokens, </s> included; longer prompts are cut, with a warning that names the rest.
            clean_caption: see `normalize_prompt`.

        Returns:
            caption (B, max_length, width) in `dtype` on `device`, zero where the mask is, and
            caption_mask (B, max_length) int64, 1 = real token.

        Raises:
            ValueError: on no prompts, or an encoder that returns NaN or infinite values.
        """
        texts = [normalize_prompt(text, clean_caption) for text in ([prompts] if isinstance(prompts, str) else prompts)]
        if not texts:
            raise ValueError("encode needs at least one prompt")
        cached = {text: self._cached(text, max_length) for text in texts}
        embeddings = {text: embedding for text, embedding in cached.items() if embedding is not None}
        missing = [text for text in cached if text not in embeddings]
        for start in range(0, len(missing), _MICRO_BATCH):
            batch = missing[start : start + _MICRO_BATCH]
            for text, embedding in zip(batch, self._run(batch, max_length), strict=True):
                embeddings[text] = embedding
                if self.cache is not None:
                    self.cache.put(self._key(text, max_length), embedding)
        caption = torch.zeros(len(texts), max_length, self.width, dtype=self.dtype, device=self.device)
        mask = torch.zeros(len(texts), max_length, dtype=torch.int64, device=self.device)
        for index, text in enumerate(texts):
            embedding = embeddings[text]
            caption[index, : len(embedding)] = embedding
            mask[index, : len(embedding)] = 1
        return caption, mask

    def _run(self, texts: list[str], max_length: int) -> list[Tensor]:
        """One pass of the encoder: a (tokens, width) tensor a text. Padded to the longest text only, under a mask."""
        rows = self.tokenize(texts, max_length)
        longest = max(map(len, rows))
        if self.device.type == "cuda":  # a few lengths only, each of which is one graph
            longest = min(max_length, -(-longest // _LENGTHS) * _LENGTHS)
        ids = torch.tensor([row + [self.config["pad_token_id"]] * (longest - len(row)) for row in rows])
        mask = torch.tensor([[1] * len(row) + [0] * (longest - len(row)) for row in rows])
        hidden = self._forward(ids.to(self.device), mask.to(self.device))
        result = [hidden[index, : len(row)].to(self.dtype) for index, row in enumerate(rows)]
        if not all(torch.isfinite(embedding).all() for embedding in result):
            raise ValueError(
                f"the text encoder {self.folder} returned NaN or infinite values: its weights are "
                f"damaged, or overflow {self.dtype} (use bfloat16 or float32)"
            )
        return result

    def _forward(self, ids: Tensor, mask: Tensor) -> Tensor:
        """Token ids and their mask (B, L) -> (B, L, width)."""
        model = self.load()

        def run(ids: Tensor, mask: Tensor) -> Tensor:
            return cast(Tensor, model(input_ids=ids, attention_mask=mask).last_hidden_state)

        if self.graphs is None or self.quantization != "none":  # bitsandbytes asks the device for numbers
            return run(ids, mask)
        return self.graphs("encode", run, [ids, mask], self.graphs.state([model]))

    def _key(self, text: str, max_length: int) -> str:
        return hashlib.sha256(json.dumps([text, self.identity, max_length]).encode()).hexdigest()

    def _cached(self, text: str, max_length: int) -> Tensor | None:
        return None if self.cache is None else self.cache.get(self._key(text, max_length))


class EmbeddingCache:
    """A folder with a safetensors file per embedding. Several processes may share it: entries appear whole."""

    def __init__(self, folder: PathLike):
        self.folder = Path(folder)
        self.folder.mkdir(parents=True, exist_ok=True)

    def path(self, key: str) -> Path:
        """Where the embedding of `key` is or would be."""
        return self.folder / f"{key}.safetensors"

    def get(self, key: str) -> Tensor | None:
        """The embedding (tokens, width), or None; a damaged entry is reported and removed."""
        from safetensors import SafetensorError
        from safetensors.torch import load_file

        try:
            return load_file(self.path(key))["caption"]
        except FileNotFoundError:
            return None
        except (SafetensorError, KeyError) as error:
            logger.warning("removing the damaged cache entry %s: %s", self.path(key), error)
            self.path(key).unlink(missing_ok=True)
            return None

    def put(self, key: str, embedding: Tensor) -> None:
        """Store an embedding (tokens, width)."""
        save_weights({"caption": embedding.clone()}, self.path(key))

    def clear(self) -> int:
        """Remove every entry; returns how many there were."""
        entries = list(self.folder.glob("*.safetensors"))
        for entry in entries:
            entry.unlink(missing_ok=True)
        return len(entries)


def find_text_encoder(path: PathLike) -> tuple[Path, Path]:
    """(encoder folder, tokenizer folder) of a pipeline folder, of a text-encoder folder under any name, or of the
    folder that such a one is in.

    The tokenizer may lie in the encoder's folder, or in tokenizer/ inside or beside it.
    """
    path = Path(path)
    if path.is_file():
        raise CheckpointError(
            f"{path} is a file: give the folder that holds text_encoder/ and tokenizer/. Single-file T5 "
            "checkpoints have no tokenizer; ComfyUI's own CLIPLoader (type pixart) reads those"
        )
    if not path.is_dir():
        raise MissingFileError(f"text encoder folder {path} does not exist")
    folder = find_part(path, "text_encoder", is_t5)
    places = (folder, folder / "tokenizer", folder.parent / "tokenizer")
    for place in places:
        if any((place / name).is_file() for name in TOKENIZER_FILES):
            return folder, place
    raise MissingFileError(
        f"no tokenizer for the text encoder {folder}: put {' or '.join(TOKENIZER_FILES)} into one "
        f"of {', '.join(map(str, places))}"
    )


def _default_dtype(device: torch.device, quantization: str) -> torch.dtype:
    dtype = preferred_dtype(device)
    # T5 overflows float16; and whoever quantises does it for the memory, of which `wo` in float32 would take 4 GB.
    return torch.bfloat16 if dtype == torch.float16 or quantization != "none" else dtype


def weight_files(folder: PathLike) -> list[Path]:
    """The files that hold the weights of `folder`, in the order they are read.

    Raises:
        CheckpointError: if there are none, or one is damaged or missing.
    """
    return sorted(set(open_weights(folder).sources.values()))


def _fingerprint(file: Path, samples: int = 16, block: int = 1 << 16) -> str:
    """Size and a hash of the header and of blocks spread over the file: telling, and quick on 10 GB."""
    size = file.stat().st_size
    digest = hashlib.sha256(str(size).encode())
    with file.open("rb") as stream:
        if size <= samples * block:
            digest.update(stream.read())
        else:
            for index in range(samples):
                stream.seek(index * (size - block) // (samples - 1))
                digest.update(stream.read(block))
    return digest.hexdigest()


def _return_freed_memory() -> None:
    """glibc keeps freed blocks under 32 MB, which 4-bit weights are: 3 GB of T5-XXL would stay."""
    if sys.platform == "linux":
        trim = getattr(ctypes.CDLL(None), "malloc_trim", None)  # musl has none
        if trim is not None:
            trim(0)
