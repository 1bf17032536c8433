"""Lists and captions of other systems, every format that Pillow reads, folders that are not well-behaved.

What is read is read whole, and what is not is named.
"""

import json
import os
import sys

import pytest
from PIL import Image, features
from pixart_delta.training.config import ConfigError, PrepareConfig
from pixart_delta.training.data.shards import DataError
from pixart_delta.training.prepare.pictures import PictureError, formats, open_picture, suffixes
from pixart_delta.training.prepare.run import prepare
from pixart_delta.training.prepare.sources import CaptionError, find_sources, read_sources

from tests.training.picture_fixture import draw_picture, make_pictures, prepare_settings

LONG = "a red car, parked by the sea, at dusk"
posix = pytest.mark.skipif(sys.platform == "win32", reason="a file system of Linux or macOS")


def listed(folder, text: str, name="metadata.csv", encoding="utf-8", **options):
    """Picture -> wordings of a list with this text."""
    (folder / name).write_bytes(text.encode(encoding))
    return {source.name: source.captions() for source in read_sources(folder / name, **options)}


@pytest.mark.parametrize(
    "text",
    [
        f'file_name,text\n1.png,"{LONG}"\n2.png,a cat\n',
        f'file_name,text\r\n1.png,"{LONG}"\r\n2.png,a cat\r\n',
        f'file_name,text\r1.png,"{LONG}"\r2.png,a cat\r',
        f'\ufeffFile_Name, Text\n1.png, "{LONG}"\n\n2.png, a cat',
        f"file_name;text\n1.png;{LONG}\n2.png;a cat\n",
        f"sep=;\nfile_name;text\n1.png;{LONG}\n2.png;a cat\n",
        f"file_name\ttext\n1.png\t{LONG}\n2.png\ta cat\n",
        f"file_name|text\n1.png|{LONG}\n2.png|a cat\n",
        f'file_name,text,\n1.png,"{LONG}",\n2.png,a cat,\n',
        f',filename,caption\n0,1.png,"{LONG}"\n1,2.png,a cat\n',
    ],
)
def test_tables_of_other_systems(tmp_path, text):
    assert listed(tmp_path, text) == {"1.png": (LONG,), "2.png": ("a cat",)}


@pytest.mark.parametrize("encoding", ["utf-8-sig", "utf-16", "utf-32"])
@pytest.mark.parametrize("name", ["metadata.csv", "METADATA.JSONL", "data_info.json"])
def test_lists_in_every_unicode_encoding(tmp_path, name, encoding):
    rows = [{"path": "1.png", "prompt": "café 馬"}, {"path": "2.png", "prompt": "b"}]
    text = {
        "metadata.csv": "path,prompt\n1.png,café 馬\n2.png,b\n",
        "METADATA.JSONL": "\r\n".join(json.dumps(row, ensure_ascii=False) for row in rows),
        "data_info.json": json.dumps(rows, ensure_ascii=False),
    }[name]
    expected = {"1.png": ("café 馬",), "2.png": ("b",)}
    assert listed(tmp_path, text, name, encoding) == expected
    assert {source.name for source in read_sources(tmp_path)} == set(expected), "found in the folder, whatever its case"


def test_another_encoding_is_said_and_never_guessed(tmp_path):
    text = "path,prompt\n1.png,cat\n2.png,café\n"
    with pytest.raises(
        DataError, match=r"metadata.csv cannot be read as UTF-8 text, from line 3 on: save it as UTF-8, or"
    ):
        listed(tmp_path, text, encoding="cp1252")
    assert read_sources(tmp_path, encoding="cp1252")[1].captions() == ("café",)
    with pytest.raises(DataError, match="line 1 holds a NUL; if it is UTF-16, say so"):
        listed(tmp_path, text.replace("é", "e"), encoding="utf-16-le")
    with pytest.raises(ConfigError, match="encoding is 'latin-17': Python knows none"):
        PrepareConfig(input="a", output="b", encoding="latin-17")


