"""Running the same command again goes on as if nothing had happened, wherever and however the process ended."""

import os
import signal

import pytest
import torch
from pixart_delta.pixart_core import weightfile
from pixart_delta.pixart_core.weightfile import CheckpointError
from pixart_delta.training import checkpoint as checkpoint_module
from pixart_delta.training.monitor import Monitor
from pixart_delta.training.run_dir import RunDir

from tests.training.runs_fixture import (
    COMMANDS,
    losses,
    make_material,
    run_apart,
    run_here,
    run_processes,
    same_weights,
    settings,
)

KILLED = -signal.SIGKILL


@pytest.fixture(scope="module")
def material(tmp_path_factory):
    return make_material(tmp_path_factory.mktemp("material"))


@pytest.fixture(autouse=True)
def one_thread():
    """As the forked processes have, so that sums are made in the same order."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def kill():
    os.kill(os.getpid(), signal.SIGKILL)


def killed_after(step):
    def patch():
        add = Monitor.add

        def add_and_die(self, number, *values):
            add(self, number, *values)
            if number == step:
                kill()

        Monitor.add = add_and_die

    return patch


@pytest.mark.parametrize("command", COMMANDS)
def test_a_killed_run_goes_on_to_the_last_bit(command, material, tmp_path):
    straight = run_here(command, settings(command, material, tmp_path / "straight", log_every=3))
    halves = settings(command, material, tmp_path / "halves", log_every=3)
    assert run_apart(command, halves, killed_after(10)) == KILLED
    assert [file.stem for file in RunDir(halves["run"]).checkpoints()] == ["step_00000004", "step_00000008"]
    halves = run_here(command, halves)
    assert losses(halves) == losses(straight) and len(losses(straight)) == 7
    assert same_weights(halves, straight)
    assert halves.read_status()["state"] == "done"
