"""What each command trains: who learns, who stays, who is the target, and what a bad base or setting says."""

import copy
import dataclasses
import functools

import pytest
import torch
from pixart_delta.pixart_core.checkpoint import save_controlnet, save_pixart
from pixart_delta.pixart_core.delta import apply_lora
from pixart_delta.pixart_core.weightfile import CheckpointError
from pixart_delta.training.config import ConfigError, make_config
from pixart_delta.training.data.draws import Draws
from pixart_delta.training.distill import with_fixed_guidance
from pixart_delta.training.lora import read_lora
from pixart_delta.training.sampling import sample_latents
from pixart_delta.training.task import check_base, read_base
from pixart_delta.training.tasks import TASKS

import pixart_core as pc
from pixart_core.layers import is_in_stream
from tests.fixtures_nano import make_vae, nano_config, random_controlnet, random_pixart

CONFIG = nano_config(depth=4)


@pytest.fixture(scope="module")
def base(tmp_path_factory):
    """A base model whose null caption matters."""
    path = tmp_path_factory.mktemp("base") / "base.safetensors"
    return save_pixart(random_pixart(CONFIG), path)


def make(command, base, **settings):
    return TASKS[command](settings_of(command, base, **settings))


def settings_of(command, base, **settings):
    values = {"run": "r", "data": "d", "base": str(base), "precision": "fp32", **settings}
    if command == "controlnet":
        values.setdefault("copy_blocks", 2)
    return make_config(command, values)


def batch(size=3):
    generator = torch.Generator().manual_seed(0)
    mask = torch.ones(size, 7, dtype=torch.uint8)
    mask[0, 4:] = 0
    return {
        "latent": torch.randn(size, 4, 6, 10, generator=generator),
        "hint": torch.randn(size, 4, 6, 10, generator=generator),
        "caption": torch.randn(size, 7, CONFIG.caption_channels, generator=generator),
        "caption_mask": mask,
        "image_size": torch.tensor([[48.0, 80.0]]).repeat(size, 1),
        "aspect_ratio": torch.full((size, 1), 0.6),
        "keys": ["a", "b", "c"][:size],
    }


def draws(step=0, size=3):
    return Draws(1, step, 0, size, slice(None))


def train(task, steps=3, rate=1e-2):
    optimizer = torch.optim.SGD([p for p in task.model.parameters() if p.requires_grad], lr=rate)
    losses = []
    for step in range(steps):
        loss = task.loss(task.model, batch(), draws(step))
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        losses.append(loss.item())
    return losses


def snapshot(*networks):
    return [{name: value.clone() for name, value in network.state_dict().items()} for network in networks]


COMMANDS = ["finetune", "lcd", "lcm-lora", "controlnet"]


@pytest.mark.parametrize("command", [*COMMANDS, "finetune lora"])
def test_the_trained_parameters_move_and_all_others_stay(command, base):
    task = make(command.split()[0], base, **({"lora_rank": 2} if " " in command else {}))
    trained = {name for name, p in task.model.named_parameters() if p.requires_grad}
    assert all(p.dtype == torch.float32 for p in task.model.parameters() if p.requires_grad)
    (before, *others), networks = snapshot(task.model, *task.frozen), [task.model, *task.frozen]
    train(task)
    after, *others_after = snapshot(*networks)
    moved = {name for name in before if not torch.equal(before[name], after[name])}
    assert moved and moved <= trained
    assert all(torch.equal(a[name], b[name]) for a, b in zip(others, others_after, strict=True) for name in a)
    if "lora" in command:
        assert trained == {name for name in before if ".lora_" in name}
    elif command == "controlnet":  # copies learn once the zero linears have moved
        assert any("copied_block" in name for name in moved) and any("after_proj" in name for name in moved)


@pytest.mark.parametrize("command", COMMANDS)
def test_the_loss_depends_on_the_step_alone(command, base):
    task = make(command, base)
    first, again, other = (task.loss(task.model, batch(), draws(step)).item() for step in (0, 0, 1))
    assert first == again != other


@pytest.mark.parametrize("command", COMMANDS)
def test_gradient_checkpointing_changes_no_gradient(command, base):
    gradients = []
    for checkpointing in (False, True):
        task = make(command, base, gradient_checkpointing=checkpointing)
        train(task, 1)
        task.loss(task.model, batch(), draws(5)).backward()
        gradients.append({n: p.grad for n, p in task.model.named_parameters() if p.grad is not None})
    assert gradients[0].keys() == gradients[1].keys()
    assert all(torch.allclose(gradients[0][n], gradients[1][n], rtol=1e-4, atol=1e-7) for n in gradients[0])


