"""The switch by which a newer machine's tests run as on a CPU with AVX2 alone."""

import os
import subprocess
import sys
from pathlib import Path

CODE = """
import torch
from pixart_delta.pixart_core.functional import preferred_dtype

def test_inner():
    assert torch.cpu.get_capabilities() == {"avx2": True} and preferred_dtype("cpu") == torch.float32
"""


def test_the_switch_caps_what_is_preferred(tmp_path):
    inner = tmp_path / "test_inner.py"
    inner.write_text(CODE)
    root = Path(__file__).resolve().parents[2]
    command = [sys.executable, "-m", "pytest", "-q", "-p", "tests.conftest", "--rootdir", str(tmp_path), str(inner)]
    environment = {**os.environ, "ATEN_CPU_CAPABILITY": "avx2"}
    done = subprocess.run(command, capture_output=True, text=True, cwd=root, env=environment)
    assert done.returncode == 0, done.stdout[-2000:]
