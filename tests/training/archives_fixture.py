"""The pictures of a folder in tars, tables and zips, and a web server that gives them, in parts or not."""

from __future__ import annotations

import http.server
import io
import json
import tarfile
import zipfile
from pathlib import Path

GROUP = 4
"""Rows of a group in the tables."""


def pack_tars(folder: Path, target: Path, count: int = 10) -> Path:
    """img2dataset's way: jpg, txt and json of a picture one after the other, the pictures dealt out in order."""
    target.mkdir(parents=True)
    pictures = sorted(folder.glob("*.png"))
    size = -(-len(pictures) // count)
    for number in range(count):
        with tarfile.open(target / f"{number:05d}.tar", "w") as tar:
            for picture in pictures[number * size : (number + 1) * size]:
                tar.add(picture, picture.name)
                tar.add(picture.with_suffix(".txt"), picture.with_suffix(".txt").name)
                about = json.dumps({"caption": "another caption", "url": "https://x", "status": "success"}).encode()
                add(tar, f"{picture.stem}.json", about)
        (target / f"{number:05d}_stats.json").write_text("{}")
    return target


def add(tar, name, data):
    info = tarfile.TarInfo(name)
    info.size = len(data)
    tar.addfile(info, io.BytesIO(data))


def pack_table(folder: Path, target: Path, files: int = 2) -> Path:
    """As `datasets` writes it."""
    import pyarrow
    from pyarrow import parquet

    target.mkdir(parents=True)
    pictures = sorted(folder.glob("*.png"))
    size = -(-len(pictures) // files)
    for number in range(files):
        some = pictures[number * size : (number + 1) * size]
        table = pyarrow.table(
            {
                "image": [{"bytes": each.read_bytes(), "path": each.name} for each in some],
                "id": [each.stem for each in some],
                "text": [each.with_suffix(".txt").read_text() for each in some],
            }
        )
        features = {"image": {"_type": "Image"}, "text": {"dtype": "string", "_type": "Value"}}
        table = table.replace_schema_metadata({"huggingface": json.dumps({"info": {"features": features}})})
        parquet.write_table(table, target / f"train-{number:05d}-of-{files:05d}.parquet", row_group_size=GROUP)
    return target


def pack_zip(folder: Path, target: Path) -> Path:
    target.mkdir(parents=True)
    with zipfile.ZipFile(target / "all.zip", "w", zipfile.ZIP_DEFLATED) as archive:
        for file in sorted(folder.iterdir(), reverse=True):
            archive.write(file, file.name)
        archive.writestr("__MACOSX/._0001.png", "nothing")
    return target


class Store(http.server.SimpleHTTPRequestHandler):
    """A folder over HTTP; parts of files only where `parts` says so, and at first as often busy as `busy` says."""

    protocol_version = "HTTP/1.1"
    parts, busy = False, 0

    def log_message(self, *_arguments):
        pass

    def do_GET(self):
        kind = type(self)
        if self.path.endswith((".tar", ".parquet", ".zip")) and kind.busy:
            kind.busy -= 1
            self.send_error(503)
            return
        asked = self.headers.get("Range")
        if not (asked and self.parts):
            super().do_GET()
            return
        data = Path(self.translate_path(self.path)).read_bytes()
        first, _, last = asked.removeprefix("bytes=").partition("-")
        part = data[int(first) : int(last or len(data)) + 1]
        self.send_response(206)
        self.send_header("Content-Range", f"bytes {first}-{int(first) + len(part) - 1}/{len(data)}")
        self.send_header("Content-Length", str(len(part)))
        self.end_headers()
        self.wfile.write(part)
