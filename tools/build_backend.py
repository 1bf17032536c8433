"""What pip calls when the extras are installed from this folder (pyproject.toml, [build-system]): setuptools, aside.

The wheel holds nothing but what the extras name, and setuptools would leave an egg-info and a build folder here.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import tempfile
from collections.abc import Iterator

from setuptools import build_meta

_READ = ("pyproject.toml", "README.md", "LICENSE")
"""All that the metadata is made of."""


@contextlib.contextmanager
def _copied() -> Iterator[None]:
    """Work in a temporary folder with what is read here; pip starts a hook in the project's folder."""
    here = os.getcwd()
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as folder:
        for name in _READ:
            shutil.copy(name, folder)
        os.chdir(folder)
        try:
            yield
        finally:
            os.chdir(here)


def get_requires_for_build_wheel(config_settings=None) -> list[str]:
    return []


def prepare_metadata_for_build_wheel(metadata_directory, config_settings=None) -> str:
    with _copied():
        return build_meta.prepare_metadata_for_build_wheel(metadata_directory, config_settings)


def build_wheel(wheel_directory, config_settings=None, metadata_directory=None) -> str:
    with _copied():
        return build_meta.build_wheel(wheel_directory, config_settings, metadata_directory)
