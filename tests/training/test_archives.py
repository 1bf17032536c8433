"""Pictures in tars, zips and Parquet, here and behind URLs: the same shards as of the folder that was packed."""

import functools
import http.server
import json
import sys
import tarfile
import threading
from pathlib import Path

import fsspec
import pytest
from pixart_delta.training.data import DataError, waiting
from pixart_delta.training.prepare import archives, tables
from pixart_delta.training.prepare.archives import find_archives
from pixart_delta.training.prepare.inside import OutsideError
from pixart_delta.training.prepare.run import prepare

from tests.training.archives_fixture import Store, add, pack_table, pack_tars, pack_zip
from tests.training.picture_fixture import make_pictures, prepare_settings, shard_bytes

COUNT = 12


@pytest.fixture(scope="module")
def packed(tmp_path_factory):
    """The same pictures as a folder, and in archives of every kind."""
    root = tmp_path_factory.mktemp("packed")
    folder = make_pictures(root / "pictures", COUNT)
    (folder / "0003.txt").write_text("two wordings\nof one picture\n")
    return {
        "folder": folder,
        "tar": pack_tars(folder, root / "tars"),
        "parquet": pack_table(folder, root / "tables"),
        "zip": pack_zip(folder, root / "zips"),
    }


@pytest.fixture(scope="module")
def expected(packed, models, tmp_path_factory):
    """The shards of the folder."""
    return made(packed["folder"], models, tmp_path_factory.mktemp("expected"))


SETTINGS = {"shard_size": 5, "batch_size": 8}


def made(location, models, folder: Path, **changes) -> dict[str, bytes]:
    prepare(prepare_settings(folder, models, **SETTINGS, input=str(location), **changes))
    return shard_bytes(folder / "out")


def looked_at(location, models, folder: Path, **changes) -> dict:
    """The report alone."""
    prepare(prepare_settings(folder, models, input=str(location), **changes), dry_run=True)
    return json.loads((folder / "out" / "report.json").read_text())


@pytest.mark.parametrize("kind, workers", [("tar", 0), ("parquet", 2), ("zip", 2)])
def test_archives_make_the_shards_of_the_folder(kind, workers, packed, expected, models, tmp_path, capsys):
    assert made(packed[kind], models, tmp_path, workers=workers) == expected
    said = capsys.readouterr().out
    assert f"{COUNT} pictures in {packed[kind]}: {COUNT} can be used" in said
    assert ("pictures are column image, captions column text" in said) == (kind == "parquet")


@pytest.fixture
def serve(tmp_path, monkeypatch):
    """serve(folder, parts=…, busy=…) -> URL."""
    monkeypatch.setenv("PIXART_DELTA_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(waiting, "FIRST_PAUSE", 0.02)
    servers = []

    def start(folder, **options):
        handler = functools.partial(type("Kind", (Store,), options), directory=str(folder))
        servers.append(http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler))
        threading.Thread(target=servers[-1].serve_forever, daemon=True).start()
        return f"http://127.0.0.1:{servers[-1].server_port}"

    yield start
    for server in servers:
        server.shutdown()
        server.server_close()


@pytest.mark.parametrize(
    "kind, pattern, parts",
    [("tar", "{00000..00009}.tar", False), ("parquet", "train-{00000..00001}-of-00002.parquet", True)],
)
def test_a_web_server_gives_the_same(kind, pattern, parts, serve, packed, expected, models, tmp_path):
    url = serve(packed[kind], parts=parts, busy=2)
    assert made(f"{url}/{pattern}", models, tmp_path, workers=1) == expected
    assert bool(list((tmp_path / "cache").rglob(f"*.{kind}"))) != parts  # copied only where it has to be


def test_an_s3_server_gives_the_same(packed, expected, models, tmp_path, monkeypatch):
    pytest.importorskip("s3fs")
    server = pytest.importorskip("moto.server").ThreadedMotoServer("127.0.0.1", 0, verbose=False)
    server.start()
    try:
        host, port = server.get_host_and_port()
        options = {"endpoint_url": f"http://{host}:{port}", "key": "key", "secret": "secret"}
        monkeypatch.setitem(fsspec.config.conf, "s3", options)
        files = fsspec.filesystem("s3")
        files.mkdir("pictures")
        for kind in ("tar", "parquet", "zip"):
            for file in packed[kind].iterdir():
                files.pipe(f"pictures/{kind}/{file.name}", file.read_bytes())
        assert made("s3://pictures/tar", models, tmp_path / "tar") == expected
        for location in ("s3://pictures/parquet/*.parquet", "s3://pictures/zip/all.zip"):
            assert looked_at(location, models, tmp_path / location.replace("*", "_"))["usable"] == COUNT
    finally:
        server.stop()


def test_what_is_made_already_is_kept_and_archives_are_looked_through_once(
    packed, expected, models, tmp_path, monkeypatch
):
    settings = {"input": str(packed["tar"]), **SETTINGS}
    for part in (1, 0):
        prepare(prepare_settings(tmp_path, models, **settings, part=part, parts=2))
    assert shard_bytes(tmp_path / "out") == expected
    gone = sorted((tmp_path / "out").glob("*.tar"))[1]
    before = {file: file.stat().st_mtime_ns for file in (tmp_path / "out").glob("*.tar") if file != gone}
    gone.unlink()
    monkeypatch.setattr(archives.Listing, "_read", None)  # a second look would call it
    prepare(prepare_settings(tmp_path, models, **settings))
    assert shard_bytes(tmp_path / "out") == expected
    assert before == {file: file.stat().st_mtime_ns for file in before}


