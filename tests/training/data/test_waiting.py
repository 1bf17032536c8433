"""A store of features that is busy, out of reach, slow or cut off is waited for; one that says no is not."""

import functools
import http.server
import json
import os
import signal
import socket
import threading
import time

import fsspec
import fsspec.implementations.local
import pytest
from pixart_delta.pixart_core.leftovers import remove_leftovers
from pixart_delta.training.data import DataError, FeatureDataset, remote, waiting
from pixart_delta.training.data.remote import Location
from pixart_delta.training.data.waiting import Interrupted, Patience, StoreBusy
from pixart_delta.training.run_dir import RunDir

from tests.training.runs_fixture import PATIENCE, forked, make_material, run_processes, settings, wait_until
from tests.training.shards_fixture import same, take


class Store(http.server.SimpleHTTPRequestHandler):
    """A folder over HTTP. `trouble(path, number)` says what befalls a request: a status, "cut", "stall" or None."""

    protocol_version = "HTTP/1.1"

    def __init__(self, *arguments, trouble, asked, ended, **options):
        self.trouble, self.asked, self.ended = trouble, asked, ended
        super().__init__(*arguments, **options)

    def log_message(self, *_arguments):
        pass

    def do_GET(self):
        self.asked.append(self.path)
        what = self.trouble(self.path, self.asked.count(self.path))
        if isinstance(what, int):
            self.send_error(what)
            return
        if what is None:
            super().do_GET()
            return
        data = open(self.translate_path(self.path), "rb").read()
        self.send_response(200)
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        self.wfile.write(data[: len(data) // 2])
        if what == "stall":
            self.wfile.flush()
            self.ended.wait(60)
        self.close_connection = True


@pytest.fixture
def serve(monkeypatch):
    """serve(folder, trouble, port) -> URL and the list of paths that were asked for."""
    monkeypatch.setattr(waiting, "FIRST_PAUSE", 0.02)
    servers, ended = [], threading.Event()

    def start(folder, trouble=lambda path, number: None, port=0, kind=Store):
        asked = []
        handler = functools.partial(kind, directory=str(folder), trouble=trouble, asked=asked, ended=ended)
        server = http.server.ThreadingHTTPServer(("127.0.0.1", port), handler)
        server.handle_error = lambda *_: None
        servers.append(server)
        threading.Thread(target=server.serve_forever, daemon=True).start()
        return f"http://127.0.0.1:{server.server_port}", asked

    yield start
    ended.set()
    for server in servers:
        server.shutdown()
        server.server_close()


@pytest.mark.parametrize("trouble", [503, 500, 429, 403, "cut", "stall"])
@pytest.mark.parametrize("workers", [0, 1])
def test_trouble_that_passes_changes_nothing(trouble, workers, serve, features, tmp_path, monkeypatch):
    monkeypatch.setattr(remote, "STALLED", 1.0)
    shard = FeatureDataset(features).shards[0].name
    url, asked = serve(
        features, lambda path, number: trouble if number < 3 and path.endswith((shard, "json")) else None
    )
    assert all(map(same, take(url, 5, cache=tmp_path, workers=workers), take(features, 5)))
    assert min(asked.count("/dataset.json"), asked.count(f"/{shard}")) >= 3
    cache = Location(url, tmp_path).cache

    def is_clean():
        remove_leftovers(cache)  # of a reader that a slow machine ended in the middle; as the next download does
        return not [file for file in tmp_path.rglob("*") if file.name.endswith(".tmp")]

    assert wait_until(is_clean, 10)  # a transfer that was given up may make its file just now


@pytest.mark.parametrize("wrong", ["cut", "empty", "page"])
def test_a_wrong_answer_that_passes_changes_nothing(wrong, serve, features, tmp_path):
    """Without a length nobody notices that a body was cut; a proxy gives a page of its own. Twice, not for ever."""

    class Answer(Store):
        protocol_version = "HTTP/1.0"

        def do_GET(self):
            self.asked.append(self.path)
            data = open(self.translate_path(self.path), "rb").read()
            if self.asked.count(self.path) < self.trouble:
                data = {"cut": data[: len(data) // 2], "empty": b"", "page": b"<html>Please log in"}[wrong]
            self.send_response(200)
            self.end_headers()
            self.wfile.write(data)

    url, asked = serve(features, 3, kind=Answer)
    assert all(map(same, take(url, 5, cache=tmp_path), take(features, 5)))
    assert 3 <= asked.count("/dataset.json") <= 5  # a slow machine's connection that breaks is asked again at once
    with pytest.raises(DataError, match="dataset.json is damaged: run `prepare` again"):
        FeatureDataset(serve(features, 10**9, kind=Answer)[0], tmp_path)


def test_a_store_that_is_down_is_waited_for(serve, features, tmp_path):
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    said, shown = [], []

    def say(line):
        said.append(line)
        if len(said) == 3:
            serve(features, port=port)

    data = FeatureDataset(f"http://127.0.0.1:{port}", tmp_path, Patience(say, shown.append))
    assert len(data) == len(FeatureDataset(features)) and shown[-1] == ""
    assert f"127.0.0.1:{port}/dataset.json cannot be read" in said[0] and "waiting for the data's store" in shown[0]
    assert said[-1].startswith("the data is there again after")


@pytest.mark.parametrize("status", [401, 403])
def test_a_refusal_is_named_and_waited_for(status, serve, features, tmp_path):
    """Credentials expire over night and can be renewed; what was there yesterday is not gone."""
    url, _ = serve(features, lambda path, number: status if number < 3 else None)
    said, shown = [], []
    data = FeatureDataset(url, tmp_path, Patience(said.append, shown.append))
    assert len(data) == len(FeatureDataset(features)) and shown[-1] == ""
    assert f"{status}" in shown[0] and "The store refuses access: renew its credentials" in shown[0]
    assert "The store refuses access" in said[0] and said[-1].startswith("the data is there again after")


def test_renewed_credentials_are_taken(features, tmp_path, monkeypatch):
    """A file system keeps what it was made with: after a refusal another one is made."""
    monkeypatch.setattr(waiting, "FIRST_PAUSE", 0.02)

    class Store(fsspec.implementations.local.LocalFileSystem):
        protocol = "guarded"
        key = "expired"

        def __init__(self, *arguments, **options):
            super().__init__(*arguments, **options)
            self.mine = Store.key

        @classmethod
        def _strip_protocol(cls, path):  # which older versions do for file:// only
            return super()._strip_protocol(str(path).removeprefix("guarded://"))

        def get_file(self, *arguments, **options):
            if self.mine != "renewed":
                raise PermissionError("The provided token has expired.")
            return super().get_file(*arguments, **options)

    fsspec.register_implementation("guarded", Store, clobber=True)
    shown = []

    def show(text):
        shown.append(text)
        Store.key = "renewed"

    data = FeatureDataset(f"guarded://{features}", tmp_path, Patience(lambda _: None, show))
    assert len(data) == len(FeatureDataset(features)) and "The store refuses access" in shown[0]


@pytest.mark.parametrize("status", [404, 410])
def test_what_is_not_there_is_final(status, serve, features, tmp_path):
    shard = FeatureDataset(features).shards[0].name
    url, asked = serve(features, lambda path, _: status if path.endswith(shard) else None)
    with pytest.raises(DataError, match=f"{shard} cannot be read") as failure:
        take(url, 8, cache=tmp_path)
    assert not isinstance(failure.value, StoreBusy) and asked.count(f"/{shard}") == 1


def test_a_not_found_that_covers_a_busy_server_is_none():
    """As fsspec's `open` over HTTP says it of every error."""

    class Response(Exception):
        status = 503

    for cause, final in ((Response(), False), (ConnectionError(), False), (FileNotFoundError(), True), (None, True)):
        error = FileNotFoundError("url")
        error.__cause__ = cause
        assert remote._is_final(error) is final


def test_pauses_grow_and_end():
    said, begun = [], time.monotonic()

    def busy():
        raise StoreBusy("it is busy")

    with pytest.raises(StoreBusy, match="it is busy. It was waited for 0:00:"):
        Patience(said.append, limit=8.0).get(busy)
    assert 2 <= len(said) <= 8 and time.monotonic() - begun >= 8.0
    assert waiting.LIMIT >= 3600 and waiting.LONGEST_PAUSE <= 120


def test_a_wish_to_stop_does_not_wait():
    with pytest.raises(Interrupted):
        Patience(asked=lambda: True).get(lambda: time.sleep(60))


def test_an_iterator_goes_on_where_it_broke(monkeypatch):
    from pixart_delta.training.data.readahead import read_ahead

    monkeypatch.setattr(waiting, "FIRST_PAUSE", 0.01)
    asked = []

    def function(item):
        asked.append(item)
        if item == 3 and asked.count(3) < 3:
            raise StoreBusy("not now")
        return item

    assert list(read_ahead(function, range(6), 0, Patience().get)) == list(range(6)) and asked.count(3) == 3
    asked.clear()
    with pytest.raises(StoreBusy):
        list(read_ahead(function, range(6), 0))


SHORT = {"steps": 6, "checkpoint_every": 2, "accumulation": 1, "warmup_steps": 2}


@pytest.fixture(scope="module")
def material(tmp_path_factory):
    return make_material(tmp_path_factory.mktemp("material"))


@pytest.mark.parametrize("how", ["request", "signal"])
def test_stop_is_answered_while_the_store_is_out_of_reach(how, serve, material, tmp_path):
    shut = threading.Event()
    shut.set()
    url, _ = serve(material["data"], lambda path, _: 503 if shut.is_set() and path.endswith(".tar") else None)
    values = settings("finetune", material, tmp_path / "run", **SHORT, workers=1, data=url)
    run = RunDir(tmp_path / "run")

    def cache():
        os.environ["PIXART_DELTA_CACHE"] = str(tmp_path / "cache")

    process = forked("finetune", values, cache)
    assert wait_until(lambda: (run.path / "status.json").exists() and "waiting" in run.read_status())
    assert "503" in run.read_status()["waiting"] and run.read_status()["state"] == "running"
    assert wait_until(lambda: "waiting for the data's store" in (run.path / "log.txt").read_text(), 10)
    if how == "request":
        run.request("stop")
    else:
        os.kill(process.pid, signal.SIGTERM)
    process.join(PATIENCE)
    assert process.exitcode == 0
    assert run.read_status()["state"] == "stopped"
    assert "waiting" not in run.read_status()
    shut.clear()
    process = forked("finetune", values, cache)
    process.join(PATIENCE)
    assert process.exitcode == 0
    assert run.read_status()["state"] == "done"
    assert "waiting" not in run.read_status()


def test_processes_wait_for_each_other_and_stop_together(serve, material, tmp_path, monkeypatch):
    """The second process cannot reach the store: the first, which can, waits with it, and both end when asked to."""
    url, _ = serve(material["data"])
    run = RunDir(tmp_path / "run")

    def prepare(rank):
        os.environ["PIXART_DELTA_CACHE"] = str(tmp_path / f"cache_{rank}")
        if rank == 1:
            download = remote._download

            def none(url, path):
                if url.endswith(".tar"):
                    raise ConnectionError("unreachable from here")
                return download(url, path)

            remote._download = none

    def stop():
        if wait_until(lambda: (run.path / "status.json").exists() and "waiting" in run.read_status()):
            seen.append(run.read_status()["waiting"])
        run.request("stop")

    seen = []
    threading.Thread(target=stop, daemon=True).start()
    values = settings("finetune", material, run.path, **{**SHORT, "batch_size": 1}, workers=0, data=url)
    assert run_processes("finetune", values, prepare) == [0, 0]
    assert seen == ["waiting for another process's data"] and run.read_status()["state"] == "stopped"


@pytest.fixture
def s3(features, monkeypatch):
    """moto's S3 server with the features in s3://bucket/features, and a client of its accounts."""
    monkeypatch.setattr(waiting, "_SLOW", 600.0)  # else a slow machine is told of the wait before its reason
    pytest.importorskip("s3fs")
    server = pytest.importorskip("moto.server").ThreadedMotoServer("127.0.0.1", 0, verbose=False)
    server.start()
    try:
        endpoint = "http://{}:{}".format(*server.get_host_and_port())
        for name, value in {"ENDPOINT_URL": endpoint, "DEFAULT_REGION": "us-east-1"}.items():
            monkeypatch.setenv(f"AWS_{name}", value)
        use_key(monkeypatch, "key", "secret")
        files = fsspec.filesystem("s3", endpoint_url=endpoint)
        files.makedirs("bucket", exist_ok=True)  # one store for all servers of a process
        for file in features.iterdir():
            files.pipe(f"bucket/features/{file.name}", file.read_bytes())
        yield files
    finally:
        type(files).clear_instance_cache()
        server.stop()


def use_key(monkeypatch, key, secret):
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", key)
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", secret)


def test_shards_come_from_a_real_s3_server(s3, features, tmp_path):
    url = "s3://bucket/features"
    assert all(map(same, take(url, 8, cache=tmp_path / "one"), take(features, 8)))
    name = FeatureDataset(features).shards[0].name
    s3.rm(f"bucket/features/{name}")
    with pytest.raises(DataError, match=f"s3://bucket/features/{name} cannot be read: FileNotFoundError") as gone:
        take(url, 8, cache=tmp_path / "two")
    assert not isinstance(gone.value, StoreBusy)
    s3.pipe(f"bucket/features/{name}", b"another")
    with pytest.raises(DataError, match=f"{name} is damaged or not the one"):
        take(url, 8, cache=tmp_path / "two")


def test_a_real_s3_server_refuses_until_the_key_is_renewed(s3, features, tmp_path, monkeypatch):
    """A key that the server does not know, then one that it does: the file system that had the first is given up."""
    import boto3
    from moto import settings as of_moto

    monkeypatch.setattr(waiting, "FIRST_PAUSE", 0.02)
    accounts = boto3.client("iam")
    accounts.create_user(UserName="user")
    key = accounts.create_access_key(UserName="user")["AccessKey"]
    everything = {"Effect": "Allow", "Action": "s3:*", "Resource": "*"}
    policy = json.dumps({"Version": "2012-10-17", "Statement": [everything]})
    accounts.put_user_policy(UserName="user", PolicyName="all", PolicyDocument=policy)
    monkeypatch.setattr(of_moto, "INITIAL_NO_AUTH_ACTION_COUNT", 0)  # from here on, keys and signatures are checked
    url, shown = "s3://bucket/features", []
    with pytest.raises(StoreBusy, match="does not exist in our records.*The store refuses access"):
        Location(url, tmp_path).describe()

    def show(text):
        shown.append(text)
        use_key(monkeypatch, key["AccessKeyId"], key["SecretAccessKey"])

    data = FeatureDataset(url, tmp_path, Patience(lambda _: None, show, limit=30.0))
    assert len(data) == len(FeatureDataset(features))
    assert "The store refuses access" in shown[0] and shown[-1] == ""
