"""T5's tokenizer, read to the same ids whatever version of transformers is installed."""

from __future__ import annotations

import json
from pathlib import Path

from .errors import CheckpointError, MissingFileError, read_by

TOKENIZER_FILES = ("tokenizer.json", "spiece.model")
"""Either is enough; the first that a folder has is read."""


def load_tokenizer(folder):
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
    from transformers import PreTrainedTokenizerFast

    file = next((Path(folder) / name for name in TOKENIZER_FILES if (Path(folder) / name).is_file()), None)
    if file is None:
        raise MissingFileError(f"{folder} has no tokenizer: it needs {' or '.join(TOKENIZER_FILES)}")
    with read_by("tokenizers", file, "a tokenizer"):
        rules = _from_json(file) if file.suffix == ".json" else _from_sentencepiece(file)
        ends = rules.encode("").ids
    if len(ends) != 1:
        raise CheckpointError(f"{file} is not a T5 tokenizer: it does not end a text in one </s>")
    special = {"eos_token": rules.id_to_token(ends[0]), "pad_token": "<pad>", "unk_token": "<unk>"}
    known = {role: token for role, token in special.items() if rules.token_to_id(token) is not None}
    return PreTrainedTokenizerFast(tokenizer_object=rules, clean_up_tokenization_spaces=False, **known)


def complete_tokenizer(folder):
    """Write tokenizer.json and tokenizer_config.json beside a spiece.model, for every version of transformers.

    transformers' save_pretrained writes what only its own version, and later ones, read back.

    Args:
        folder: of a SentencePiece model without sentinels.

    Returns:
        The tokenizer, as `load_tokenizer` does.
    """
    folder = Path(folder)
    rules = _from_sentencepiece(folder / "spiece.model")
    rules.save(str(folder / "tokenizer.json"))
    tokenizer = load_tokenizer(folder)
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


def _from_json(file: Path):
    from tokenizers import Tokenizer

    rules = Tokenizer.from_str(file.read_text(encoding="utf-8"))
    rules.no_truncation()  # a tokenizer that is saved after use keeps what it was last asked to do
    rules.no_padding()
    return rules


def _from_sentencepiece(file: Path):
    """The rules of a SentencePiece model, as transformers' T5Tokenizer has them."""
    from sentencepiece import sentencepiece_model_pb2
    from tokenizers import AddedToken, Tokenizer, decoders, models, normalizers, pre_tokenizers, processors

    proto = sentencepiece_model_pb2.ModelProto.FromString(file.read_bytes())
    pieces = [(piece.piece, piece.score) for piece in proto.pieces]
    trained = proto.trainer_spec
    rules = Tokenizer(models.Unigram(pieces, unk_id=trained.unk_id, byte_fallback=trained.byte_fallback))
    if proto.normalizer_spec.precompiled_charsmap:  # none where the text is left as it is
        rules.normalizer = normalizers.Precompiled(proto.normalizer_spec.precompiled_charsmap)
    space = {"replacement": "▁", "prepend_scheme": "always"}
    rules.pre_tokenizer = pre_tokenizers.Sequence([pre_tokenizers.WhitespaceSplit(), pre_tokenizers.Metaspace(**space)])
    rules.decoder = decoders.Metaspace(**space)
    end = pieces[trained.eos_id][0]
    template = {"single": f"$A {end}", "pair": f"$A {end} $B {end}", "special_tokens": [(end, trained.eos_id)]}
    rules.post_processor = processors.TemplateProcessing(**template)
    special = [piece.piece for piece in proto.pieces if piece.type in (piece.UNKNOWN, piece.CONTROL)]
    rules.add_special_tokens([AddedToken(token, special=True, normalized=False) for token in special])
    return rules
