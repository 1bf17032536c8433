"""Pictures on a GPU are those on the CPU; graphs, dtypes, memory, offload."""

import pytest
import torch

import pixart_core as pc
from pixart_core.delta import apply_lora
from pixart_core.graphs import Graphs
from pixart_core.hed import HED, detect
from pixart_core.host_copy import _tensors
from pixart_core.layers import is_in_stream
from pixart_core.lora import load_lora
from pixart_core.memory import TextShape
from pixart_core.text import TextEncoder
from pixart_core.vae import decode, encode
from tests.bench.bench_text import make_t5
from tests.fixtures_nano import nano_config, random_pixart

SIZE = {"width": 96, "height": 72}
PROMPT = "a red house on the lake"


def relative(a, b):
    return ((a.cpu() - b.cpu()).norm() / b.cpu().norm()).item()


@pytest.mark.parametrize("steps", [1, 2, 4])
def test_picture_of_lcm(pipeline, reference, steps):
    assert relative(pipeline.sample(PROMPT, steps, **SIZE), reference.sample(PROMPT, steps, **SIZE)) < 1e-3


def test_picture_of_dpm_with_guidance(pipeline, reference):
    options = {"sampler": "dpm", "steps": 6, "guidance": 3.0, **SIZE}
    assert relative(pipeline.sample(PROMPT, **options), reference.sample(PROMPT, **options)) < 1e-3


def test_picture_of_a_batch_and_of_several_prompts(pipeline, reference):
    prompts = [PROMPT, "sun"]
    assert relative(pipeline.sample(prompts, batch=2, **SIZE), reference.sample(prompts, batch=2, **SIZE)) < 1e-3


def test_picture_under_control(pipeline, reference):
    hint = pc.Hint(torch.rand(1, 72, 96, 3, generator=torch.Generator().manual_seed(0)), 0.8, end=0.7)
    made, expected = (each.sample(PROMPT, hint=hint, **SIZE) for each in (pipeline, reference))
    assert relative(made, expected) < 1e-3 and relative(made, reference.sample(PROMPT, **SIZE)) > 1e-3


def test_picture_decoded_and_encoded(pipeline, reference):
    latent = torch.randn(1, 4, 9, 12, generator=torch.Generator().manual_seed(0))
    pictures = decode(reference.vae, latent)
    assert relative(decode(pipeline.vae, latent), pictures) < 1e-3
    assert relative(encode(pipeline.vae, pictures), encode(reference.vae, pictures)) < 1e-3


def test_picture_through_the_command_of_a_user(nano, device):
    pictures = pc.Pipeline.from_pretrained(nano, device=device)(PROMPT, seed=3, **SIZE)
    assert pictures[0].size == (96, 72)


def test_edges_of_hed(device):
    torch.manual_seed(0)
    network, pictures = HED((2, 2, 2, 2, 2)).eval(), torch.rand(1, 32, 48, 3)
    expected = detect(network, pictures)
    assert relative(detect(network.to(device), pictures.to(device)), expected) < 1e-3


def test_text(pipeline, reference):
    (made, mask), (expected, other) = (each.text.encode([PROMPT, "sun"]) for each in (pipeline, reference))
    assert torch.equal(mask.cpu(), other) and relative(made, expected) < 1e-3


@pytest.mark.parametrize("options", [{}, {"sampler": "dpm", "steps": 5}, {"batch": 2}], ids=["lcm", "dpm", "batch"])
def test_graph_is_eager_to_the_last_bit(nano, device, options):
    plain, graphed = (
        pc.Pipeline.from_pretrained(nano, dtype=torch.float32, device=device, graphs=graphs) for graphs in (False, True)
    )
    for seed in range(3):
        expected = plain.sample(PROMPT, seed=seed, **SIZE, **options)
        assert torch.equal(graphed.sample(PROMPT, seed=seed, **SIZE, **options), expected)
    assert (len(graphed.graphs) > 0) is (device.type == "cuda")


def test_graph_under_control_is_eager(nano, device):
    plain, graphed = (
        pc.Pipeline.from_pretrained(nano, dtype=torch.float32, device=device, graphs=graphs) for graphs in (False, True)
    )
    for seed in range(3):
        hint = torch.rand(1, 4, 9, 12, generator=torch.Generator().manual_seed(seed))
        made, expected = (each.sample(PROMPT, hint=hint, seed=seed, **SIZE) for each in (graphed, plain))
        assert torch.equal(made, expected)


