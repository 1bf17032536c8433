"""Optimisers, weightings and kinds of LoRA: each changes what it says, and a run with it resumes to the last bit."""

import copy
import json

import pytest
import torch
from pixart_delta.pixart_core.config import PixArtConfig
from pixart_delta.pixart_core.delta import apply_lora, save_lora
from pixart_delta.pixart_core.lora import load_lora
from pixart_delta.pixart_core.model import PixArt
from pixart_delta.pixart_core.schedule import alphas_cumprod
from pixart_delta.training.config import ConfigError, ExportConfig, make_config
from pixart_delta.training.export import export, write_weights
from pixart_delta.training.finetune import epsilon_loss
from pixart_delta.training.lora import add_lora, lora_outline
from pixart_delta.training.step.optimizers import STATE_BYTES, make_optimizer
from safetensors import safe_open
from safetensors.torch import load_file

import pixart_core as pc
from tests.fixtures_nano import nano_config, random_pixart
from tests.training import runs_fixture as runs

RATES = {"adamw": 1e-3, "prodigy": 1.0, "adafactor": 1e-2, "schedulefree": 1e-2, "muon": 2e-3}
OPTIMIZERS = tuple(RATES)
NEEDED = {"run": "r", "data": "d", "base": "b"}


@pytest.fixture(scope="module")
def material(tmp_path_factory):
    return runs.make_material(tmp_path_factory.mktemp("knobs"))


def settings(material, run, **values):
    few = {"steps": 6, "checkpoint_every": 3, "workers": 0, "log_every": 1, "lora_rank": 2, "caption_drop": 0.0}
    return runs.settings("finetune", material, run, **{**few, **values})


@pytest.mark.parametrize("optimizer", OPTIMIZERS[1:])
def test_an_optimizer_resumes_to_the_last_bit(optimizer, material, tmp_path):
    """Its counts and sums are part of a checkpoint, and a look at the held-out loss changes nothing."""
    how = {"optimizer": optimizer, "learning_rate": RATES[optimizer], "validation": 0.2}
    whole = runs.run_here("finetune", settings(material, tmp_path / "whole", **how))
    runs.run_here("finetune", settings(material, tmp_path / "halves", **how, steps=3, validation_every=1))
    halves = runs.run_here("finetune", settings(material, tmp_path / "halves", **how))
    assert runs.same_weights(whole, halves)
    assert runs.losses(whole) == runs.losses(halves)
    plain = runs.run_here("finetune", settings(material, tmp_path / "adamw", validation=0.2))
    mine, others = (load_file(run.checkpoints()[-1]) for run in (whole, plain))
    names = [name for name in others if name.startswith("model.")]
    assert any(not torch.equal(mine[name], others[name]) for name in names), "it is another optimiser"
    with pytest.raises(ValueError, match=f"optimizer was {optimizer}, not adamw"):
        runs.run_here("finetune", settings(material, tmp_path / "halves", steps=9, validation=0.2))


def test_prodigy_finds_its_rate_and_wants_one(material, tmp_path):
    with pytest.raises(ConfigError, match="set learning_rate=1"):
        make_config("lcd", {**NEEDED, "optimizer": "prodigy"})
    run = runs.run_here("finetune", settings(material, tmp_path / "run", optimizer="prodigy", learning_rate=1.0))
    with safe_open(run.checkpoints()[-1], "pt") as file:
        (group, *_) = json.loads(file.metadata()["training"])["numbers"]["groups"]
    assert group["d"] > group["d0"] and group["k"] == 6


def test_schedule_free_weights_that_are_used_are_the_average(material, tmp_path):
    """The export at the end, and one from the checkpoint, hold the same; and not what the gradient was taken at."""
    how = {"optimizer": "schedulefree", "learning_rate": 1e-2}
    run = runs.run_here("finetune", settings(material, tmp_path / "run", **how))
    later = load_file(export(ExportConfig(run=str(run.path), output=str(tmp_path / "later.safetensors"))))
    at_end = load_file(run.path / "exports" / "lora.safetensors")
    assert later.keys() == at_end.keys() and all(torch.equal(later[name], at_end[name]) for name in later)
    state = load_file(run.checkpoints()[-1])
    name = next(name for name in state if name.endswith("x_embedder.proj.lora_A.default.weight"))
    trained, other = state[name], state[f"optimizer.z.{name.removeprefix('model.')}"]
    used = torch.lerp(trained, other, 1 - 1 / 0.9).flatten(1)
    found = at_end["transformer.pos_embed.proj.lora_A.weight"].float()
    assert (found - used).abs().max() < 0.1 * (trained.flatten(1) - used).abs().max()
    for wrong in ({"schedule": "cosine"}, {"sharding": "fsdp"}):
        with pytest.raises(ConfigError, match="schedulefree"):
            make_config("finetune", settings(material, tmp_path, **how, **wrong))


