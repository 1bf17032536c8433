"""Shards that come from elsewhere: fetched once, whole or not at all, within the limit of their cache."""

import functools
import http.server
import os
import threading

import fsspec
import pytest
from pixart_delta.training.data import DataError, FeatureDataset, remote, waiting
from pixart_delta.training.data.waiting import Patience

from tests.training.shards_fixture import make_features, same, take


@pytest.fixture
def server(features):
    class Quiet(http.server.SimpleHTTPRequestHandler):
        asked: list = []

        def log_message(self, *arguments):
            self.asked.append(self.path)

    handler = functools.partial(Quiet, directory=str(features))
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{server.server_port}", Quiet.asked
        server.shutdown()
        Quiet.asked.clear()


@pytest.mark.parametrize("workers", [0, 2])
def test_shards_come_over_http_and_are_kept(server, features, tmp_path, workers):
    url, asked = server
    assert all(map(same, take(url, 8, cache=tmp_path, workers=workers), take(features, 8)))
    assert len([path for path in asked if path.endswith(".tar")]) >= 5
    asked.clear()
    assert same(take(url, 1, cache=tmp_path)[0], take(features, 1)[0])
    assert set(asked) == {"/dataset.json"}
    assert {file.name[17:] for file in tmp_path.rglob("*.tar")} == {file.name for file in features.glob("*.tar")}


def test_a_damaged_download_is_not_kept(tmp_path, monkeypatch):
    monkeypatch.setattr(waiting, "FIRST_PAUSE", 0.01)
    files = fsspec.filesystem("memory")  # as s3 and all others of fsspec
    for file in make_features(tmp_path / "local").iterdir():
        files.pipe(f"/bucket/{file.name}", file.read_bytes())
    url = "memory://bucket"
    assert len(take(url, 1, cache=tmp_path / "cache")[0]["keys"]) == 4
    files.pipe("/bucket/64x64_00000.tar", b"not what was prepared")
    with pytest.raises(DataError, match="memory://bucket/64x64_00000.tar is damaged or not the one that dataset.json"):
        take(url, 5, cache=tmp_path / "other")
    files.rm("/bucket/64x64_00001.tar")
    with pytest.raises(DataError, match="memory://bucket/64x64_0000[01].tar"):
        take(url, 5, cache=tmp_path / "other")
    assert not list((tmp_path / "other").rglob("*64x64_00000.tar")) and not list(tmp_path.rglob(".*.tmp"))
    with pytest.raises(DataError, match="nowhere/dataset.json cannot be read: FileNotFoundError"):
        FeatureDataset("memory://nowhere")
    with pytest.raises(DataError, match="unheard-of://x/dataset.json cannot be read: ValueError Protocol not known"):
        FeatureDataset("unheard-of://x")


def test_a_failing_network_is_tried_again(features, tmp_path, monkeypatch):
    monkeypatch.setattr(waiting, "FIRST_PAUSE", 0.01)
    failures = iter([ConnectionError("reset"), ConnectionError("reset"), None] * 3)
    real = remote._download

    def flaky(url, path):
        path.write_bytes(b"half of it")
        if (error := next(failures)) is not None:
            raise error
        return real(url, path)

    monkeypatch.setattr(remote, "_download", flaky)
    url = f"file://{features}"
    assert same(take(url, 1, cache=tmp_path)[0], take(features, 1)[0])
    monkeypatch.setattr(remote, "_download", lambda *_: (_ for _ in ()).throw(ConnectionError("reset")))
    info = FeatureDataset(features).shards[0]
    with pytest.raises(DataError, match=r"tar cannot be read: ConnectionError reset. It was waited for 0:00:0\d"):
        Patience(limit=0.1).get(lambda: remote.Location(url, tmp_path / "other").open(info))


def test_a_shard_that_was_cut_short_in_the_cache_is_fetched_again(features, tmp_path):
    url = f"file://{features}"
    before = take(url, 8, cache=tmp_path)
    for file in tmp_path.rglob("*.tar"):
        os.truncate(file, 9000)
    remote._open.cache_clear()
    assert all(map(same, before, take(url, 8, cache=tmp_path)))
    assert {file.stat().st_size for file in tmp_path.rglob("*.tar")} == {
        file.stat().st_size for file in features.glob("*.tar")
    }


def test_two_fetch_the_same_shard_at_once(features, tmp_path, monkeypatch):
    """The second begins and ends while the first is under way; both have the same process number, as in containers."""
    data = FeatureDataset(f"file://{features}", tmp_path)
    info, real = data.shards[0], remote._download

    def download(url, path):
        monkeypatch.setattr(remote, "_download", real)
        digest = real(url, path)
        assert data.location.open(info).read(0, ["json"])
        return digest

    monkeypatch.setattr(remote, "_download", download)
    assert data.location._local(info).stat().st_size == info.bytes
    assert [file.name[17:] for file in data.location.cache.iterdir()] == [info.name]


def test_a_missing_package_is_named(monkeypatch):
    def missing(*_arguments):
        raise ImportError("Install s3fs to access S3")  # as fsspec says it

    monkeypatch.setattr(fsspec.core, "url_to_fs", missing)
    with pytest.raises(DataError, match="^s3:// needs a package .* .Install s3fs to access S3.: install it with pip$"):
        FeatureDataset("s3://bucket/features")


def test_the_limit_is_that_of_all_datasets(tmp_path, monkeypatch):
    for name in ("one", "two"):
        make_features(tmp_path / name)
    largest = max(file.stat().st_size for file in tmp_path.glob("*/*.tar"))
    monkeypatch.setattr(remote, "CACHE_GIGABYTES", 2.5 * largest / 1e9)
    for name in ("one", "two"):
        take(f"file://{tmp_path / name}", 10, cache=tmp_path / "cache")
    assert 0 < sum(file.stat().st_size for file in (tmp_path / "cache").rglob("*.tar")) <= 2.5 * largest


def test_the_cache_stays_within_its_limit(features, tmp_path, monkeypatch):
    largest = max(file.stat().st_size for file in features.glob("*.tar"))
    monkeypatch.setattr(remote, "CACHE_GIGABYTES", 2.5 * largest / 1e9)
    remote._open.cache_clear()
    take(f"file://{features}", 10, cache=tmp_path)
    kept = [file.stat().st_size for file in tmp_path.rglob("*.tar")]
    assert 0 < sum(kept) <= 2.5 * largest
