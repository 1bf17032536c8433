"""Kernels that one run compiled and another one uses; `tools.bench gpu --parts compiled` measures real ones."""

import pytest
import torch

import pixart_core as pc
from pixart_core import pipeline as pipeline_module
from pixart_core.compiled import KernelFolder

CPU = torch.device("cpu")


@pytest.fixture
def cache(monkeypatch):
    """torch's cache of a run: what was compiled in it, and what it was given."""
    found = {"compiled": b"kernels", "given": []}
    compiler = torch.compiler
    monkeypatch.setattr(
        compiler, "save_cache_artifacts", lambda: found["compiled"] and (found["compiled"], None), raising=False
    )
    monkeypatch.setattr(compiler, "load_cache_artifacts", found["given"].append, raising=False)
    return found


def test_a_run_uses_what_another_one_compiled(tmp_path, cache):
    first = KernelFolder(tmp_path / "kept", CPU)
    first.restore()
    assert not cache["given"] and not first.folder.exists()
    first.keep("a size")
    cache["compiled"] = b"more"
    first.keep("a size")
    KernelFolder(tmp_path / "kept", CPU).restore()
    first.keep("another size")
    KernelFolder(tmp_path / "kept", CPU).restore()
    assert cache["given"] == [b"kernels", b"more"]
    assert [file.name for file in first.folder.iterdir()] == [f"torch-{torch.__version__}-cpu.kernels"]


def test_nothing_compiled_writes_nothing(tmp_path, cache):
    cache["compiled"] = None
    KernelFolder(tmp_path / "kept", CPU).keep("a size")
    assert not (tmp_path / "kept").exists()


@pytest.mark.skipif(not hasattr(torch.compiler, "load_cache_artifacts"), reason="since torch 2.7")
def test_a_damaged_file_is_compiled_anew(tmp_path, caplog):
    first = KernelFolder(tmp_path, CPU)
    first.file.write_bytes(b"damaged")
    first.restore()
    assert "compiling anew" in caplog.text and str(first.file) in caplog.text


def test_a_torch_without_them_says_so(tmp_path, monkeypatch, caplog):
    for name in ("load_cache_artifacts", "save_cache_artifacts"):
        monkeypatch.delattr(torch.compiler, name, raising=False)
    folder = KernelFolder(tmp_path / "kept", CPU)
    folder.restore()
    folder.keep("a size")
    assert "keeps no compiled kernels" in caplog.text and not folder.folder.exists()


def test_a_pipeline_restores_once_and_keeps_each_size(nano, tmp_path, monkeypatch):
    kept = []
    monkeypatch.setattr(KernelFolder, "keep", lambda self, size: kept.append((self.folder, size)))
    monkeypatch.setattr(KernelFolder, "restore", lambda self: kept.append("restored"))
    monkeypatch.setattr(pipeline_module, "compile_blocks", lambda _: None)
    monkeypatch.setattr(torch.nn.Module, "compile", lambda _: None)
    pc.Pipeline.from_pretrained(nano, device="cpu", compile=tmp_path)("sun", 1, width=64, height=64)
    assert kept == ["restored", (tmp_path, ((1, 4, 8, 8), None))]
    kept.clear()
    pc.Pipeline.from_pretrained(nano, device="cpu", compile=True)("sun", 1, width=64, height=64)
    assert not kept