@pytest.mark.parametrize("optimizer", ["adamw8bit", "prodigy", "adafactor", "schedulefree", "muon"])
def test_what_cannot_be_sharded_is_refused_before_there_is_a_run(optimizer):
    values = {**NEEDED, "optimizer": optimizer, "learning_rate": RATES.get(optimizer, 1e-3), "sharding": "fsdp"}
    with pytest.raises(ConfigError, match=f"optimizer is {optimizer}, .*with sharding=fsdp use adamw"):
        make_config("lcd", values)


@pytest.mark.parametrize("optimizer", OPTIMIZERS)
def test_what_an_optimizer_keeps_is_counted(optimizer):
    weight = torch.nn.Parameter(torch.randn(1024, 256))
    made = make_optimizer(optimizer, {"weight": weight}, RATES[optimizer])
    weight.grad = torch.randn_like(weight)
    made.step()
    kept = sum(value.nbytes for value in made.state[weight].values() if isinstance(value, torch.Tensor))
    assert kept / weight.numel() == pytest.approx(STATE_BYTES[optimizer], abs=0.05)


def test_muon_takes_steps_of_adamws_size_in_blocks_and_leaves_the_rest_to_it():
    torch.manual_seed(0)
    config = nano_config(hidden_size=48)
    model = random_pixart(config)
    parameters = dict(model.named_parameters())
    made = {kind: make_optimizer(kind, parameters, 1e-3) for kind in ("muon", "adamw")}
    for each in parameters.values():
        each.grad = torch.randn_like(each)
    start, moved = {name: each.detach().clone() for name, each in parameters.items()}, {}
    for kind, optimizer in made.items():
        optimizer.step()
        moved[kind] = {name: each.detach() - start[name] for name, each in parameters.items()}
        with torch.no_grad():
            for name, each in parameters.items():
                each.copy_(start[name])
    for name, step in moved["muon"].items():
        if step.ndim != 2 or not name.startswith("blocks.") or name.endswith("scale_shift_table"):
            torch.testing.assert_close(step, moved["adamw"][name], rtol=1e-3, atol=1e-6)
        else:
            assert 0.1e-3 < step.square().mean().sqrt() < 0.3e-3, name
    for part in moved["muon"]["blocks.0.attn.qkv.weight"].chunk(3):  # each of the three by itself
        sizes = torch.linalg.svdvals(part) / (0.2 * 48**0.5 * 1e-3)
        assert 0.4 < sizes.min() and sizes.max() < 1.4


def test_min_snr_lowers_the_nearly_clean_timesteps_alone():
    batch = {"latent": torch.randn(2, 4, 8, 8), "caption": torch.zeros(2, 1, 1)}
    noise = torch.randn(2, 4, 8, 8)

    def zero(noisy, *_):
        return torch.zeros(2, 8, 8, 8)

    for t in (0, 50, 500, 999):
        step = torch.tensor([t, t])
        plain, weighted = (epsilon_loss(zero, batch, noise, step, min_snr_gamma=gamma) for gamma in (0.0, 5.0))
        snr = alphas_cumprod()[t] / (1 - alphas_cumprod()[t])
        assert float(weighted / plain) == pytest.approx(float(min(1.0, 5.0 / snr)), rel=1e-3)
    with pytest.raises(ConfigError, match="both set"):
        make_config("finetune", {**NEEDED, "min_snr_gamma": 5.0, "snr_weight_cap": 2.0})


