"""Text and JSON with byte-order marks, and writing to file systems that cannot do everything."""

import codecs
import errno
import json
import os

import pytest
import torch
from pixart_delta.pixart_core.checkpoint import load_pixart, save_pixart
from pixart_delta.pixart_core.config import PixArtConfig
from pixart_delta.pixart_core.model import PixArt
from pixart_delta.pixart_core.saving import save_json
from pixart_delta.pixart_core.textfile import decode, parse_json, printable, read_json
from pixart_delta.pixart_core.weightfile import CheckpointError

WORDS = "Žluťoučký kůň: 馬"
SMALL = PixArtConfig(
    input_size=8,
    hidden_size=48,
    depth=2,
    num_heads=4,
    caption_channels=16,
    interpolation_scale=1,
    micro_condition=False,
)
ENCODED = {
    "utf-8": WORDS.encode(),
    "marked utf-8": codecs.BOM_UTF8 + WORDS.encode(),
    "utf-16 le": codecs.BOM_UTF16_LE + WORDS.encode("utf-16-le"),
    "utf-16 be": codecs.BOM_UTF16_BE + WORDS.encode("utf-16-be"),
    "utf-32 le": codecs.BOM_UTF32_LE + WORDS.encode("utf-32-le"),
}


@pytest.mark.parametrize("kind", ENCODED)
def test_text_is_read_as_its_mark_says(kind):
    assert decode(ENCODED[kind]) == WORDS


def test_without_a_mark_the_encoding_is_the_callers():
    assert decode("é".encode("cp1252"), "cp1252") == "é"
    with pytest.raises(UnicodeDecodeError):
        decode("é".encode("cp1252"))


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16", "utf-16-le", "utf-32"])
def test_json_is_read_in_every_unicode_encoding(tmp_path, encoding):
    (tmp_path / "a.json").write_bytes(json.dumps({"a": WORDS}, ensure_ascii=False).encode(encoding))
    assert read_json(tmp_path / "a.json") == {"a": WORDS}
    assert parse_json("\ufeff[1]") == [1]


def test_json_that_is_nested_too_deep_is_an_error_like_any_other():
    with pytest.raises(ValueError, match="nested too deep"):
        parse_json("[" * 100_000)


def test_a_name_that_is_not_utf8_can_be_written():
    name = os.fsdecode(b"caf\xe9.png")
    assert printable(name).encode() == (b"caf\\udce9.png" if os.sep == "/" else name.encode())


def test_a_model_whose_config_has_a_mark(tmp_path):
    model = PixArt(SMALL)
    save_pixart(model, tmp_path, "diffusers")
    config = tmp_path / "config.json"
    config.write_bytes(codecs.BOM_UTF8 + config.read_bytes())
    torch.testing.assert_close(dict(load_pixart(tmp_path).named_parameters()), dict(model.named_parameters()))


def refuse(monkeypatch, name: str, number: int) -> None:
    def refused(*_arguments, **_named):
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(os, name, refused)


@pytest.mark.parametrize("name, number", [("chmod", errno.EPERM), ("fsync", errno.EINVAL), ("fsync", errno.ENOTSUP)])
def test_a_mount_without_permissions_or_fsync_is_written_to(tmp_path, monkeypatch, name, number):
    refuse(monkeypatch, name, number)
    save_json({"a": 1}, tmp_path / "a.json")
    assert read_json(tmp_path / "a.json") == {"a": 1}


def test_a_disk_that_fails_while_it_writes_is_an_error(tmp_path, monkeypatch):
    refuse(monkeypatch, "fsync", errno.EIO)
    with pytest.raises(CheckpointError, match="could not write"):
        save_json({"a": 1}, tmp_path / "a.json")
    assert not list(tmp_path.iterdir())
