"""The tokenizer: the same ids from every form of a T5 folder, whatever else lies in it; damaged and foreign files."""

import base64
import json
import shutil

import pytest

from pixart_core.checkpoint import CheckpointError
from pixart_core.text import TextEncoder
from pixart_core.tokenizer import complete_tokenizer, load_tokenizer
from tests.conftest import ROOT
from tools.comfy_server import comfyui_trees

NANO = ROOT / "models" / "nano"
TEXTS = ["a red house on the lake", "", "a,  b. c!\n\tü 日本 🙂 １２ ﬁ don't (red:1.2)", "x" * 300]


def ids(folder, texts=TEXTS):
    tokenizer = load_tokenizer(folder)
    return [list(tokenizer(text).input_ids) for text in texts]


def only(tmp_path, *names, source=NANO / "tokenizer"):
    """A folder with just these files of a tokenizer."""
    folder = tmp_path / "tokenizer"
    folder.mkdir()
    for name in names:
        shutil.copy(source / name, folder)
    return folder


def test_the_bundled_ids():
    """As every model of the nano family was trained."""
    assert ids(NANO / "tokenizer", TEXTS[:2]) == [[5, 14, 32, 6, 3, 39, 1], [1]]


@pytest.mark.parametrize("names", [("tokenizer.json",), ("spiece.model",), ("spiece.model", "tokenizer.json")])
def test_either_file_is_enough(names, tmp_path):
    assert ids(only(tmp_path, *names)) == ids(NANO / "tokenizer")


@pytest.mark.parametrize(
    "config",
    [
        {"tokenizer_class": "T5Tokenizer", "extra_special_tokens": ["<pad>", "</s>"], "backend": "tokenizers"},
        {"tokenizer_class": "T5TokenizerFast", "additional_special_tokens": [f"<extra_id_{n}>" for n in range(100)]},
        {"tokenizer_class": "LaterTokenizer", "model_max_length": 3, "extra_ids": 100, "legacy": False},
    ],
)
@pytest.mark.parametrize("name", ["tokenizer.json", "spiece.model"])
def test_what_other_versions_wrote_beside_it(name, config, tmp_path):
    folder = only(tmp_path, name)
    (folder / "tokenizer_config.json").write_text(json.dumps(config))
    (folder / "special_tokens_map.json").write_text('{"eos_token": {"content": "</s>", "lstrip": false}}')
    (folder / "added_tokens.json").write_text('{"<extra_id_0>": 275}')
    assert ids(folder) == ids(NANO / "tokenizer")


def test_what_is_written_is_read_by_transformers(tmp_path):
    """By its own rules, which every version of it has to follow."""
    from transformers import AutoTokenizer

    folder = only(tmp_path, "spiece.model")
    complete_tokenizer(folder)
    for name in ("tokenizer.json", "tokenizer_config.json"):
        made, bundled = (json.loads((place / name).read_text()) for place in (folder, NANO / "tokenizer"))
        for content in (made, bundled):  # the scores have been through decimals
            for piece in content.get("model", {}).get("vocab", ()):
                piece[1] = round(piece[1], 6)
        assert made == bundled
    theirs = AutoTokenizer.from_pretrained(folder, local_files_only=True)
    assert [list(theirs(text).input_ids) for text in TEXTS[:3]] == ids(folder, TEXTS[:3])


def t5_vocabulary():
    return next(iter(comfyui_trees().values())) / "comfy" / "text_encoders" / "t5_tokenizer"