@pytest.mark.parametrize("command, kind", [("finetune", "dora"), ("lcm-lora", "lokr")])
def test_other_kinds_of_lora_train_and_resume(kind, command, material, tmp_path):
    few = {"steps": 4, "checkpoint_every": 2, "workers": 0, "lora_rank": 2, "lora_kind": kind}
    whole = runs.run_here(command, runs.settings(command, material, tmp_path / "whole", **few))
    runs.run_here(command, runs.settings(command, material, tmp_path / "halves", **few | {"steps": 2}))
    halves = runs.run_here(command, runs.settings(command, material, tmp_path / "halves", **few))
    assert runs.same_weights(whole, halves)
    made = load_file(whole.path / "exports" / "lora.safetensors")
    mark = ".dora_scale" if kind == "dora" else ".lokr_w1"
    assert any(name.endswith(mark) for name in made) and all(torch.isfinite(each).all() for each in made.values())


@pytest.mark.parametrize("kind", ["lora", "dora", "lokr"])
@pytest.mark.parametrize("rank", [2, 40])
def test_an_export_loads_as_what_was_trained(kind, rank, tmp_path):
    """Into the base's own weights, at any strength, and again from what is saved of it."""
    config = nano_config(depth=2)
    base = random_pixart(config)
    trained = add_lora(copy.deepcopy(base), rank, 4.0, kind=kind)
    for number, each in enumerate(each for each in trained.parameters() if each.requires_grad):
        generator = torch.Generator().manual_seed(number)  # not only zeros where a training begins
        each.data += 0.1 * torch.randn(each.shape, generator=generator)
    file = write_weights(trained, tmp_path / "a.safetensors", "comfyui", torch.float32, {}, "")
    inputs = torch.randn(1, 4, 8, 8), torch.tensor([500]), torch.randn(1, 8, config.caption_channels)
    again = save_lora(load_lora(file), tmp_path / "b.safetensors")
    with torch.no_grad():
        plain, wanted = base(*inputs), trained(*inputs)
        for each in (file, again):
            model = copy.deepcopy(base)
            apply_lora(model, load_lora(each))
            assert (wanted - plain).abs().max() > 0.02
            assert (model(*inputs) - wanted).abs().max() < 0.01 * (wanted - plain).abs().max()
        half = copy.deepcopy(base)
        apply_lora(half, load_lora(file), 0.5)
    before, whole, part = (dict(each.named_parameters()) for each in (base, model, half))
    name = "blocks.0.attn.qkv.weight"
    assert torch.allclose(part[name], (before[name] + whole[name]) / 2, atol=1e-6)
    assert load_lora(file).is_plain == (kind == "lora")


@pytest.mark.parametrize("kind", ["lora", "dora", "lokr"])
@pytest.mark.parametrize("rank", [2, 40])
def test_their_size_is_counted_and_they_begin_as_no_change(kind, rank):
    config = nano_config(depth=2)
    model = random_pixart(config)
    inputs = torch.randn(1, 4, 8, 8), torch.tensor([500]), torch.randn(1, 8, config.caption_channels)
    with torch.no_grad():
        before = model(*inputs)
        changed = add_lora(copy.deepcopy(model), rank, 4.0, kind=kind)
        assert torch.allclose(changed(*inputs), before, atol=1e-5)
    trained = sum(each.numel() for each in changed.parameters() if each.requires_grad)
    assert trained == lora_outline(config, rank, kind=kind).trained


@pytest.mark.parametrize("kind", ["pixart", "lora", "lokr"])
def test_exports_describe_themselves_by_modelspec(kind, tmp_path):
    config = PixArtConfig.from_dict(nano_config(depth=2).to_dict())
    model = PixArt(config).initialize_weights()
    if kind != "pixart":
        model = add_lora(model, 2, 2.0, kind=kind)
    training = {"command": "lcm-lora", "step": 7, "config": {"run": "Mine", "base": "base.pth"}}
    path = write_weights(model, tmp_path / "a.safetensors", "comfyui", torch.float16, {"training": training}, "")
    with safe_open(path, "pt") as file:
        about = file.metadata()
    assert about["modelspec.title"] == "Mine" and about["modelspec.sai_model_spec"] == "1.0.1"
    assert about["modelspec.architecture"] == ("pixart-alpha" if kind == "pixart" else "pixart-alpha/lora")
    assert "lcm-lora 7 steps, on base.pth" in about["modelspec.description"]
    if kind == "pixart":
        assert "x" in about["modelspec.resolution"] and pc.load_pixart(path)
