"""Shared by the tests of training: a file system that can be filled to the last byte, pictures, features, a queue."""

import os
import subprocess
from pathlib import Path

import pytest
from pixart_delta.training.jobs import Queue, process, runner

from tests.fixtures_nano import make_text_encoder, make_vae
from tests.training.picture_fixture import make_pictures
from tests.training.shards_fixture import make_features


@pytest.fixture
def small_disk(tmp_path):
    """A file system of 16 MB."""
    if os.getuid() != 0:
        pytest.skip("needs root to mount one")
    folder = tmp_path / "disk"
    folder.mkdir()
    if subprocess.run(["mount", "-t", "tmpfs", "-o", "size=16m", "tmpfs", str(folder)]).returncode:
        pytest.skip("mounting is not allowed here")
    yield folder
    subprocess.run(["umount", "-l", str(folder)], check=True)


@pytest.fixture(scope="session")
def models(tmp_path_factory):
    """A text encoder and two autoencoders, of which vae/ (AutoencoderKL) is the one that is used."""
    folder = tmp_path_factory.mktemp("models")
    make_text_encoder(folder, width=16)
    make_vae(folder / "vae", kind="kl")
    return folder


@pytest.fixture(scope="session")
def features(tmp_path_factory):
    """A dataset that no test may change."""
    return make_features(tmp_path_factory.mktemp("data") / "features")


@pytest.fixture
def pictures(tmp_path):
    """A folder of nine pictures in three buckets: 5, 2 and 2."""
    return make_pictures(tmp_path / "pictures", 9)


@pytest.fixture
def queue(tmp_path, monkeypatch):
    """A queue whose process is the stand-in; whatever it started is ended."""
    monkeypatch.setattr(runner, "TRAIN", Path(__file__).with_name("stand_in.py"))
    made = Queue(tmp_path / "jobs", tmp_path / "records")
    yield made
    for each in made.jobs():
        if each.active and process.runs(each.pid, each.identity):
            process.end(each.pid, force=True)
    for child in made._runner.children.values():
        if child.poll() is None:
            process.end(child.pid, force=True)
        child.wait()


def fill(folder: Path, leave: int) -> Path:
    """Leave so many bytes free. Returns the file that takes the rest."""
    ballast = folder / "ballast"
    with open(ballast, "wb") as file:
        while (free := os.statvfs(folder).f_bavail * os.statvfs(folder).f_bsize - leave) > 0:
            file.write(b"\0" * free)
            file.flush()
    return ballast