def test_captions_of_a_tar(packed, models, tmp_path, capsys):
    pictures = sorted(packed["folder"].glob("*.png"))[:5]
    with tarfile.open(tmp_path / "x.tar", "w") as tar:
        for picture, others in zip(
            pictures,
            (
                {"json": b'{"prompt": "of the list"}'},
                {"txt": b"\xff\xfe\xfa", "json": b'{"caption": "not taken instead"}'},
                {"xyz": b"", "json": b'{"caption": ["one", "two"], "own": "mine"}'},
                {"png.txt": b"beside"},
                {},
            ),
            strict=True,
        ):
            add(tar, f"./deep/{picture.name}", picture.read_bytes())
            for suffix, data in others.items():
                add(tar, f"./deep/{picture.stem}.{suffix}", data)
    report = looked_at(tmp_path / "x.tar", models, tmp_path)
    assert [name for name, _ in report["left_out"]["caption"]] == ["deep/0001.png", "deep/0004.png"]
    assert "cannot be read as UTF-8" in report["left_out"]["caption"][0][1]
    assert "no .txt, .caption or .json with a caption" in report["left_out"]["caption"][1][1]
    assert report["wordings"] == 4
    assert report["unused"] == [["deep/0002.xyz", "no picture that Pillow reads here (.xyz)"]]
    assert looked_at(tmp_path / "x.tar", models, tmp_path / "own", caption_column="own")["usable"] == 1


def test_equal_names_in_several_archives_are_told_apart(packed, models, tmp_path):
    picture = (packed["folder"] / "0000.png").read_bytes()
    for name, data in (("a", picture), ("b", (packed["folder"] / "0002.png").read_bytes())):
        with tarfile.open(tmp_path / f"{name}.tar", "w") as tar:
            add(tar, "0.png", data)
            add(tar, "0.txt", b"words")
    both = f"{tmp_path / 'a.tar'}::{tmp_path / 'b.tar'}"
    shards = made(both, models, tmp_path)
    assert json.loads(shards["dataset.json"])["pictures"] == 2
    assert b'"a/0.png"' in b"".join(shards.values()) and b'"b/0.png"' in b"".join(shards.values())


@pytest.mark.parametrize(
    "change, message",
    [
        ({}, "a and b can hold captions: say which with caption_column="),
        ({"caption_column": "c"}, "caption_column=c is no column of captions; its columns are image, a, b"),
        ({"caption_column": "a", "image_column": "b"}, "image_column=b is no column of pictures"),
        ({"caption_column": "b"}, ""),
    ],
)
def test_columns_that_cannot_be_guessed_are_asked_for(change, message, packed, models, tmp_path):
    import pyarrow
    from pyarrow import parquet

    pictures = sorted(packed["folder"].glob("*.png"))[:2]
    columns = {"image": [each.read_bytes() for each in pictures], "a": ["one", "two"], "b": [["x", "y"], ["z"]]}
    parquet.write_table(pyarrow.table(columns), tmp_path / "x.parquet")
    if message:
        with pytest.raises(DataError, match=message):
            looked_at(tmp_path / "x.parquet", models, tmp_path, **change)
        return
    assert looked_at(tmp_path / "x.parquet", models, tmp_path, **change)["wordings"] == 3


@pytest.mark.parametrize("kind", ["tar", "parquet", "zip"])
def test_a_damaged_archive_is_named(kind, packed, models, tmp_path):
    file = sorted(packed[kind].glob(f"*.{kind}"))[0]
    broken = tmp_path / f"broken.{kind}"
    content = file.read_bytes()
    broken.write_bytes(content[: len(content) // 2])
    with pytest.raises(DataError, match=f"broken.{kind} (cannot be read|is damaged)"):
        looked_at(broken, models, tmp_path)
    at = {"tar": 0, "parquet": 8, "zip": content.rindex(b"PK\1\2") if kind == "zip" else 0}[kind]
    broken.write_bytes(content[:at] + b"\xff" * 400 + content[at + 400 :])
    with pytest.raises(DataError, match=f"broken.{kind} (cannot be read|is damaged)"):
        made(broken, models, tmp_path / "other", workers=1)


def test_a_picture_without_content_is_left_out(packed, models, tmp_path):
    import pyarrow
    from pyarrow import parquet

    good = (packed["folder"] / "0000.png").read_bytes()
    images = [{"bytes": good, "path": None}, {"bytes": None, "path": "/home/x.png"}, {"bytes": b"x", "path": None}]
    parquet.write_table(pyarrow.table({"image": images, "text": ["a", "b", "c"]}), tmp_path / "x.parquet")
    report = looked_at(tmp_path / "x.parquet", models, tmp_path)
    assert report["usable"] == 1
    assert dict(report["left_out"]["unreadable"])["/home/x.png"] == "the table holds no bytes of it, only a name"


def test_a_missing_package_is_named(packed, models, tmp_path, monkeypatch):
    tables._cursor.cache_clear()
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    with pytest.raises(DataError, match=r"\.parquet needs a package that is not installed here: pip install pyarrow"):
        looked_at(packed["parquet"], models, tmp_path)


def test_archives_outside_are_refused(packed, tmp_path):
    with pytest.raises(OutsideError, match="00000.tar is, links followed, in none of the folders"):
        find_archives(str(packed["tar"]), [str(tmp_path)])
    with pytest.raises(OutsideError, match="is at a URL, and only the folders"):
        find_archives("https://example.com/x.tar", [str(tmp_path)])
    with pytest.raises(DataError, match="holds none"):
        find_archives(str(tmp_path / "*.tar"))
    assert find_archives(str(packed["folder"])) == find_archives(str(tmp_path)) == []
    (packed["folder"] / "extra.tar").write_bytes(b"")
    assert find_archives(str(packed["folder"])) == []  # it has pictures
    (packed["folder"] / "extra.tar").unlink()