def saved_bytes(task):
    """Of the tensors that the backward pass waits for."""
    seen = {}

    def pack(tensor):
        seen[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage().nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        task.loss(task.model, batch(), draws())
    for network in (task.model, *task.frozen):
        for parameter in network.parameters():
            seen.pop(parameter.untyped_storage().data_ptr(), None)
    return sum(seen.values())


@pytest.mark.parametrize("command", COMMANDS)
def test_gradient_checkpointing_keeps_less(command, base):
    plain, checkpointed = (saved_bytes(make(command, base, gradient_checkpointing=on)) for on in (False, True))
    assert checkpointed < plain / 2


@pytest.mark.parametrize("command", COMMANDS)
def test_half_precision_halves_the_frozen_networks_and_comes_close(command, base):
    losses = []
    for precision in ("fp32", "bf16"):
        task = make(command, base, precision=precision)
        with torch.autocast("cpu", torch.bfloat16, enabled=precision == "bf16"):
            losses.append(task.loss(task.model, batch(), draws()).item())
        for network in (task.model, *task.frozen):
            for name, parameter in network.named_parameters():
                whole = precision == "fp32" or parameter.requires_grad or is_in_stream(name)
                assert parameter.dtype == (torch.float32 if whole else torch.bfloat16), name
    assert losses[1] == pytest.approx(losses[0], rel=0.05)


def test_lcm_lora_starts_as_the_base_and_its_target_is_the_student_of_now(base):
    task, plain = make("lcm-lora", base), pc.load_pixart(base)
    x = batch()
    inputs = x["latent"], torch.tensor([999, 500, 19]), x["caption"], x["caption_mask"]
    with torch.no_grad():
        assert torch.equal(task.model(*inputs), plain(*inputs))
        for name, parameter in task.model.named_parameters():
            if "lora_B" in name:
                parameter.normal_(std=0.1)
        assert torch.equal(task.teacher(*inputs), plain(*inputs))
        assert not torch.allclose(task.model(*inputs), plain(*inputs), atol=1e-2)
    assert task.ema is None and not task.frozen  # the base is in memory once
    assert all(p.requires_grad == (".lora_" in n) for n, p in task.model.named_parameters())


def test_lcm_lora_is_full_distillation_with_the_student_as_its_own_target(base):
    """With the LoRA merged into the weights, lcd without an average gives the same loss."""
    lora = make("lcm-lora", base)
    with torch.no_grad():
        for name, parameter in lora.model.named_parameters():
            if "lora_B" in name:
                parameter.normal_(std=0.05)
    full = make("lcd", base, ema_decay=0.0)
    apply_lora(full.model, read_lora(lora.model))
    expected = full.loss(full.model, batch(), draws()).item()
    assert lora.loss(lora.model, batch(), draws()).item() == pytest.approx(expected, rel=1e-5)


def test_queries_keys_and_values_learn_apart_as_in_the_authors_training(base):
    """Their LoRA is on to_q, to_k and to_v; ours is on fused matrices, which must not make them share one."""
    deltas = read_lora(make("lcm-lora", base, lora_rank=4).model).deltas
    parts = {delta.part: delta for delta in deltas if delta.key == "blocks.0.attn.qkv.weight"}
    assert sorted(parts) == [0, 1, 2] and {delta.parts for delta in parts.values()} == {3}
    assert all(delta.down.shape[0] == 4 for delta in deltas)
    assert not any(torch.equal(parts[0].down, parts[other].down) for other in (1, 2))
    assert sum(delta.key == "blocks.0.cross_attn.kv_linear.weight" for delta in deltas) == 2


@pytest.mark.parametrize("layout", ["authors", "diffusers"])
def test_a_student_begins_as_the_file_that_is_given(layout, base, tmp_path):
    """Diffusers' layout has no null caption; what is trained on from it has the base's."""
    begun = random_pixart(CONFIG, seed=5)
    if layout == "diffusers":
        begun.y_embedder.y_embedding = None
    file = save_pixart(begun, tmp_path / ("s.safetensors" if layout == "authors" else "s"), layout, dtype=torch.float32)
    task, teacher = make("lcd", base, student=str(file)), pc.load_pixart(base)
    for network in (task.model, task.ema):
        assert all(torch.equal(each, dict(begun.named_parameters())[name]) for name, each in network.named_parameters())
        assert network.y_embedder.y_embedding is not None
    assert all(
        torch.equal(each, dict(teacher.named_parameters())[name]) for name, each in task.teacher.named_parameters()
    )
    if layout == "diffusers":
        assert torch.equal(task.model.null_caption(1), teacher.null_caption(1))
    assert task.loss(task.model, batch(), draws()).item() != make("lcd", base).loss(task.model, batch(), draws()).item()


@pytest.mark.parametrize(
    "other",
    [{"depth": 3}, {"input_size": 32}, {"model_max_length": 300}, {"interpolation_scale": 2.0}, {"num_heads": 2}],
)
def test_a_student_of_another_shape_is_refused(other, base, tmp_path):
    """Also where no weight tells: what is restored later has the base's configuration."""
    file = save_pixart(random_pixart(dataclasses.replace(CONFIG, **other)), tmp_path / "s.safetensors")
    name, value = next(iter(other.items()))
    said = rf"student .*s\.safetensors is no model of the base's shape \(its {name} {value} and not "
    with pytest.raises(ConfigError, match=said):
        make("lcd", base, student=str(file))


def test_guidance_embedding_starts_as_nothing_and_folds_into_the_bias(base):
    task = make("lcd", base, w_embedding=True)
    plain = pc.load_pixart(base)
    x = batch()
    guidance = torch.tensor([4.0, 4.0, 4.0])
    time = torch.tensor([999.0, 500.0, 19.0])
    rest = x["caption"], x["caption_mask"], x["image_size"], x["aspect_ratio"]
    with torch.no_grad():
        told = task.model(x["latent"], torch.stack([time, guidance], 1), *rest)
        assert torch.equal(told, plain(x["latent"], time, *rest))
        task.model.t_embedder.projection.weight.normal_(std=0.05)
        told = task.model(x["latent"], torch.stack([time, guidance], 1), *rest)
        folded = with_fixed_guidance(task.model, 4.0)
        assert torch.allclose(folded(x["latent"], time, *rest), told, atol=1e-5)
        assert not torch.allclose(with_fixed_guidance(task.model, 9.0)(x["latent"], time, *rest), told, atol=1e-3)
    assert folded.state_dict().keys() == plain.state_dict().keys()
    assert task.result().state_dict().keys() == plain.state_dict().keys()
    train(task)
    assert task.model.t_embedder.projection.weight.abs().sum() > 0


def test_embedded_guidance_is_the_teachers_too(base):
    """ω drawn from a single value equals the fixed one, before the projection has learnt anything."""
    fixed = make("lcd", base, guidance=6.0)
    drawn = make("lcd", base, w_embedding=True, w_min=6.0, w_max=6.0, guidance=6.0)
    a, b = (task.loss(task.model, batch(), draws()).item() for task in (fixed, drawn))
    assert a == pytest.approx(b, rel=1e-5)
    with pytest.raises(ConfigError, match="guidance is 4.5: with w_embedding it must be between w_min 6"):
        make("lcd", base, w_embedding=True, w_min=6.0)


@pytest.mark.parametrize("setting", ["beta_schedule=scaled_linear", "loss=l2", "guidance=1.0", "huber_c=1.0"])
def test_every_option_of_the_ablations_changes_the_loss(setting, base):
    name, value = setting.split("=")
    a, b = make("lcd", base), make("lcd", base, **{name: value if value.isidentifier() else float(value)})
    assert a.loss(a.model, batch(), draws()).item() != pytest.approx(b.loss(b.model, batch(), draws()).item(), rel=1e-3)


@pytest.mark.parametrize("command", COMMANDS)
def test_dropped_captions_are_dropped_for_all_networks(command, base):
    """With every caption dropped, the captions of the batch have no part in the loss."""
    task = make(command, base, caption_drop=1.0)
    train(task, 1)
    other = {**batch(), "caption": torch.randn(3, 7, CONFIG.caption_channels)}
    assert task.loss(task.model, batch(), draws()).item() == task.loss(task.model, other, draws()).item()
    kept = make(command, base, caption_drop=0.0)
    assert kept.loss(kept.model, batch(), draws()).item() != kept.loss(kept.model, other, draws()).item()


def test_control_starts_as_exactly_nothing(base):
    task = make("controlnet", base)
    x = batch()
    rest = torch.tensor([999, 500, 19]), x["caption"], x["caption_mask"], x["image_size"], x["aspect_ratio"]
    with torch.no_grad():
        controlled = task.predictor()(x["latent"], *rest, hint=x["hint"])
        assert torch.equal(controlled, pc.load_pixart(base)(x["latent"], *rest))
    assert task.needs_hint
    assert task.ema is None
    assert make("controlnet", base, ema_decay=0.9).ema is not None


def test_unet_wiring_trains_the_same_copies_elsewhere(base):
    transformer, unet = make("controlnet", base), make("controlnet", base, wiring="unet")
    assert transformer.model.state_dict().keys() == unet.model.state_dict().keys()
    a, b = train(transformer, 4), train(unet, 4)
    assert a[0] == b[0] and a[3] != b[3]


def test_average_follows_and_zero_means_none(base):
    task = make("lcd", base)
    assert not any(p.requires_grad for p in task.ema.parameters()) and task.ema_decay(7) == 0.95
    assert make("lcd", base, ema_decay=0.0).ema is None
    finetune = make("finetune", base)
    assert finetune.ema_decay(0) == pytest.approx(0.1) and finetune.ema_decay(10**6) == 0.9995
    assert make("finetune", base, lora_rank=2).ema is None


@pytest.mark.parametrize("command", COMMANDS)
def test_compiling_traces_every_block_and_changes_no_loss(command, base, monkeypatch):
    """Traced, but not handed to the C++ compiler, which takes a minute."""
    graphs = []

    def backend(graph, _inputs):
        graphs.append(graph)
        return graph

    monkeypatch.setattr(torch, "compile", functools.partial(torch.compile, backend=backend))
    task = make(command, base, gradient_checkpointing=True)
    plain = task.loss(task.model, batch(), draws()).item()
    torch._dynamo.reset()
    task.compile()
    loss = task.loss(task.model, batch(), draws())
    loss.backward()
    assert loss.item() == pytest.approx(plain, rel=1e-5)
    assert 1 <= len(graphs) <= 8  # the blocks of a network share one


def test_a_lora_is_the_same_for_the_same_seed(base):
    states = [make("lcm-lora", base, seed=seed).model.state_dict() for seed in (1, 1, 2)]
    downs = [name for name in states[0] if "lora_A" in name]
    assert all(torch.equal(states[0][name], states[1][name]) for name in downs)
    assert not any(torch.equal(states[0][name], states[2][name]) for name in downs)


def test_wrong_bases_are_named(base, tmp_path):
    make_vae(tmp_path / "vae")
    with pytest.raises(CheckpointError, match="is not a PixArt-α/δ transformer but an autoencoder"):
        make("lcd", tmp_path / "vae" / "diffusion_pytorch_model.safetensors")
    control = save_controlnet(random_controlnet(pc.load_pixart(base)), tmp_path / "control.safetensors")
    with pytest.raises(CheckpointError, match="but a PixArt ControlNet without its base model"):
        make("controlnet", control)
    save_pixart(pc.load_pixart(base), tmp_path / "diffusers", "diffusers")
    state = copy.deepcopy(pc.load_pixart(base))
    state.y_embedder.y_embedding = None
    bare = save_pixart({n: t for n, t in state.state_dict().items()}, tmp_path / "bare.safetensors", config=CONFIG)
    with pytest.raises(ConfigError, match="has no learned null caption.*Take the authors' .pth"):
        make("lcd", bare)
    make("finetune", bare, caption_drop=0.0)


@pytest.mark.parametrize("command", ["lcd", "lcm-lora"])
def test_a_distilled_model_is_not_distilled_again(command, base, tmp_path):
    """It cannot be guided as a teacher is; what trains on noise alone takes it."""
    made = {"training": {"command": "lcd", "step": 9}}
    fast = save_pixart(pc.load_pixart(base), tmp_path / "fast.safetensors", metadata=made)
    make("finetune", fast)
    config = settings_of("finetune", fast)
    with pytest.raises(ConfigError, match=r"fast.safetensors is a distilled model.*choose the base model"):
        make(command, fast)
    with pytest.raises(ConfigError, match="is a distilled model"):
        check_base(TASKS[command], config, read_base(config))


@pytest.mark.parametrize(
    "settings,match",
    [
        ({"copy_blocks": 4}, "copy_blocks=4.*1 … depth - 1 = 3, got 4"),
        ({"copy_blocks": 1, "wiring": "unet"}, "copy_blocks=1, wiring=unet.*depth / 2 = 2"),
    ],
)
def test_too_many_copies_are_named(settings, match, base):
    with pytest.raises(ConfigError, match=match):
        make("controlnet", base, **settings)


def test_samples_of_a_student_follow_the_schedule_it_learnt(base):
    tasks = [make("lcd", base, beta_schedule=schedule) for schedule in ("linear", "scaled_linear")]
    examples = {name: value for name, value in batch().items() if name != "hint"}
    latents = [sample_latents(t.predictor(), examples, t.sampler, t.null_caption(), table=t.table) for t in tasks]
    assert not torch.allclose(*latents, atol=1e-2)
    plain = sample_latents(tasks[0].predictor(), examples, "lcm", None)
    assert torch.equal(latents[0], plain)
