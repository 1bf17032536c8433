"""The help pages' pictures of nodes, and what makes them."""

import re
from pathlib import Path

import pytest

from tools.templates.help_pictures import DRAWN, IMAGES, OPENED, small
from tools.templates.thumbnails import file

ROOT = Path(__file__).resolve().parents[2]
MADE = {*DRAWN, *OPENED, *(name for name, _ in small())}


def test_every_picture_of_nodes_is_made_and_shown():
    pages = "\n".join(page.read_text(encoding="utf-8") for page in (ROOT / "web" / "docs").rglob("*.md"))
    assert MADE == set(re.findall(r"images/wiring_(\w+)\.webp", pages))
    assert MADE == {path.stem.removeprefix("wiring_") for path in IMAGES.glob("wiring_*")}


@pytest.mark.parametrize("name", DRAWN | OPENED)
def test_a_picture_shows_the_template_that_its_page_names(name):
    number = (DRAWN | OPENED)[name]
    assert file(number).is_file()
    pages = [page.read_text(encoding="utf-8") for page in (ROOT / "web" / "docs").glob("*.md")]
    said = {
        int(each) for page in pages for each in re.findall(rf"template PixArt (\d+)\]\(images/wiring_{name}\.", page)
    }
    # One of several trainings' templates stands for all of them.
    assert number in said and (said == {number} or name == "training")
