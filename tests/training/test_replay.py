"""A micro-batch as a graph, on a CPU with a stand-in for what captures: the same weights as without, bit for bit."""

import pytest
import torch
from pixart_delta.training.config import make_config
from pixart_delta.training.data import FeatureDataset
from pixart_delta.training.distribute import connect
from pixart_delta.training.engine import make_engine
from pixart_delta.training.step.replay import Replayed
from pixart_delta.training.task import decided

from tests.training.runs_fixture import COMMANDS, make_material, settings

BUCKETS = {(48, 80): 5, (64, 64): 4}
"""Batches of two pictures, and of one, in two sizes."""


@pytest.fixture(scope="module")
def material(tmp_path_factory):
    return make_material(tmp_path_factory.mktemp("material"), BUCKETS)


def stand_in(call, memory):
    """Runs a call twice before it is captured, as libraries want it, and again at each replay."""
    call(), call()
    output = torch.zeros(())
    return (lambda: output.copy_(call())), output, memory or object()


def engine_of(command, material, tmp_path, capture=None, **values):
    values = {"warmup_steps": 0, "workers": 0, **values}
    config = make_config(command, settings(command, material, tmp_path, **values))
    processes = connect()
    data = FeatureDataset(config.data)
    engine = make_engine(decided(config, processes.device), data, processes)
    engine.data = data  # for `steps`
    if capture is not None:
        engine.replayed = Replayed(engine._run_micro_batch, engine.parameters.values(), capture, limit=3)
    return engine


def steps(engine, count=7):
    batches = engine.batches(engine.data)
    return [engine.step(number, batches).loss.item() for number in range(count)]


@pytest.mark.parametrize(
    "command,values",
    [
        *((command, {}) for command in COMMANDS),
        ("lcd", {"precision": "fp16"}),
        ("lcd", {"w_embedding": True, "caption_drop": 0.5, "gradient_checkpointing": True}),
        ("finetune", {"caption_drop": 0.5, "accumulation": 1}),
    ],
)
def test_replayed_steps_are_the_plain_ones(command, values, material, tmp_path):
    plain = engine_of(command, material, tmp_path, **values)
    replayed = engine_of(command, material, tmp_path, stand_in, **values)
    assert steps(replayed) == steps(plain)
    one, other = plain.tensors(), replayed.tensors()
    assert one.keys() == other.keys() and all(torch.equal(one[name], other[name]) for name in one)
    counts = replayed.replayed.counts
    assert counts["replayed"] >= counts["captured"] > 1 and counts["run"] == len(replayed.replayed._asked)


def test_graphs_that_are_kept_are_few(material, tmp_path):
    engine = engine_of("finetune", material, tmp_path, stand_in)
    engine.replayed._limit = 1
    steps(engine)
    assert len(engine.replayed._graphs) == 1 < engine.replayed.counts["captured"]


def test_what_cannot_be_captured_is_run_and_said_once(material, tmp_path, caplog):
    def refuse(call, _memory):
        call()
        raise RuntimeError("operation not permitted when stream is capturing\nmore")

    plain, refused = engine_of("lcd", material, tmp_path), engine_of("lcd", material, tmp_path, refuse)
    assert steps(refused) == steps(plain)
    assert [record.getMessage() for record in caplog.records if "CUDA graph" in record.getMessage()] == [
        "no CUDA graph of a step: operation not permitted when stream is capturing"
    ]


def test_a_cpu_captures_nothing(material, tmp_path):
    assert engine_of("lcd", material, tmp_path, cuda_graph=True).replayed is None
