"""Translations of the nodes: English is what the schemas say, the others have the same keys."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from tools.locales import HEADINGS, as_json, help_pages, node_texts

ROOT = Path(__file__).resolve().parents[2]
LANGUAGES = sorted(path.parent.name for path in (ROOT / "locales").glob("*/nodeDefs.json"))
TRAINERS = ("TrainLCD", "TrainLCMLora", "TrainControlNet", "FineTune")
"""Their inputs are the trainer's own settings: a new one is shown in English until it is translated."""


def read(language: str) -> dict:
    return json.loads((ROOT / "locales" / language / "nodeDefs.json").read_text(encoding="utf-8"))


def keys(texts: dict, path: tuple = ()) -> set[tuple]:
    return {
        found
        for key, value in texts.items()
        for found in (keys(value, (*path, key)) if isinstance(value, dict) else {(*path, key)})
    }


def test_english_is_what_the_schemas_say(comfy_server):
    """`python -m tools.locales` writes it anew."""
    assert as_json(read("en")) == as_json(node_texts(comfy_server.object_info()))


@pytest.mark.parametrize("language", [language for language in LANGUAGES if language != "en"])
def test_another_language_has_the_same_keys(language):
    english, other = keys(read("en")), keys(read(language))
    assert other <= english, sorted(other - english)
    missing = {key for key in english - other if not (key[0].endswith(TRAINERS) and key[1] == "inputs")}
    assert missing == set()


def test_the_languages_of_the_nodes():
    assert {"en", "zh", "ja"} <= set(LANGUAGES)


def test_help_in_other_languages_is_what_their_texts_say():
    """`python -m tools.locales` writes it anew, after a change of the English example, too."""
    pages = dict(help_pages())
    assert len(pages) == len(HEADINGS) * len(read("en"))
    for path, text in pages.items():
        assert path.read_text(encoding="utf-8") == text, path.name
