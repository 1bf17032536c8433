"""deterministic=true: what is asked of torch and of cuBLAS, before anything computes; resume with it, bit for bit."""

import os

import pytest
import torch
from pixart_delta.training.distribute import connect

from tests.training.runs_fixture import losses, make_material, run_here, same_weights, settings

WORK_SPACE = "CUBLAS_WORKSPACE_CONFIG"


@pytest.fixture
def undone(monkeypatch):
    """What is set for a whole process is set back."""
    monkeypatch.setenv(WORK_SPACE, "of the test")  # so that it is put back
    monkeypatch.delenv(WORK_SPACE)
    monkeypatch.setattr(torch.backends.cudnn, "benchmark", torch.backends.cudnn.benchmark)
    yield
    torch.use_deterministic_algorithms(False)


@pytest.mark.parametrize("asked", [False, True])
def test_only_who_asks_gets_it(asked, undone):
    torch.backends.cudnn.benchmark = True
    connect(asked)
    assert torch.are_deterministic_algorithms_enabled() == asked and torch.backends.cudnn.benchmark != asked
    assert os.environ.get(WORK_SPACE) == (":4096:8" if asked else None)


def test_a_work_space_of_the_user_stays(undone, monkeypatch):
    monkeypatch.setenv(WORK_SPACE, ":16:8")
    connect(deterministic=True)
    assert os.environ[WORK_SPACE] == ":16:8"


def test_a_run_with_it_resumes_bit_for_bit_and_may_have_begun_without(undone, tmp_path):
    (tmp_path / "material").mkdir()
    values = {"steps": 4, "checkpoint_every": 2, "accumulation": 1, "workers": 0}
    material = make_material(tmp_path / "material")
    straight = run_here("lcd", settings("lcd", material, tmp_path / "straight", **values, deterministic=True))
    halves = settings("lcd", material, tmp_path / "halves", **values)
    run_here("lcd", {**halves, "steps": 2})
    resumed = run_here("lcd", {**halves, "deterministic": True})
    assert losses(resumed) == losses(straight) and same_weights(resumed, straight)
