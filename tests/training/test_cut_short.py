"""A base that is cut short while a training has it mapped: a real SIGBUS, said in words, and gone on after."""

import faulthandler
import os
import shutil
import signal
import sys

import pytest
from pixart_delta.training import engine
from pixart_delta.training.cli import describe_run
from pixart_delta.training.jobs.job import Job
from pixart_delta.training.jobs.verdict import verdict

from tests.training.runs_fixture import losses, make_material, run_apart, run_here, settings

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="the signal is Linux's")


@pytest.fixture
def material(tmp_path):
    return make_material(tmp_path)


def values(material, run, steps):
    return settings("finetune", material, run, steps=steps, accumulation=1, checkpoint_every=2, workers=0)


def test_a_training_that_loads_it_ends_with_words_and_goes_on(material, tmp_path):
    base, kept, own = material["base"], tmp_path / "kept.safetensors", engine._own
    shutil.copy(base, kept)
    folder = tmp_path / "run"
    assert run_apart("finetune", values(material, folder, 2)) == 0

    def cut():
        faulthandler.disable()  # pytest's would write two hundred lines

        def patched(network):  # loaded, and not yet taken out of the mapped file
            os.truncate(base, 4096)
            own(network)

        engine._own = patched

    ended = run_apart("finetune", values(material, folder, 4), cut)
    assert ended == -signal.SIGBUS
    assert "state: killed" in describe_run(folder) and "the same command resumes it" in describe_run(folder)
    job = Job("one", "finetune", {}, "cpu", state="running", result={"step": 2, "steps": 4})
    state, reason = verdict(job, {"state": "running"}, ended, tmp_path / "no.log", made=False)
    assert state == "failed" and "a file that it read was cut short or went away" in reason
    assert "Put them back" in reason and "Retry goes on from its last checkpoint" in reason

    shutil.copy(kept, base)
    run = run_here("finetune", values(material, folder, 4))
    whole = run_here("finetune", values(material, tmp_path / "whole", 4))
    assert run.read_status()["state"] == "done" and losses(run) == pytest.approx(losses(whole))


def test_a_training_under_way_does_not_need_it(material, tmp_path):
    step = engine.Engine.step

    def cut():
        def patched(self, number, batches):
            os.truncate(material["base"], 4096)
            return step(self, number, batches)

        engine.Engine.step = patched

    assert run_apart("finetune", values(material, tmp_path / "run", 3), cut) == 0
