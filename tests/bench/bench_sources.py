"""`prepare` on the same drawn pictures as a folder, as ten tars and as Parquet, and these from a web server and an S3
server: the same shards bit for bit, and memory that does not grow with their number.

    python tests/bench/bench_sources.py [--pictures 10000] [--few 1000] [--side 64] [--only folder tar parquet …]

Each preparation is a process of its own, of the bundled models; peaks of memory that must exist (RssAnon, its own and
that of its reading processes together) are those of all pictures and of --few. One is killed in between and goes on:
the shards that were finished are not made again. Exits with 1 if shards differ, memory grows by more than a tenth and
100 MB, or more than one shard's work is lost.
"""

from __future__ import annotations

import argparse
import functools
import hashlib
import http.server
import json
import logging
import os
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path

import psutil

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT))

import tests.conftest  # noqa: E402, F401  registers the root folder as a package
from tests.training.archives_fixture import Store, pack_table, pack_tars  # noqa: E402
from tests.training.picture_fixture import draw_picture  # noqa: E402

SHAPES = ((1, 1), (3, 5), (5, 3), (2, 3))
SHARD = 64


def draw(folder: Path, count: int, side: int) -> Path:
    """Drawn pictures of four shapes, with captions."""
    folder.mkdir()
    for number in range(count):
        tall, wide = SHAPES[number % len(SHAPES)]
        scale = side / (tall * wide) ** 0.5
        draw_picture(number, round(tall * scale) + 8, round(wide * scale) + 8).save(folder / f"{number:06d}.png")
        (folder / f"{number:06d}.txt").write_text(f"a drawn picture, number {number}\n")
    return folder


def first(folder: Path, target: Path, count: int) -> Path:
    """The first pictures of a folder, as links."""
    target.mkdir()
    for file in sorted(folder.iterdir())[: 2 * count]:
        os.link(file, target / file.name)
    return target


class Preparation:
    """A process of `prepare`."""

    def __init__(self, source: str, output: Path, side: int, environment: dict[str, str]):
        self.output = output
        values = {"input": source, "output": output, "models": ROOT / "models/nano", "resolution": side}
        values |= {"shard_size": SHARD, "batch_size": 32, "workers": 1}
        given = [part for name, value in values.items() for part in ("--set", f"{name}={value}")]
        command = [sys.executable, str(ROOT / "training/train.py"), "prepare", *given]
        self.log = open(f"{output}.log", "a")
        self.process = subprocess.Popen(command, stdout=self.log, stderr=subprocess.STDOUT, env=environment)
        self.peak, self.begun = 0.0, time.monotonic()

    def wait(self, until=lambda: False) -> float:
        """Seconds until it ends, or `until` says so."""
        me = psutil.Process(self.process.pid)
        while self.process.poll() is None and not until():
            try:
                family = [me, *me.children(recursive=True)]
                self.peak = max(self.peak, sum(map(anonymous, family)))
            except psutil.NoSuchProcess:
                pass
            time.sleep(0.05)
        return time.monotonic() - self.begun

    def kill(self) -> None:
        for process in [*psutil.Process(self.process.pid).children(recursive=True), psutil.Process(self.process.pid)]:
            process.kill()
        self.process.wait()

    def digest(self) -> str:
        """Of the shards and their description; the log if there are none."""
        if self.process.returncode:
            raise SystemExit(Path(self.log.name).read_text()[-2000:])
        digest = hashlib.sha256()
        for file in [*sorted(self.output.glob("*.tar")), self.output / "dataset.json"]:
            digest.update(file.name.encode() + file.read_bytes())
        return digest.hexdigest()[:16]


def anonymous(process: psutil.Process) -> float:
    """GB of memory that must exist."""
    try:
        lines = Path(f"/proc/{process.pid}/status").read_text().splitlines()
    except OSError:
        return 0.0
    return next((int(line.split()[1]) * 1024 / 1e9 for line in lines if line.startswith("RssAnon")), 0.0)


