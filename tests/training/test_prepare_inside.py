"""`only_inside`: what somebody who may not read everything names or links to is left out and reported."""

import json
import os

import numpy as np
import pytest
from pixart_delta.training.config import ConfigError
from pixart_delta.training.data import FeatureDataset
from pixart_delta.training.data.shards import DataError
from pixart_delta.training.prepare import run
from pixart_delta.training.prepare.inside import OutsideError, is_inside
from pixart_delta.training.prepare.run import prepare

from tests.training.picture_fixture import make_pictures, prepare_settings


@pytest.fixture
def secret(tmp_path):
    """Pictures in a folder that may not be read, whose name begins as that of the allowed one."""
    return make_pictures(tmp_path / "pictures_of_others", 4)


def settings(tmp_path, models="", **changes):
    return prepare_settings(tmp_path, models, **{"only_inside": [str(tmp_path / "pictures")], **changes})


def left_out(report):
    return {problem: [name for name, _ in entries] for problem, entries in report.left_out.items()}


def test_a_list_names_pictures_elsewhere(tmp_path, pictures, secret):
    names = ["0000.png", str(secret / "0001.png"), "../pictures_of_others/0002.png", "/nowhere/at/all.png", "none.png"]
    lines = [json.dumps({"file_name": name, "text": "a caption"}) for name in names]
    (pictures / "metadata.jsonl").write_text("\n".join(lines))
    report = prepare(settings(tmp_path), dry_run=True)
    assert report.usable == 1
    assert left_out(report) == {"outside": sorted(names[1:4]), "unreadable": ["none.png"]}
    text = (tmp_path / "out/report.txt").read_text()
    assert "left out, outside the allowed folders: 3" in text and "none of the folders of only_inside" in text
    assert prepare(settings(tmp_path, only_inside=[]), dry_run=True).usable == 3  # and it is looked at anew
    both = [str(tmp_path / "pictures"), str(secret)]
    assert prepare(settings(tmp_path, only_inside=both), dry_run=True).usable == 3


def test_links_lead_elsewhere(tmp_path, models, pictures, secret):
    (pictures / "linked.png").symlink_to(secret / "0001.png")
    (pictures / "linked.txt").write_text("a caption")
    (pictures / "0002.txt").unlink()
    (pictures / "0002.txt").symlink_to(secret / "0002.txt")
    (pictures / "folder").symlink_to(secret)
    (pictures / "inner").symlink_to(make_pictures(pictures / "more", 1))
    report = prepare(settings(tmp_path, models, keep_duplicates=True))
    assert left_out(report) == {"outside": ["0002.png", "folder", "linked.png"]}
    data = FeatureDataset(tmp_path / "out")
    kept = [data.location.open(info).read(row, ["json"])["json"] for info in data.shards for row in range(info.count)]
    own = {f"{number:04d}.png" for number in range(9) if number != 2}
    assert {each["source"] for each in kept} == own | {"inner/0000.png", "more/0000.png"}
    anywhere = prepare(settings(tmp_path, only_inside=[], keep_duplicates=True), dry_run=True)
    assert left_out(anywhere) == {} and anywhere.usable == 16


def test_hints_features_and_lists_elsewhere(tmp_path, pictures, secret):
    hints = pictures / "hints"
    hints.mkdir()
    (hints / "0000.png").symlink_to(secret / "0000.png")
    (hints / "0004.png").symlink_to(pictures / "0004.png")
    entry = {"prompt": "a caption", "height": 64, "width": 64}
    inside = pictures / "list.json"
    inside.write_text(json.dumps([{**entry, "path": "0000.png"}, {**entry, "path": "0004.png"}]))
    report = prepare(settings(tmp_path, input=str(inside), hints="folder", hint_folder=str(hints)), dry_run=True)
    assert left_out(report) == {"outside": ["0000.png"]} and report.usable == 1

    features = pictures / "features"
    features.mkdir()
    np.save(secret / "0000.npy", np.zeros((8, 8, 8), np.float32))
    for name in ("0000.npy", "0004.npy"):
        (features / name).symlink_to(secret / "0000.npy")
    with pytest.raises(DataError, match="no picture .* can be used"):
        prepare(settings(tmp_path, input=str(inside), latents=str(features)), dry_run=True)

    (pictures / "data_info.json").symlink_to(secret / "data_info.json")
    (secret / "data_info.json").write_text(inside.read_text())
    with pytest.raises(OutsideError, match="data_info.json is, links followed, in none of the folders"):
        prepare(settings(tmp_path), dry_run=True)


def test_a_picture_that_becomes_a_link_meanwhile(tmp_path, models, pictures, secret, monkeypatch):
    look = run.survey

    def survey(*arguments):
        found = look(*arguments)
        (pictures / "0004.png").unlink()
        (pictures / "0004.png").symlink_to(secret / "0000.png")
        return found

    monkeypatch.setattr(run, "survey", survey)
    with pytest.raises(DataError, match="0004.png has changed since it was looked at .*none of the folders"):
        prepare(settings(tmp_path, models))


def test_inside(tmp_path):
    (tmp_path / "a").mkdir()
    (tmp_path / "link").symlink_to(tmp_path / "a")
    allowed = [str(tmp_path / "link")]  # an allowed folder may itself be a link
    assert is_inside(tmp_path / "a" / "x.png", allowed) and is_inside(tmp_path / "link" / "x.png", allowed)
    assert is_inside(tmp_path / "a", allowed) and is_inside(tmp_path / "b/../a/x", allowed)
    assert not is_inside(tmp_path / "a/../b", allowed) and not is_inside(tmp_path / "ab/x", allowed)
    assert is_inside(tmp_path / "b", [])
    os.symlink("loop", tmp_path / "a/loop")
    assert is_inside(tmp_path / "a/loop", allowed)  # it leads nowhere: opening it fails as for any bad picture


@pytest.mark.parametrize("value", ["/a", ["/a", ""], [1]])
def test_what_only_inside_takes(tmp_path, value):
    with pytest.raises(ConfigError, match="only_inside is .*list"):
        settings(tmp_path, only_inside=value)
