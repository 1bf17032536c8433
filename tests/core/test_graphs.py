"""Graphs: when something is captured, replayed and dropped, with a capture for the CPU; pictures through them."""

import pytest
import torch

import pixart_core as pc
from pixart_core.graphs import Graphs
from pixart_core.steps import Steps
from tests.capture_fixture import OnCpu
from tests.fixtures_nano import nano_config, random_pixart

SIZE = {"width": 96, "height": 72}


@pytest.fixture
def capture():
    return OnCpu()


@pytest.fixture
def graphs(capture):
    return Graphs(capture, limit=2, works_on=("cpu",))


@pytest.fixture
def linear():
    return torch.nn.Linear(3, 3).requires_grad_(False)


def use(graphs, network, x, *constants, name="x"):
    with torch.no_grad():
        return graphs(name, lambda x: network(x) * (constants or (1,))[0], [x], graphs.state([network]), *constants)


def test_the_second_use_of_a_size_captures_and_later_ones_replay(graphs, capture, linear):
    seen = []
    for _ in range(4):
        x = torch.randn(2, 3)
        assert torch.equal(use(graphs, linear, x), linear(x))
        seen.append((capture.captures, capture.replays))
    assert seen == [(0, 0), (1, 1), (1, 2), (1, 3)]
    use(graphs, linear, torch.randn(4, 3))
    use(graphs, linear, torch.randn(2, 3).double().float(), 2)
    assert capture.captures == 1  # another size, another constant: seen for the first time


def test_what_a_replay_gave_stays_as_it_was(graphs, linear):
    x, y = torch.randn(2, 3), torch.randn(2, 3)
    outputs = [use(graphs, linear, each) for each in (x, x, x, y)]
    assert torch.equal(outputs[2], linear(x)) and torch.equal(outputs[3], linear(y))


def test_an_input_that_was_changed_in_place_is_copied_again(graphs, linear):
    x = torch.randn(2, 3)
    for _ in range(3):
        use(graphs, linear, x)
    x.add_(1)
    assert torch.equal(use(graphs, linear, x), linear(x))
    with torch.inference_mode():
        y = torch.randn(2, 3)
        for _ in range(2):
            assert torch.equal(use(graphs, linear, y), linear(y))
            y.mul_(2)


def test_weights_that_change_in_place_are_seen_and_others_drop_the_graph(graphs, capture, linear):
    x = torch.randn(2, 3)
    for _ in range(3):
        use(graphs, linear, x)
    linear.weight.add_(1)  # as a LoRA is put on
    assert torch.equal(use(graphs, linear, x), linear(x)) and capture.captures == 1
    linear.weight.data = linear.weight.data.clone()  # as after a move
    assert torch.equal(use(graphs, linear, x), linear(x)) and len(graphs) == 0
    use(graphs, linear, x)
    assert capture.captures == 2
    linear.double()
    assert use(graphs, linear, x.double()).dtype == torch.float64 and len(graphs) == 0


def test_only_so_many_are_kept(graphs, capture, linear):
    for rows in (1, 2, 3):
        for _ in range(2):
            use(graphs, linear, torch.randn(rows, 3))
    assert len(graphs) == 2 and capture.captures == 3
    use(graphs, linear, torch.randn(1, 3))
    assert capture.captures == 4 and len(graphs) == 2  # the first one went
    graphs.clear()
    assert len(graphs) == 0


def test_never_with_gradients_hooks_or_autocast(graphs, capture, linear):
    x = torch.randn(2, 3)
    for _ in range(3):
        graphs("x", linear, [x], graphs.state([linear]))
        with torch.autocast("cpu", torch.bfloat16):
            use(graphs, linear, x)
    handle = linear.register_forward_pre_hook(lambda *_: None)
    for _ in range(3):
        use(graphs, linear, x)
    assert capture.captures == 0
    handle.remove()
    use(graphs, linear, x)
    use(graphs, linear, x)
    assert capture.captures == 1


