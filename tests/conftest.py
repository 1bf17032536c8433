"""Shared by all tests: the root folder as package `pixart_delta`, a ComfyUI server per supported version, markers."""

from __future__ import annotations

import importlib.util
import os
import re
import signal
import sys
import tempfile
from pathlib import Path

import pytest

from tools.comfy_server import ComfyServer, comfyui_trees

ROOT = Path(__file__).resolve().parents[1]

# No test may reach for a model hub: what is not on this machine must fail at once, not after a time-out.
os.environ["HF_HUB_OFFLINE"] = "1"


def _register_root() -> None:
    """Make `import pixart_delta` give the root folder as a package, the way ComfyUI loads it (under any name)."""
    if not (ROOT / "__init__.py").exists() or "pixart_delta" in sys.modules:
        return
    spec = importlib.util.spec_from_file_location(
        "pixart_delta", ROOT / "__init__.py", submodule_search_locations=[str(ROOT)]
    )
    module = importlib.util.module_from_spec(spec)
    sys.modules["pixart_delta"] = module
    spec.loader.exec_module(module)


_register_root()


def pytest_configure() -> None:
    # A terminated test run cleans up like an interrupted one: its ComfyUI servers end with it.
    signal.signal(signal.SIGTERM, signal.default_int_handler)


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    if "comfyui_path" in metafunc.fixturenames:
        trees = comfyui_trees()
        metafunc.parametrize("comfyui_path", list(trees.values()), ids=list(trees), indirect=True, scope="session")


def _neighbours(nodeid: str) -> str:
    """The name of those tests that shall run in the same process: who share a server, or else a file."""
    file, _, name = nodeid.partition("::")
    if versions := set(comfyui_trees()) & set(re.split(r"[\[\]-]", name)):
        return versions.pop()
    return "panel" if file.startswith("tests/nodes/") else file


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config: pytest.Config, log):
    """Neighbours stay together. (pytest-xdist's own groups by marks have no effect with pytest 9.2.)"""
    from xdist.scheduler import LoadScopeScheduling

    class Neighbours(LoadScopeScheduling):
        _split_scope = staticmethod(_neighbours)

    return Neighbours(config, log)


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    if hasattr(config, "workerinput"):  # one of pytest-xdist's processes
        items.sort(key=lambda item: _neighbours(item.nodeid).endswith(".py"))  # the long ones first
    for item in items:
        if "comfyui_path" in getattr(item, "fixturenames", ()):
            item.add_marker(pytest.mark.host)
        if item.get_closest_marker("gpu"):
            import torch

            if not torch.cuda.is_available():
                item.add_marker(pytest.mark.skip(reason="needs a CUDA device"))


@pytest.fixture(scope="session")
def comfyui_path(request) -> Path:
    """The folder of a ComfyUI; a test that uses it runs once for every version there is."""
    return request.param


@pytest.fixture(scope="session")
def comfy_server(comfyui_path, tmp_path_factory):
    """A running ComfyUI with this extension, shared by all tests of one ComfyUI version.

    Put model files under `comfy_server.base / "models"`; leave the queue empty.
    """
    with ComfyServer(comfyui_path, tmp_path_factory.mktemp(f"comfyui_{comfyui_path.name}_")) as server:
        yield server


@pytest.fixture(scope="session", autouse=True)
def avx2_where_it_is_asked_for():
    """ATEN_CPU_CAPABILITY=avx2 (with ONEDNN_MAX_CPU_ISA=AVX2 and MKL_ENABLE_INSTRUCTIONS=AVX2) has the kernels of an
    older CPU; what PyTorch says of this one does not follow, and `preferred_dtype` asks that. ComfyUI's own processes
    are not reached, so this comes near such a machine and is none."""
    if os.environ.get("ATEN_CPU_CAPABILITY") != "avx2":
        yield
        return
    import torch

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(torch.cpu, "get_capabilities", lambda: {"avx2": True}, raising=False)
        yield


@pytest.fixture
def newest_comfyui() -> Path:
    """The folder of the newest ComfyUI there is."""
    return next(iter(comfyui_trees().values()))


@pytest.fixture
def scratch():
    """A temporary folder on the file system of this environment, so that its files can be hard-linked there."""
    with tempfile.TemporaryDirectory(dir=Path(sys.prefix).resolve().parent, prefix="test-") as folder:
        yield Path(folder)