def test_lora_after_a_graph(pipeline, reference, nano):
    """Weights that change in place, and weights that are others."""
    before = [pipeline.sample(PROMPT, **SIZE) for _ in range(3)]
    for change in ("in place", "replaced"):
        for each in (pipeline, reference):
            weight = each.transformer.blocks[0].mlp.fc2.weight
            with torch.no_grad():
                if change == "in place":
                    weight.mul_(2)
                else:
                    weight.data = weight.data / 2
        made = pipeline.sample(PROMPT, **SIZE)
        assert relative(made, reference.sample(PROMPT, **SIZE)) < 1e-3
        assert (relative(made, before[-1]) > 1e-4) is (change == "in place")


def test_sizes_come_and_go(pipeline, reference):
    for side in (64, 96, 64, 128, 72, 96, 64):
        size = {"width": side, "height": side}
        assert relative(pipeline.sample(PROMPT, 2, **size), reference.sample(PROMPT, 2, **size)) < 1e-3


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_is_near_float32(nano, device, reference, dtype):
    half = pc.Pipeline.from_pretrained(nano, dtype=dtype, device=device)
    half.text = reference.text  # bfloat16 beside it is another matter
    half.device = device
    caption, mask = reference.text.encode(PROMPT)
    latent, t = torch.randn(1, 4, 9, 12, generator=torch.Generator().manual_seed(0)), torch.tensor([999])
    with torch.no_grad():
        made = half.transformer(*(each.to(device) for each in (latent, t, caption, mask)))
        expected = reference.transformer(latent, t, caption, mask)
    assert 0 < relative(made, expected) < (0.005 if dtype == torch.float16 else 0.03)


def test_a_model_that_overflows_float16_goes_on_in_bfloat16(device, reference):
    model = random_pixart(nano_config())
    model.blocks[0].mlp.fc2.weight.data.fill_(6e4)
    for name, each in model.named_parameters():
        if not is_in_stream(name):
            each.data = each.data.half()
    pipeline = pc.Pipeline(model.to(device), reference.text, reference.vae, device=device)
    pipeline._may_widen = True
    pipeline._encode = lambda *_: tuple(each.to(device) for each in reference.text.encode(PROMPT))
    assert pipeline.sample(PROMPT, 2, **SIZE).isfinite().all() and pipeline.transformer.product_dtype == torch.bfloat16


def test_low_memory_makes_the_same_picture(nano, device, pipeline):
    frugal = pc.Pipeline.from_pretrained(nano, dtype=torch.float32, device=device, low_memory=True)
    assert frugal.graphs is None
    assert relative(frugal.sample(PROMPT, **SIZE), pipeline.sample(PROMPT, **SIZE)) < 1e-5
    assert not frugal.text.loaded


@pytest.mark.parametrize("quantization", ["int8", "int4"])
def test_a_quantised_text_encoder(nano, device, reference, quantization):
    pytest.importorskip("bitsandbytes")
    quantised = pc.Pipeline.from_pretrained(nano, dtype=torch.float32, device=device, quantization=quantization)
    assert relative(quantised.sample(PROMPT, 2, **SIZE), reference.sample(PROMPT, 2, **SIZE)) < 0.3


@pytest.mark.parametrize("quantization", ["int8", "int4"])
def test_a_quantised_text_encoder_between_prompts(nano, device, quantization):
    """On CUDA it waits in pinned host memory, and leaves nothing on the device; elsewhere it is read again."""
    pytest.importorskip("bitsandbytes")
    options = {"dtype": torch.float32, "device": device, "quantization": quantization, "low_memory": True}
    pipeline = pc.Pipeline.from_pretrained(nano, **options)
    one, other = (pipeline.sample(PROMPT, 2, **SIZE) for _ in range(2))
    assert relative(other, one) < 1e-3 and pipeline.text.loaded is (device.type == "cuda")
    if device.type == "cuda":
        weights = [*pipeline.text._model.parameters(), *pipeline.text._model.buffers()]
        assert all(each.device.type == "cpu" and each.data.is_pinned() for each in weights if each.numel())


@pytest.mark.parametrize("quantization", ["int8", "int4"])
def test_a_quantised_text_encoder_takes_what_is_planned(nano, tmp_path, device, quantization):
    """Also while it is loaded, which is the widest moment of a picture; wide enough that blocks of memory are small."""
    pytest.importorskip("bitsandbytes")
    shape = {"d_model": 64, "d_kv": 64, "d_ff": 8192, "num_layers": 4, "num_heads": 64, "vocab_size": 4096}
    make_t5(tmp_path / "text_encoder", shape)
    text = TextEncoder.from_pretrained(tmp_path, torch.bfloat16, device, quantization)
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        text.load()
        taken, peak = (read() - before for read in (torch.cuda.memory_allocated, torch.cuda.max_memory_allocated))
    else:
        sizes = {each.data_ptr(): each.untyped_storage().nbytes() for *_, each in _tensors(text.load())}
        taken = peak = sum(sizes.values())
    planned = TextShape.from_config(text.config).weight_bytes(torch.bfloat16, quantization)
    assert taken == pytest.approx(planned, rel=0.05) and peak < 1.25 * planned