def test_only_on_devices_that_can(capture, linear):
    graphs = Graphs(capture)
    for _ in range(3):
        use(graphs, linear, torch.randn(2, 3))
    assert capture.captures == 0


def test_what_cannot_be_captured_is_said_once_and_runs(linear, caplog):
    def fail(*_):
        raise RuntimeError("operation not permitted when stream is capturing\nand more")

    graphs, x = Graphs(fail, works_on=("cpu",)), torch.randn(2, 3)
    for _ in range(4):
        assert torch.equal(use(graphs, linear, x), linear(x))
    assert caplog.text.count("no CUDA graph of x: operation not permitted when stream is capturing") == 1


@pytest.fixture(scope="module")
def plain(nano):
    return pc.Pipeline.from_pretrained(nano, dtype=torch.float32, device="cpu", graphs=False)


@pytest.fixture
def graphed(plain, capture):
    pipeline = pc.Pipeline(plain.transformer, plain.text, plain.vae, plain.controlnet)
    pipeline.graphs = pipeline.text.graphs = Graphs(capture, works_on=("cpu",))
    yield pipeline
    pipeline.text.graphs = None


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"batch": 2},
        {"sampler": "dpm", "steps": 5, "guidance": 3.0},
        {"hint": pc.Hint(torch.rand(1, 4, 9, 12), 0.7, end=0.6)},
    ],
    ids=["lcm", "batch", "dpm", "control"],
)
def test_pictures_through_graphs_are_the_same_to_the_last_bit(plain, graphed, capture, options):
    for seed, prompt in enumerate(("a house", "a red lake")):
        expected = plain.sample(prompt, seed=seed, **SIZE, **options)
        assert torch.equal(graphed.sample(prompt, seed=seed, **SIZE, **options), expected)
    assert 0 < capture.captures <= 4 and capture.replays >= 2 * capture.captures


def test_a_lora_after_a_graph(plain, graphed, capture):
    weight = plain.transformer.blocks[0].mlp.fc2.weight
    before = graphed.sample("a house", **SIZE)
    with torch.no_grad():
        weight.mul_(2)
    try:
        assert torch.equal(graphed.sample("a house", **SIZE), plain.sample("a house", **SIZE))
        assert not torch.equal(graphed.sample("a house", **SIZE), before) and capture.captures == 2  # text, step
    finally:
        with torch.no_grad():
            weight.div_(2)


def test_text_and_decoding_are_captured_too(plain, graphed, capture):
    pictures = [[each("a house", steps=1, seed=seed, **SIZE)[0] for seed in range(3)] for each in (plain, graphed)]
    assert pictures[0] == pictures[1]
    assert sorted(name for name, *_ in graphed.graphs._graphs) == ["decode", "encode", "step"]
    assert capture.captures == 3 and capture.replays >= 6


def test_compile_is_for_blocks_and_decoder(nano):
    compiled = pc.Pipeline.from_pretrained(nano, dtype=torch.float32, device="cpu", compile=True)
    parts = [*compiled.transformer.blocks, compiled.vae.decoder]
    assert all(part._compiled_call_impl is not None for part in parts)


def test_low_memory_and_the_switch_leave_them_out(plain):
    parts = plain.transformer, plain.text, plain.vae
    assert pc.Pipeline(*parts).graphs is not None and plain.graphs is None
    assert pc.Pipeline(*parts, low_memory=True).graphs is None


@torch.no_grad()
def test_steps_are_forwards_to_the_last_bit():
    """What prompt and size fix is computed once: caption, keys and values, grid, and each timestep's modulation."""
    model, caption, mask = random_pixart(nano_config()), torch.randn(2, 8, 64), torch.ones(2, 8)
    mask[1, 5:] = 0
    steps = Steps(model, [999, 499])
    for timestep in (999, 499):
        noisy, t = torch.randn(2, 4, 9, 12), torch.full((2,), timestep)
        assert torch.equal(steps(noisy, t, caption, mask), model(noisy, t, caption, mask))
    one, other = steps._conditions
    assert one.keys_values is other.keys_values
    assert one.position is other.position
    assert one.caption is other.caption