def test_t5_itself_as_sentencepiece_reads_it(tmp_path):
    """T5 v1.1's vocabulary in ComfyUI's tokenizer.json and as the spiece.model that the released weights come with."""
    from sentencepiece import SentencePieceProcessor

    # Generated for the very newest protobuf.
    sentencepiece_model_pb2 = pytest.importorskip("sentencepiece.sentencepiece_model_pb2", exc_type=ImportError)
    content = json.loads((t5_vocabulary() / "tokenizer.json").read_text(encoding="utf-8"))
    model = sentencepiece_model_pb2.ModelProto()
    for index, (piece, score) in enumerate(content["model"]["vocab"][:32000]):
        kind = (3, 3, 2)[index] if index < 3 else 1  # control, control, unknown; normal
        model.pieces.add(piece=piece, score=score, type=kind)
    trainer = {"model_type": 1, "pad_id": 0, "eos_id": 1, "unk_id": 2, "bos_id": -1, "vocab_size": 32000}
    for name, value in trainer.items():
        setattr(model.trainer_spec, name, value)
    rules = content["normalizer"]["normalizers"][0]["precompiled_charsmap"]
    model.normalizer_spec.precompiled_charsmap = base64.b64decode(rules)
    (tmp_path / "spiece.model").write_bytes(model.SerializeToString())
    reference = SentencePieceProcessor(model_file=str(tmp_path / "spiece.model"), add_eos=True)
    assert ids(tmp_path) == ids(t5_vocabulary()) == [reference.encode(text) for text in TEXTS]
    assert len(set(ids(tmp_path)[2])) > 15  # no row of <unk>


def test_a_tokenizer_saved_after_use_neither_cuts_nor_pads(tmp_path):
    folder = only(tmp_path, "tokenizer.json")
    content = json.loads((folder / "tokenizer.json").read_text())
    content["truncation"] = {"direction": "Right", "max_length": 4, "strategy": "LongestFirst", "stride": 0}
    content["padding"] = {
        "strategy": {"Fixed": 77},
        "direction": "Right",
        "pad_to_multiple_of": None,
        "pad_id": 0,
        "pad_type_id": 0,
        "pad_token": "<pad>",
    }
    (folder / "tokenizer.json").write_text(json.dumps(content))
    assert ids(folder) == ids(NANO / "tokenizer")


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"\0" * 100,
        b"[]",
        b'{"model": {"type": "Unigram"}}',
        b"\xff\xfe{}",
        b"\x0a\xff\xff\xff\xff\x0f",
        b"\xff" * 99,
    ],
    ids=repr,
)
@pytest.mark.parametrize("name", ["tokenizer.json", "spiece.model"])
def test_damaged_files_are_named(name, content, tmp_path):
    (tmp_path / name).write_bytes(content)
    with pytest.raises(CheckpointError, match=f"{name} is (damaged or )?not a "):
        load_tokenizer(tmp_path)


@pytest.mark.parametrize("name", ["tokenizer.json", "spiece.model"])
def test_files_cut_short_are_named(name, tmp_path):
    whole = (NANO / "tokenizer" / name).read_bytes()
    for share in (0.2, 0.5, 0.9):
        (tmp_path / name).write_bytes(whole[: int(share * len(whole))])
        with pytest.raises(CheckpointError, match=f"{name} is (damaged or )?not a "):
            load_tokenizer(tmp_path)


def test_a_tokenizer_of_another_kind(tmp_path):
    content = json.loads((NANO / "tokenizer" / "tokenizer.json").read_text())
    (tmp_path / "tokenizer.json").write_text(json.dumps({**content, "post_processor": None}))
    with pytest.raises(CheckpointError, match=r"tokenizer\.json is not a T5 tokenizer: it does not end a text in one"):
        load_tokenizer(tmp_path)
    with pytest.raises(FileNotFoundError, match="has no tokenizer: it needs tokenizer.json or spiece.model"):
        load_tokenizer(tmp_path / "elsewhere")


def test_another_encoders_tokenizer(tmp_path):
    shutil.copytree(NANO / "text_encoder", tmp_path / "text_encoder")
    shutil.copytree(t5_vocabulary(), tmp_path / "tokenizer")
    text = TextEncoder.from_pretrained(tmp_path)
    with pytest.raises(CheckpointError, match=r"is not that of the text encoder .*: it gives token \d+, and the enc"):
        text.encode("a house")