def test_a_card_without_bfloat16_draws_in_float16(nano, device, reference, monkeypatch):
    """Forced by a switch: what torch says of the card. Not T5, which overflows it: torch emulates bfloat16 there."""
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda *_, **__: False)
    assert pc.preferred_dtype("cuda") == torch.float16
    half = {"dtype": torch.float16} if device.type == "cpu" else {}  # a CPU has a default of its own
    pipeline = pc.Pipeline.from_pretrained(nano, device=device, **half)
    assert pipeline.transformer.product_dtype == pipeline.vae.dtype == torch.float16
    assert pipeline.text.dtype == torch.bfloat16
    assert relative(pipeline.sample(PROMPT, **SIZE), reference.sample(PROMPT, **SIZE)) < 0.05
    assert pipeline(PROMPT, **SIZE)[0].size == (96, 72)


def test_a_decode_in_tiles(pipeline, reference):
    latent = torch.randn(1, 4, 12, 20, generator=torch.Generator().manual_seed(0))
    assert relative(decode(pipeline.vae, latent, tile=64), decode(reference.vae, latent, tile=64)) < 1e-3


def test_a_stopped_run_leaves_a_pipeline_that_works(pipeline, reference):
    def stop(step, _denoised):
        if step == 1:
            raise InterruptedError

    with pytest.raises(InterruptedError):
        pipeline.sample(PROMPT, callback=stop, **SIZE)
    assert relative(pipeline.sample(PROMPT, **SIZE), reference.sample(PROMPT, **SIZE)) < 1e-3


def test_a_model_that_returns_nan_is_named(device, reference):
    broken = random_pixart(nano_config()).to(device)
    broken.final_layer.linear.weight.data[0, 0] = float("nan")
    t, caption = torch.tensor([999], device=device), torch.randn(1, 8, 64, device=device)
    with pytest.raises(ValueError, match="NaN or infinite"):
        pc.sample_lcm(
            lambda latent, _: broken(latent, t, caption)[:, :4], torch.randn(1, 4, 8, 8, device=device), [999]
        )


def test_a_lora_file(device, tmp_path, nano):
    from pixart_delta.training.config import make_config
    from pixart_delta.training.export import write_result
    from pixart_delta.training.tasks import make_task

    base = pc.save_pixart(random_pixart(nano_config()), tmp_path / "base.safetensors")
    values = {"run": "r", "data": "d", "base": str(base), "lora_rank": 2, "precision": "fp32"}
    config = make_config("lcm-lora", values)
    task = make_task(config)
    for name, each in task.model.named_parameters():
        if "lora_B" in name:
            each.data.normal_(std=0.1)
    file = write_result(task, config, tmp_path / "lora.safetensors")
    plain, changed = (pc.load_pixart(base, torch.float32, place) for place in ("cpu", device))
    apply_lora(changed, load_lora(file))
    apply_lora(plain, load_lora(file))
    state = changed.state_dict()
    assert all(torch.allclose(state[name].cpu(), each, atol=1e-5) for name, each in plain.state_dict().items())


@pytest.mark.gpu
def test_memory_of_graphs_is_given_back_on_cuda(nano):
    pipeline = pc.Pipeline.from_pretrained(nano, device="cuda")
    for _ in range(2):
        pipeline.sample(PROMPT, width=256, height=256)
    torch.cuda.empty_cache()  # what nothing holds, before as after
    kept = torch.cuda.memory_reserved()
    pipeline.graphs.clear()
    torch.cuda.empty_cache()
    assert torch.cuda.memory_reserved() < kept


@pytest.mark.gpu
def test_a_bounded_number_of_graphs_on_cuda(nano):
    pipeline = pc.Pipeline.from_pretrained(nano, device="cuda")
    pipeline.graphs = Graphs(limit=2)
    for side in (64, 72, 80, 96):
        pipeline.sample(PROMPT, width=side, height=side)
    assert len(pipeline.graphs) == 2


@pytest.mark.gpu
def test_a_forward_waits_for_nothing_on_cuda(nano):
    """torch itself refuses copies that wait and reads of numbers."""
    model = pc.load_pixart(nano / "transformer", device="cuda")
    values = torch.randn(1, 4, 8, 12, device="cuda"), torch.full((1,), 999, device="cuda")
    caption = torch.randn(1, 8, 64, device="cuda")
    with torch.no_grad():
        model(*values, caption)
        torch.cuda.set_sync_debug_mode("error")
        try:
            model(*values, caption)
        finally:
            torch.cuda.set_sync_debug_mode("default")