@pytest.mark.parametrize(
    "text, problem",
    [
        (f"file_name,text\n1.png,{LONG}\n2.png,a cat\n", "line 2: it has 4 cells, and there are 2 columns"),
        ("file_name,text\n1.png,a cat\n2.png\n", "line 3: it has 1 cells"),
        ('file_name,text\n1.png,"a 12 inch vase\n2.png,a cat\n', "line 2: unexpected end of data"),
        ('file_name,text\n1.png,a cat\n2.png,"The Kiss" by Klimt\n', "line 3: ',' expected after '\"'"),
        ('file_name,text\n1.png,"a \\"big\\" dog"\n', "line 2: ',' expected"),
        ('file_name,text\n1.png,"a vase\n2.png,a 12"\n3.png,a cat\n', "line 2: the text that begins here in quotes"),
        ('text,file_name\n"a vase,1.png\na 12",2.png\n', "line 2: the text that begins here in quotes"),
        ('file_name,text\n1.png,"' + "word " * 40_000, "line 2: field larger than"),
        (
            "file_name,text\n1.png,a car\nparked by the sea,at dusk\n",
            "line 3: 'parked by the sea' is no name of a picture",
        ),
        ("1.png,a car\n2.png,a cat\n", "line 1: no column is for the pictures' names"),
        ("file_name,text,text\n1.png,a,b\n", "line 1: there are several columns text"),
    ],
)
def test_a_row_that_cannot_be_meant_so_is_named(tmp_path, text, problem):
    with pytest.raises(DataError) as caught:
        listed(tmp_path, text)
    assert f"metadata.csv, {problem}" in str(caught.value)


def test_a_text_of_several_lines_in_quotes_is_one_caption(tmp_path):
    text = 'file_name,text\n1.png,"a ""12"" vase,\non a table"\n2.png,a 12" vase\n'
    assert listed(tmp_path, text) == {"1.png": ('a "12" vase,\non a table',), "2.png": ('a 12" vase',)}


@pytest.mark.parametrize(
    "name, text, problem",
    [
        ("metadata.jsonl", '{"path": "1.png"}\n\n{"path": \n', "line 3 cannot be read"),
        ("metadata.jsonl", '{"path": "1.png"}\n["2.png"]\n', "line 2: a JSON object is wanted"),
        ("data_info.json", '{"1.png": "a cat"}', "a JSON list of objects is wanted"),
        ("data_info.json", '[{"path": "1.png", "prompt": ["a", 5]}]', "entry 1: a caption is no text"),
    ],
)
def test_a_bad_entry_is_named(tmp_path, name, text, problem):
    with pytest.raises(DataError) as caught:
        listed(tmp_path, text, name)
    assert problem in str(caught.value)


def test_names_that_windows_wrote_and_a_separator_that_json_allows(tmp_path):
    (tmp_path / "a").mkdir()
    rows = [{"file_name": "a\\1.png", "text": "one\u2028and\u0085still one"}]
    made = listed(tmp_path, json.dumps(rows[0], ensure_ascii=False), "metadata.jsonl")
    assert made == {"a/1.png" if os.sep == "/" else "a\\1.png": ("one\u2028and\u0085still one",)}


@pytest.mark.parametrize(
    "name, data, wordings",
    [
        ("1.txt", b"one\r\n\r\ntwo\r\n", ("one", "two")),
        ("1.txt", b"one\rtwo\r", ("one", "two")),
        ("1.txt", "caf\u00e9\ntwo".encode("utf-16"), ("café", "two")),
        ("1.txt", "one\u2028and\u000cstill one".encode(), ("one\u2028and\x0cstill one",)),
        ("1.TXT", b"upper case", ("upper case",)),
        ("1.PNG.txt", b"beside its full name", ("beside its full name",)),
    ],
)
def test_captions_of_other_systems(tmp_path, name, data, wordings):
    draw_picture(0, 16, 16).save(tmp_path / "1.PNG")
    (tmp_path / name).write_bytes(data)
    (source,) = read_sources(tmp_path)
    assert source.captions() == wordings
    assert not find_sources(tmp_path).unused


def test_a_caption_in_another_encoding_is_named_or_read_as_told(tmp_path):
    draw_picture(0, 16, 16).save(tmp_path / "1.png")
    (tmp_path / "1.txt").write_bytes("fine\ncafé".encode("cp1252"))
    (source,) = read_sources(tmp_path)
    with pytest.raises(CaptionError, match="1.txt cannot be read as UTF-8 text, from line 2 on"):
        source.captions()
    assert source.captions("cp1252") == ("fine", "café")


def test_what_pillow_reads_is_read_and_the_rest_is_named(tmp_path, capsys):
    folder = tmp_path / "pictures"
    kinds = {"a.png": "PNG", "b.jfif": "JPEG", "c.JPE": "JPEG", "d.jp2": "JPEG2000", "e.AVIF": "AVIF"}
    checks = {"JPEG2000": "jpg_2000", "AVIF": "avif"}
    folder.mkdir()
    kinds = {name: kind for name, kind in kinds.items() if kind not in checks or features.check(checks[kind])}
    for number, (name, kind) in enumerate(kinds.items()):
        draw_picture(number, 64, 64).save(folder / name, kind)
        (folder / name).with_suffix(".txt").write_text(f"picture {name}")
    (folder / "f.raw9").write_bytes(b"a camera's own")
    (folder / "f.txt").write_text("picture f")
    (folder / ".hidden").write_text("")
    report = prepare(prepare_settings(tmp_path, "", workers=0), dry_run=True)
    assert report.usable == report.pictures == len(kinds)
    assert [name for name, _ in report.unused] == ["f.raw9", "f.txt"]
    text = capsys.readouterr().out
    assert "no picture that Pillow reads here (.raw9): 1\n    f.raw9" in text
    assert "a caption without a picture that can be read: 1\n    f.txt" in text
    assert json.loads((tmp_path / "out/report.json").read_text())["unused"][0][0] == "f.raw9"


