"""Each test runs twice: on the CPU, and marked `gpu` on CUDA, where 8 GB have to do for all of them.

A test whose name ends in `_on_cuda` is about CUDA alone.
"""

import pytest
import torch

import pixart_core as pc
from tests.fixtures_nano import make_nano_folder
from tests.training.runs_fixture import make_material

EIGHT_GB = 8e9


@pytest.fixture(params=["cpu", pytest.param("cuda", marks=pytest.mark.gpu)])
def device(request):
    return torch.device(request.param)


@pytest.fixture(scope="session", autouse=True)
def eight_gb():
    if torch.cuda.is_available():
        total = torch.cuda.get_device_properties(0).total_memory
        torch.cuda.set_per_process_memory_fraction(min(1.0, EIGHT_GB / total))


@pytest.fixture(scope="session")
def nano(tmp_path_factory):
    return make_nano_folder(tmp_path_factory.mktemp("nano"), controlnet=True, dtype=torch.float32)


@pytest.fixture(scope="session")
def material(tmp_path_factory):
    return make_material(tmp_path_factory.mktemp("material"))


@pytest.fixture(scope="session")
def reference(nano):
    """The pipeline on the CPU, in float32."""
    return pc.Pipeline.from_pretrained(nano, dtype=torch.float32, device="cpu")


@pytest.fixture
def pipeline(nano, device):
    return pc.Pipeline.from_pretrained(nano, dtype=torch.float32, device=device)
