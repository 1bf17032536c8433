"""Shared by the tests of training: a small file system that can be filled to the last byte."""

import os
import subprocess
from pathlib import Path

import pytest


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


def fill(folder: Path, leave: int) -> Path:
    """Leave so many bytes free. Returns the file that takes the rest."""
    ballast = folder / "ballast"
    with open(ballast, "wb") as file:
        while (free := os.statvfs(folder).f_bavail * os.statvfs(folder).f_bsize - leave) > 0:
            file.write(b"\0" * free)
            file.flush()
    return ballast
