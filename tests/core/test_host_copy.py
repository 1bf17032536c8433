"""Weights that leave a device and come back, with a copy for the CPU in the place of pinned memory."""

import weakref

import pytest
import torch
from torch import nn

from pixart_core import text as text_module
from pixart_core.host_copy import HostCopy, _tensors
from pixart_core.pipeline import Pipeline
from pixart_core.text import TextEncoder

PROMPT = "a red house on the lake"


def test_what_hangs_in_two_places_stays_one_tensor():
    network = nn.Sequential(nn.Linear(3, 3), nn.Linear(3, 3), nn.BatchNorm1d(3)).requires_grad_(False).eval()
    network[1].weight = network[0].weight
    network[0].alias = network[0].weight.data
    x, made = torch.randn(2, 3), []
    expected, old = network(x), weakref.ref(network[0].alias)
    host = HostCopy(network, lambda tensor: made.append(tensor.clone()) or made[-1])
    assert len(made) == 8  # weights and biases of three layers, one of them shared, and three buffers
    for _ in range(2):
        host.leave()
        assert network[0].weight.data_ptr() == network[0].alias.data_ptr() in {each.data_ptr() for each in made}
        host.come_back(torch.device("cpu"))
        assert network[0].weight.data_ptr() == network[0].alias.data_ptr() not in {each.data_ptr() for each in made}
        assert network[1].weight is network[0].weight and torch.equal(network(x), expected)
    assert old() is None
    here = network[0].weight.data_ptr()
    host.come_back(torch.device("cpu"))  # is there already
    assert network[0].weight.data_ptr() == here


@pytest.fixture
def parked(monkeypatch):
    """Copies that were made, as if the CPU were a device whose weights wait elsewhere."""
    made = []
    monkeypatch.setattr(text_module, "_PARKS", ("cpu",))
    copying = lambda model: HostCopy(model, lambda tensor: made.append(tensor.clone()) or made[-1])  # noqa: E731
    monkeypatch.setattr(text_module, "HostCopy", copying)
    return made


def _addresses(tensors):
    """Of those that are not empty."""
    return {tensor.data_ptr() for tensor in tensors} - {0}


@pytest.mark.parametrize("quantization", ["int8", "int4"])
def test_a_quantised_encoder_is_read_once(nano, parked, monkeypatch, quantization):
    pytest.importorskip("bitsandbytes")
    text, reads, load = TextEncoder.from_pretrained(nano, quantization=quantization), [], text_module.load_t5
    monkeypatch.setattr(text_module, "load_t5", lambda *a: reads.append(1) or load(*a))
    expected, _ = text.encode(PROMPT)
    for prompt in (PROMPT, "sun", PROMPT):
        there = _addresses(tensor for *_, tensor in _tensors(text._model))
        text.leave_device()
        away = _addresses(tensor for *_, tensor in _tensors(text._model))
        assert not there & away and away == _addresses(parked)
        made = len(parked)
        caption, _ = text.encode(prompt)
        assert len(parked) == made, "copied again"
    assert torch.equal(caption, expected) and len(reads) == 1
    text.unload()
    assert not text.loaded
    assert torch.equal(text.encode(PROMPT)[0], expected)
    assert len(reads) == 2


def test_others_are_unloaded_and_so_are_those_that_cannot_be_pinned(nano, parked, monkeypatch, caplog):
    plain = TextEncoder.from_pretrained(nano)
    plain.encode(PROMPT)
    plain.leave_device()
    assert not plain.loaded and not parked
    pytest.importorskip("bitsandbytes")

    def fail(_model):
        raise RuntimeError("CUDA error: out of memory\nand more")

    monkeypatch.setattr(text_module, "HostCopy", fail)
    text = TextEncoder.from_pretrained(nano, quantization="int4")
    expected, _ = text.encode(PROMPT)
    text.leave_device()
    assert not text.loaded and "read again for each prompt: CUDA error: out of memory" in caplog.text
    assert torch.equal(text.encode(PROMPT)[0], expected)


def test_low_memory_parks_the_encoder(nano, parked):
    pytest.importorskip("bitsandbytes")
    pipeline = Pipeline.from_pretrained(nano, device="cpu", quantization="int4", low_memory=True)
    one, other = (pipeline.sample(PROMPT, 1, width=64, height=64) for _ in range(2))
    assert torch.equal(one, other)
    assert pipeline.text.loaded
    assert pipeline.text._host._away