def killed_and_finished(source: str, output: Path, side: int, environment: dict[str, str]) -> tuple[str, int]:
    """Kill a preparation when three of its shards are there; digest in the end, and shards that were made twice."""
    run = Preparation(source, output, side, environment)
    wanted = 3
    run.wait(lambda: len(list(output.glob("*.tar.json"))) >= wanted)
    run.kill()
    before = {file: file.stat().st_mtime_ns for file in output.glob("*.tar") if Path(f"{file}.json").exists()}
    run = Preparation(source, output, side, environment)
    run.wait()
    return run.digest(), sum(file.stat().st_mtime_ns != stamp for file, stamp in before.items())


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--pictures", type=int, default=10_000)
    parser.add_argument("--few", type=int, default=1000)
    parser.add_argument("--side", type=int, default=64)
    kinds = ["folder", "tar", "parquet", "tar-http", "parquet-http", "tar-s3", "parquet-s3"]
    parser.add_argument("--only", nargs="*", choices=kinds, default=kinds)
    arguments = parser.parse_args()
    from moto.server import ThreadedMotoServer

    logging.getLogger("werkzeug").setLevel(logging.ERROR)  # a line for each request
    with tempfile.TemporaryDirectory() as name:
        root = Path(name)
        pictures = draw(root / "pictures", arguments.pictures, arguments.side)
        places = {"all": pictures, "few": first(pictures, root / "first", arguments.few)}
        for size, folder in list(places.items()):
            pack_tars(folder, root / f"tar-{size}")
            pack_table(folder, root / f"parquet-{size}")
        handler = functools.partial(type("Parts", (Store,), {"parts": True}), directory=str(root))
        web = http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler)
        threading.Thread(target=web.serve_forever, daemon=True).start()
        store = ThreadedMotoServer("127.0.0.1", 0, verbose=False)
        store.start()
        host, port = store.get_host_and_port()
        options = {"endpoint_url": f"http://{host}:{port}", "key": "key", "secret": "secret"}
        environment = {**os.environ, "PIXART_DELTA_CACHE": str(root / "cache"), "FSSPEC_S3": json.dumps(options)}
        fill_store(root, options)

        def source(kind: str, size: str) -> str:
            what, _, where = kind.partition("-")
            if what == "folder":
                return str(places[size])
            names = {"tar": "{00000..00009}.tar", "parquet": "train-{00000..00001}-of-00002.parquet"}[what]
            url = f"http://127.0.0.1:{web.server_port}/{what}-{size}/{names}"
            return {"": str(root / f"{what}-{size}"), "http": url, "s3": f"s3://pictures/{what}-{size}"}[where]

        print("| source | pictures | s | peak GB | shards |\n|---|---|---|---|---|")
        digests, problems = {}, []
        for kind in arguments.only:
            peaks = {}
            for size in ("few", "all"):
                run = Preparation(source(kind, size), root / f"out-{kind}-{size}", arguments.side, environment)
                seconds = run.wait()
                digest, peaks[size] = run.digest(), run.peak
                count = arguments.pictures if size == "all" else arguments.few
                print(f"| {kind} | {count} | {seconds:.0f} | {run.peak:.2f} | {digest} |", flush=True)
                if digests.setdefault(size, digest) != digest:
                    problems.append(f"{kind}: other shards")
            if peaks["all"] > 1.1 * peaks["few"] + 0.1:
                problems.append(f"{kind}: memory grows from {peaks['few']:.2f} to {peaks['all']:.2f} GB")
        kind = next((kind for kind in arguments.only if kind.startswith("tar")), arguments.only[0])
        digest, twice = killed_and_finished(source(kind, "all"), root / "killed", arguments.side, environment)
        print(f"{kind}, killed in between: {twice} finished shards made again; {digest}")
        if twice or digest != digests["all"]:
            problems.append(f"{kind}: the killed one differs, or made {twice} shards again")
        web.shutdown()
        store.stop()
    print("; ".join(problems) or "the same shards everywhere; memory is flat; nothing finished was made again")
    return bool(problems)


def fill_store(root: Path, options: dict[str, str]) -> None:
    """Put the archives into the S3 server."""
    import fsspec

    files = fsspec.filesystem("s3", **options)
    files.mkdir("pictures")
    for folder in root.iterdir():
        if folder.name.startswith(("tar-", "parquet-")):
            for file in folder.iterdir():
                files.put_file(str(file), f"pictures/{folder.name}/{file.name}")


if __name__ == "__main__":
    sys.exit(main())
