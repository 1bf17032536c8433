"""T5's tokenizer, read to the same ids whatever version of transformers is installed."""

from __future__ import annotations

import json
import struct
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from .aliases import PathLike
from .errors import CheckpointError, MissingFileError, read_by
from .textfile import decode

if TYPE_CHECKING:
    from tokenizers import Tokenizer
    from transformers import PreTrainedTokenizerFast

TOKENIZER_FILES = ("tokenizer.json", "spiece.model")
"""Either is enough; the first that a folder has is read."""


def load_tokenizer(folder: PathLike) -> PreTrainedTokenizerFast:
    """transformers' tokenizer for the T5 vocabulary of a folder.

    Only tokenizer.json or spiece.model is read. The other files (tokenizer_config.json, special_tokens_map.json,
    added_tokens.json) describe Python classes, whose names and arguments change from one version of transformers to the
    next; what an encoder reads is decided by the vocabulary and its rules alone. T5's sentinels (<extra_id_0> …)
    are known where tokenizer.json has them; prompts have no use for them.

    Args:
        folder: of tokenizer.json (any version of the tokenizers library) or spiece.model (SentencePiece).

    Returns:
        A transformers.PreTrainedTokenizerFast that ends every text in </s>, and neither cuts nor pads by itself.

    Raises:
        MissingFileError: if the folder has neither file.
        CheckpointError: if the file is damaged, or is not a tokenizer of the T5 kind.
    """
    file = next((Path(folder) / name for name in TOKENIZER_FILES if (Path(folder) / name).is_file()), None)
    if file is None:
        raise MissingFileError(f"{folder} has no tokenizer: it needs {' or '.join(TOKENIZER_FILES)}")
    return _tokenizer(_rules(file))


def complete_tokenizer(folder: PathLike) -> PreTrainedTokenizerFast:
    """Write tokenizer.json and tokenizer_config.json beside a spiece.model, for every version of transformers.

    transformers' save_pretrained writes what only its own version, and later ones, read back.

    Args:
        folder: of a SentencePiece model without sentinels.

    Returns:
        The tokenizer, as `load_tokenizer` does.

    Raises:
        CheckpointError: if the file is damaged, or is not a tokenizer of the T5 kind.
    """
    folder = Path(folder)
    rules = _rules(folder / "spiece.model")
    rules.save(str(folder / "tokenizer.json"))
    tokenizer = _tokenizer(rules)
    config = {
        "tokenizer_class": "T5Tokenizer",
        "extra_ids": 0,
        "eos_token": tokenizer.eos_token,
        "pad_token": tokenizer.pad_token,
        "unk_token": tokenizer.unk_token,
        "model_max_length": 120,
    }
    (folder / "tokenizer_config.json").write_bytes(json.dumps(config, indent=2).encode() + b"\n")
    return tokenizer


def _rules(file: Path) -> Tokenizer:
    """The tokenizers.Tokenizer of a file, that ends every text in one token. Raises CheckpointError."""
    with read_by("tokenizers", file, "a tokenizer"):
        rules = _from_json(file) if file.suffix == ".json" else _from_sentencepiece(file)
        ends = rules.encode("").ids
    if len(ends) != 1:
        raise CheckpointError(f"{file} is not a T5 tokenizer: it does not end a text in one </s>")
    return rules


def _tokenizer(rules: Tokenizer) -> PreTrainedTokenizerFast:
    from transformers import PreTrainedTokenizerFast

    (end,) = rules.encode("").tokens
    special = {"eos_token": end, "pad_token": "<pad>", "unk_token": "<unk>"}
    known = {role: token for role, token in special.items() if rules.token_to_id(token) is not None}
    return PreTrainedTokenizerFast(tokenizer_object=rules, clean_up_tokenization_spaces=False, **known)


def _from_json(file: Path) -> Tokenizer:
    from tokenizers import Tokenizer

    rules = Tokenizer.from_str(decode(file.read_bytes()))
    rules.no_truncation()  # a tokenizer that is saved after use keeps what it was last asked to do
    rules.no_padding()
    return rules


def _from_sentencepiece(file: Path) -> Tokenizer:
    """The rules of a SentencePiece model, as transformers' T5Tokenizer has them."""
    from tokenizers import AddedToken, Tokenizer, decoders, models, normalizers, pre_tokenizers, processors

    pieces, trained, charsmap = _read_sentencepiece(file.read_bytes())
    if trained["model_type"] != 1:
        raise ValueError("it is no Unigram model")
    rules = Tokenizer(models.Unigram([piece[:2] for piece in pieces], unk_id=trained["unk_id"], byte_fallback=False))
    if charsmap:  # none where the text is left as it is
        rules.normalizer = normalizers.Precompiled(charsmap)
    words, spaces = pre_tokenizers.WhitespaceSplit(), pre_tokenizers.Metaspace("▁", "always")
    rules.pre_tokenizer = pre_tokenizers.Sequence([words, spaces])
    rules.decoder = decoders.Metaspace("▁", "always")
    end = pieces[trained["eos_id"]][0]
    template = {"single": f"$A {end}", "pair": f"$A {end} $B {end}", "special_tokens": [(end, trained["eos_id"])]}
    rules.post_processor = processors.TemplateProcessing(**template)
    special = [piece for piece, _, kind in pieces if kind in (2, 3)]  # unknown, control
    rules.add_special_tokens([AddedToken(token, special=True, normalized=False) for token in special])
    return rules


def _read_sentencepiece(data: bytes) -> tuple[list[tuple[str, float, int]], dict[str, int], bytes]:
    """What tokenizing takes from a SentencePiece model: (piece, score, kind) of each, ids, the Unicode rules.

    The numbers are those of sentencepiece_model.proto. The module that SentencePiece generates from it works with the
    very newest protobuf only, which others' packages hold back.
    """
    pieces: list[tuple[str, float, int]] = []
    trained, charsmap = {"model_type": 1, "unk_id": 0, "eos_id": 2}, b""
    for field, value in _fields(data):
        if field == 1:  # SentencePiece
            piece = {1: b"", 2: bytes(4), 3: 1, **dict(_fields(value))}
            pieces.append((piece[1].decode("utf-8"), struct.unpack("<f", piece[2])[0], piece[3]))
        elif field == 2:  # TrainerSpec
            spec = dict(_fields(value))
            names = {"model_type": 3, "unk_id": 40, "eos_id": 42}
            trained |= {name: spec[number] for name, number in names.items() if number in spec}
        elif field == 3:  # NormalizerSpec
            charsmap = dict(_fields(value)).get(2, b"")
    return pieces, trained, charsmap


def _fields(data: bytes) -> Iterator[tuple[int, Any]]:
    """(number, value) of the fields of a protocol buffer message; a value is a whole number or bytes.

    One cut short raises IndexError or ValueError.
    """
    position = 0

    def varint() -> int:
        nonlocal position
        result = shift = 0
        while True:
            byte = data[position]
            position += 1
            result |= (byte & 127) << shift
            shift += 7
            if byte < 128:
                return result

    while position < len(data):
        number, kind = divmod(varint(), 8)
        if kind == 0:
            yield number, varint()
            continue
        size = {1: 8, 5: 4}[kind] if kind != 2 else varint()
        if position + size > len(data):
            raise ValueError("it is cut short")
        yield number, data[position : position + size]
        position += size