def test_pictures_that_no_list_names_are_named(tmp_path):
    make_pictures(tmp_path / "a", 3)
    (tmp_path / "a/metadata.csv").write_text("file_name,text\n0000.png,one\n./0001.png,two\n")
    (tmp_path / "a/data_info.jsonl").write_text("")
    found = find_sources(tmp_path / "a")
    assert len(found.sources) == 2
    assert found.unused == [
        ("0002.png", "no list names it"),
        ("data_info.jsonl", "no picture that Pillow reads here (.jsonl)"),
    ]


def test_postscript_is_not_handed_to_another_program(tmp_path):
    assert "EPS" not in formats() and ".eps" not in suffixes()
    Image.new("RGB", (8, 8)).save(tmp_path / "a.eps")
    (tmp_path / "a.eps").rename(tmp_path / "a.png")
    with pytest.raises(PictureError, match="UnidentifiedImageError"):
        open_picture(tmp_path / "a.png")


@posix
def test_links_in_a_circle_and_pipes(tmp_path):
    make_pictures(tmp_path / "a", 1)
    make_pictures(tmp_path / "b", 1)
    (tmp_path / "a/inner").mkdir()
    (tmp_path / "a/inner/up").symlink_to(tmp_path / "a")
    (tmp_path / "a/b").symlink_to(tmp_path / "b")
    (tmp_path / "b/a").symlink_to(tmp_path / "a")
    (tmp_path / "a/self.png").symlink_to("self.png")
    os.mkfifo(tmp_path / "a/pipe.png")
    assert [source.name for source in read_sources(tmp_path / "a")] == [
        "0000.png",
        "b/0000.png",
        "pipe.png",
        "self.png",
    ]
    with pytest.raises(PictureError, match="it is no file"):
        open_picture(tmp_path / "a/pipe.png")
    os.mkfifo(tmp_path / "b/0000.caption")
    (tmp_path / "b/0000.txt").unlink()
    with pytest.raises(CaptionError, match="0000.caption is no file"):
        read_sources(tmp_path / "b")[0].captions()
    report = prepare(prepare_settings(tmp_path, "", input=str(tmp_path / "a")), dry_run=True)
    assert report.usable == 1 and {name for name, _ in report.left_out["unreadable"]} == {"pipe.png", "self.png"}


@posix
def test_a_folder_that_may_not_be_looked_into_is_named(tmp_path, monkeypatch):
    make_pictures(tmp_path / "a/shut", 1)
    make_pictures(tmp_path / "a", 1)
    scan = os.scandir

    def scandir(place):
        if str(place).endswith("shut"):
            raise PermissionError(13, "Permission denied")
        return scan(place)

    monkeypatch.setattr(os, "scandir", scandir)
    assert [source.name for source in read_sources(tmp_path / "a")] == ["0000.png", "shut"]


@posix
def test_a_name_that_is_not_utf8(tmp_path, models):
    """It is prepared when it can be used, and named when not."""
    folder = make_pictures(tmp_path / "pictures", 2)
    try:
        os.rename(folder / "0000.png", os.fsencode(folder) + b"/caf\xe9.png")
        os.rename(folder / "0000.txt", os.fsencode(folder) + b"/caf\xe9.txt")
        os.rename(folder / "0001.png", os.fsencode(folder) + b"/th\xe9.png")
    except OSError:
        pytest.skip("this file system takes UTF-8 only")
    report = prepare(prepare_settings(tmp_path, models))
    assert report.usable == 1 and (tmp_path / "out/dataset.json").exists()
    assert "th\\udce9.png: there is no th\\udce9.txt" in (tmp_path / "out/report.txt").read_text("utf-8")


def test_a_first_line_without_end_names_no_columns(tmp_path):
    (tmp_path / "metadata.csv").write_text("[" * 200_000)
    with pytest.raises(DataError, match=r"metadata\.csv, line 1: no column"):
        read_sources(tmp_path / "metadata.csv")
