"""LoRA in every layout and with every source of alpha, against PEFT itself and against ComfyUI's key names."""

import json
import re

import pytest
import torch
from safetensors.torch import save_file

import pixart_core as pc
from pixart_core import convert
from pixart_core.delta import apply_lora, save_lora
from pixart_core.lora import host_state, load_lora, parse_lora
from pixart_core.weightfile import CheckpointError
from tests.core.lora_fixture import (
    ASPECT_RATIO,
    CONFIG,
    IMAGE_SIZE,
    RANK,
    TARGETS,
    changed,
    inputs,
    pair,
    random_model,
    stem_state,
)


@pytest.fixture(scope="module")
def peft_case(tmp_path_factory):
    """A PEFT LoRA on diffusers' transformer, saved by PEFT, and that transformer's output with it."""
    from diffusers import PixArtTransformer2DModel
    from peft import LoraConfig, get_peft_model

    torch.manual_seed(0)
    model = random_model()
    theirs = PixArtTransformer2DModel.from_config(convert.config_to_diffusers(CONFIG)).eval()
    theirs.load_state_dict(
        convert.authors_to_diffusers({k: v for k, v in model.state_dict().items() if k != "y_embedder.y_embedding"})
    )
    adapted = get_peft_model(theirs, LoraConfig(r=RANK, target_modules=TARGETS))  # no alpha given, as the authors
    with torch.no_grad():
        for name, parameter in adapted.named_parameters():
            if "lora_" in name:
                parameter.normal_(std=0.3)
    folder = tmp_path_factory.mktemp("peft")
    adapted.save_pretrained(folder)
    batch = inputs()
    with torch.no_grad():
        out = adapted(
            batch["latent"],
            encoder_hidden_states=batch["caption"],
            timestep=batch["timestep"],
            added_cond_kwargs={"resolution": IMAGE_SIZE, "aspect_ratio": ASPECT_RATIO},
        ).sample
    return folder, out


def run(model):
    return model(**inputs(), image_size=IMAGE_SIZE, aspect_ratio=ASPECT_RATIO)


def test_peft_folder_gives_pefts_own_output(peft_case):
    folder, expected = peft_case
    lora = load_lora(folder)
    assert lora.rank == RANK and {delta.alpha for delta in lora.deltas} == {8.0}
    assert "x_embedder.proj.weight" in {delta.key for delta in lora.deltas}
    model = random_model()
    without = run(model)
    apply_lora(model, lora)
    assert (run(model) - expected).norm() / expected.norm() < 1e-5
    assert (without - expected).norm() / expected.norm() > 0.05, "the LoRA has to matter"


def test_peft_file_without_its_json_is_taken_at_pefts_default(peft_case, tmp_path):
    folder, _ = peft_case
    alone = tmp_path / "renamed.safetensors"
    alone.write_bytes((folder / "adapter_model.safetensors").read_bytes())
    assert {delta.alpha for delta in load_lora(alone).deltas} == {8.0}


def test_adapter_config_decides(peft_case, tmp_path):
    folder, _ = peft_case
    config = json.loads((folder / "adapter_config.json").read_text())
    (tmp_path / "adapter_model.safetensors").write_bytes((folder / "adapter_model.safetensors").read_bytes())

    def alphas(**values):
        (tmp_path / "adapter_config.json").write_text(json.dumps(config | values))
        return {delta.key: delta.alpha for delta in load_lora(tmp_path).deltas}

    assert set(alphas(lora_alpha=32).values()) == {32.0}
    assert set(alphas(lora_alpha=32, use_rslora=True).values()) == {64.0}  # scale 32 / sqrt(4)
    patterned = alphas(lora_alpha=32, alpha_pattern={"attn2.to_q": 5})
    assert patterned["blocks.1.cross_attn.q_linear.weight"] == 5.0
    assert patterned["blocks.1.cross_attn.proj.weight"] == 32.0
    # A file that is found in the folder is the same as the folder; an argument wins over everything.
    (tmp_path / "adapter_config.json").write_text(json.dumps(config | {"lora_alpha": 16}))
    assert {delta.alpha for delta in load_lora(tmp_path / "adapter_model.safetensors").deltas} == {16.0}
    assert {delta.alpha for delta in load_lora(tmp_path, alpha=1).deltas} == {1.0}
    with pytest.raises(CheckpointError, match="is a DoRA"):
        alphas(use_dora=True)


LAYOUTS = {
    "peft": ("base_model.model.{d}.lora_A.weight", "base_model.model.{d}.lora_B.weight"),
    "peft, named adapter": ("base_model.model.{d}.lora_A.default.weight", "base_model.model.{d}.lora_B.default.weight"),
    "peft, reference script": ("unet.base_model.model.{d}.lora_A.weight", "unet.base_model.model.{d}.lora_B.weight"),
    "diffusers": ("transformer.{d}.lora_A.weight", "transformer.{d}.lora_B.weight"),
    "diffusers, bare": ("{d}.lora_A.weight", "{d}.lora_B.weight"),
    "diffusers, older": ("transformer.{d}.lora.down.weight", "transformer.{d}.lora.up.weight"),
    "diffusers, oldest": ("unet.{p}_lora.down.weight", "unet.{p}_lora.up.weight"),
    "onetrainer": ("lora_transformer_{f}.lora_down.weight", "lora_transformer_{f}.lora_up.weight"),
    "onetrainer, dotted": ("lora_transformer.{d}.lora_down.weight", "lora_transformer.{d}.lora_up.weight"),
    "kohya": ("lora_unet_{f}.lora_down.weight", "lora_unet_{f}.lora_up.weight"),
}


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize(
    "module,key,part,parts",
    [
        ("transformer_blocks.1.attn1.to_k", "blocks.1.attn.qkv.weight", 1, 3),
        ("transformer_blocks.0.attn2.to_v", "blocks.0.cross_attn.kv_linear.weight", 1, 2),
        ("transformer_blocks.0.attn2.to_q", "blocks.0.cross_attn.q_linear.weight", 0, 1),
        ("transformer_blocks.0.attn1.to_out.0", "blocks.0.attn.proj.weight", 0, 1),
    ],
)
def test_every_layout_changes_the_same_rows(layout, module, key, part, parts):
    down_name, up_name = (
        name.format(d=module, f=module.replace(".", "_"), p=module.replace(".to_", ".processor.to_"))
        for name in LAYOUTS[layout]
    )
    up, down = pair()
    stem = re.sub(r"(\.|_)lora(_A|_B|_down|_up|\.down|\.up)(\.default)?\.weight$", "", down_name)
    difference = changed(random_model(), parse_lora({down_name: down, up_name: up, f"{stem}.alpha": torch.tensor(2.0)}))
    expected = torch.zeros(parts * 48, 48)
    expected[part * 48 : (part + 1) * 48] = up @ down * 2 / RANK
    torch.testing.assert_close(difference.pop(key), expected, rtol=1e-4, atol=1e-5)
    assert all(not tensor.any() for tensor in difference.values())


@pytest.mark.parametrize(
    "stem", ["lora_unet_blocks_1_attn_qkv", "diffusion_model.blocks.1.attn.qkv", "blocks.1.attn.qkv"]
)
def test_a_lora_of_the_fused_matrix(stem):
    up, down = pair(rows=144)
    lora = parse_lora({f"{stem}.lora_up.weight": up, f"{stem}.lora_down.weight": down})
    assert lora.deltas[0].alpha == RANK and lora.deltas[0].rows is None
    difference = changed(random_model(), lora)["blocks.1.attn.qkv.weight"]
    torch.testing.assert_close(difference, up @ down, rtol=1e-4, atol=1e-4)
    again = changed(random_model(), parse_lora(lora.to_state_dict()))["blocks.1.attn.qkv.weight"]
    torch.testing.assert_close(again, difference, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(
    "prefix,alpha",
    [
        ("base_model.model.", 8.0),
        ("unet.base_model.model.", 8.0),
        ("transformer.", RANK),
        ("lora_transformer.", RANK),
        ("", RANK),
    ],
)
def test_alpha_when_nothing_says_it(prefix, alpha):
    up, down = pair()
    stem = f"{prefix}transformer_blocks.0.attn1.to_k"
    lora = parse_lora({f"{stem}.lora_A.weight": down, f"{stem}.lora_B.weight": up})
    assert lora.deltas[0].alpha == alpha


def test_alpha_in_diffusers_metadata(tmp_path):
    up, down = pair()
    stem = "transformer.transformer_blocks.0.attn1.to_k"
    values = {"transformer.r": RANK, "transformer.lora_alpha": 12}
    save_file(
        {f"{stem}.lora_A.weight": down, f"{stem}.lora_B.weight": up},
        tmp_path / "a.safetensors",
        {"lora_adapter_metadata": json.dumps(values)},
    )
    assert load_lora(tmp_path / "a.safetensors").deltas[0].alpha == 12.0


def test_strengths(peft_case):
    lora = load_lora(peft_case[0])
    model = random_model()
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    apply_lora(model, lora, 0.0)
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())
    half, whole = changed(random_model(), lora, 0.5), changed(random_model(), lora, 1.0)
    for name in half:
        torch.testing.assert_close(2 * half[name], whole[name], rtol=1e-4, atol=1e-5)
    apply_lora(model, lora, 0.7)
    apply_lora(model, lora, -0.7)
    for name, tensor in model.state_dict().items():
        torch.testing.assert_close(tensor, before[name], rtol=0, atol=1e-5)


def test_half_precision_weights_are_changed_in_float32(peft_case):
    lora = load_lora(peft_case[0])
    model = random_model().bfloat16()
    key = "blocks.0.mlp.fc1.weight"
    before = model.state_dict()[key].clone()
    apply_lora(model, lora)
    delta = next(delta for delta in lora.deltas if delta.key == key)
    assert torch.equal(model.state_dict()[key], (before.float() + delta.matrix()).bfloat16())


def test_saved_lora_keeps_its_alpha_and_loads_as_the_same(peft_case, tmp_path):
    lora = load_lora(peft_case[0])
    path = save_lora(lora, tmp_path / "lcm.safetensors", {"distilled": True})
    again = load_lora(path)
    assert again.metadata["distilled"] is True and again.metadata["rank"] == RANK
    assert pc.inspect_file(path).kind == "lora"
    one, two = changed(random_model(), lora), changed(random_model(), again)
    assert all(torch.equal(one[name], two[name]) for name in one)


def test_state_dict_has_the_names_comfyuis_key_map_takes(peft_case):
    state = load_lora(peft_case[0]).to_state_dict()
    theirs = set(convert.authors_to_diffusers(random_model().state_dict()))
    stems = {name.rsplit(".lora_", 1)[0].removesuffix(".alpha") for name in state}
    assert all(stem.startswith("transformer.") for stem in stems)
    assert {stem.removeprefix("transformer.") + ".weight" for stem in stems} <= theirs
    assert all(f"{stem}.alpha" in state for stem in stems)


def test_what_comfyuis_lora_save_extracts(tmp_path):
    """Low-rank weights, whole small ones, and differences of biases, of fused matrices, too."""
    up, down = pair(rows=144)
    bias, table = torch.randn(144), torch.randn(6, 48)
    state = {
        "diffusion_model.blocks.0.attn.qkv.lora_up.weight": up,
        "diffusion_model.blocks.0.attn.qkv.lora_down.weight": down,
        "diffusion_model.blocks.0.attn.qkv.diff_b": bias,
        "diffusion_model.blocks.1.mlp.fc1.diff": torch.ones(192, 48),
        "transformer.transformer_blocks.1.attn1.to_k.diff_b": torch.ones(48),
        "diffusion_model.blocks.1.scale_shift_table.diff": table,
        "diffusion_model.blocks.1.cross_attn.proj.set_weight": torch.full((48, 48), 3.0),
    }
    save_file(state, tmp_path / "extracted.safetensors")
    assert pc.inspect_file(tmp_path / "extracted.safetensors").kind == "lora"
    lora = load_lora(tmp_path / "extracted.safetensors")
    for each in (lora, parse_lora(lora.to_state_dict())):
        model = random_model()
        difference = changed(model, each, 0.5)
        torch.testing.assert_close(difference["blocks.0.attn.qkv.bias"], bias / 2)
        torch.testing.assert_close(difference["blocks.0.attn.qkv.weight"], up @ down / 2, rtol=1e-4, atol=1e-4)
        torch.testing.assert_close(difference["blocks.1.mlp.fc1.weight"], torch.full((192, 48), 0.5))
        torch.testing.assert_close(
            difference["blocks.1.attn.qkv.bias"], torch.arange(3).eq(1).repeat_interleave(48) / 2
        )
        torch.testing.assert_close(difference["blocks.1.scale_shift_table"], table / 2)
        assert (model.blocks[1].cross_attn.proj.weight == 3).all()


EXTRAS = {
    "onetrainer": (
        "lora_transformer_transformer_blocks_0_attn1_to_q",
        "lora_te_encoder_block_0_layer_0_SelfAttention_q",
    ),
    "diffusers": (
        "transformer.transformer_blocks.0.attn1.to_q",
        "text_encoder.encoder.block.0.layer.0.SelfAttention.q",
    ),
    "bare": ("transformer_blocks.0.attn1.to_q", "text_encoders.t5xxl.encoder.block.0.layer.0.SelfAttention.q"),
    "any prefix": ("_orig_mod.student.net.transformer_blocks.0.attn1.to_q", "te.block.0.layer.0.SelfAttention.q"),
}


@pytest.mark.parametrize("stem,other", EXTRAS.values(), ids=EXTRAS)
def test_parts_for_other_models_are_left_out_and_named(stem, other, caplog):
    extra = stem_state(other) | {"bundle_emb.<my_dog>.t5": torch.zeros(2, 3)}
    lora = parse_lora(stem_state(stem) | extra, "x")
    assert [(delta.key, delta.part) for delta in lora.deltas] == [("blocks.0.attn.qkv.weight", 0)]
    assert set(lora.left_out) == set(extra)
    assert "x: its part for the transformer is taken; left out are" in caplog.text and other in caplog.text


@pytest.mark.parametrize("stem", ["transformer.transformer_blocks.0.norm1.linear", "transformer.blocks.0.mlp.fc9"])
def test_an_unknown_module_of_the_transformer_is_another_models(stem):
    state = stem_state("transformer.transformer_blocks.0.attn1.to_q") | stem_state(stem)
    with pytest.raises(CheckpointError, match=f"is a LoRA for another model: PixArt has no {stem}"):
        parse_lora(state)


def test_pefts_patterns_as_peft_reads_them():
    from peft.utils import other

    if not hasattr(other, "get_pattern_key"):
        pytest.skip("this version of PEFT finds patterns within a longer function")
    patterns = {"attn2.to_q": 5, "transformer_blocks.1.attn2.to_q": 7, "to_.*": 9}
    stems = [
        f"base_model.model.transformer_blocks.{n}.{m}" for n in (0, 1) for m in ("attn2.to_q", "attn1.to_v", "ff.net.2")
    ]
    state = {key: tensor for stem in stems for key, tensor in stem_state(stem).items() if "ff" not in stem}
    lora = parse_lora(state, adapter_config={"r": RANK, "lora_alpha": 32, "alpha_pattern": patterns})
    for delta in lora.deltas:
        module = convert.diffusers_names(delta.key)[delta.part].removesuffix(".weight")
        assert delta.alpha == patterns.get(other.get_pattern_key(patterns, module), 32)
    assert {delta.alpha for delta in lora.deltas} == {5.0, 9.0}


@pytest.mark.parametrize(
    "config,message",
    [
        ({"peft_type": "ADALORA"}, "is a ADALORA of PEFT"),
        ({"init_lora_weights": "pissa_niter_4"}, "was begun by pissa_niter_4, which changes the base model"),
    ],
)
def test_what_peft_reads_otherwise_is_named(config, message):
    with pytest.raises(CheckpointError, match=message):
        parse_lora(stem_state("base_model.model.proj_out"), adapter_config=config)


def test_an_adapter_config_beside_a_renamed_file(tmp_path, caplog):
    save_file(stem_state("base_model.model.proj_out"), tmp_path / "my_style.safetensors")
    assert load_lora(tmp_path / "my_style.safetensors").deltas[0].alpha == 8
    assert "does not say its alpha, and PEFT's default 8 is taken" in caplog.text
    file = tmp_path / "adapter_config.json"
    file.write_text(json.dumps({"r": RANK, "lora_alpha": 32}), encoding="utf-8-sig")
    assert load_lora(tmp_path / "my_style.safetensors").deltas[0].alpha == 32
    file.write_text(json.dumps({"r": 64, "lora_alpha": 32}))
    assert load_lora(tmp_path / "my_style.safetensors").deltas[0].alpha == 8
    assert "is of another rank, and is not used" in caplog.text


def test_the_transformers_alpha_is_not_the_text_encoders(tmp_path):
    values = {"transformer.r": RANK, "transformer.lora_alpha": 12, "text_encoder.r": 4, "text_encoder.lora_alpha": 99}
    metadata = {"lora_adapter_metadata": json.dumps(values)}
    save_file(stem_state("transformer.proj_out"), tmp_path / "a.safetensors", metadata)
    assert load_lora(tmp_path / "a.safetensors").deltas[0].alpha == 12


def test_every_tensor_has_one_name_for_the_host():
    """Also of `to_out.0`, which is `to_out` to some."""
    names = [f"transformer.transformer_blocks.1.attn1.{each}.lokr_w1" for each in ("to_out.0", "to_q")]
    found = host_state({name: torch.zeros(1) for name in names})
    assert list(found) == ["diffusion_model.blocks.1.attn.proj.lokr_w1", names[1]]


@pytest.mark.parametrize(("stored", "asked", "scale"), [(8.0, None, 4), (8.0, 6.0, 3), (None, 6.0, 3), (None, None, 1)])
def test_the_alpha_of_a_lokr(stored, asked, scale):
    """The argument before the file's own, as for a LoRA; over the rank of the factor that is two matrices."""
    w1, up, down = torch.randn(2, 2), torch.randn(24, 2), torch.randn(2, 24)
    state = {"lokr_w1": w1, "lokr_w2_a": up, "lokr_w2_b": down}
    if stored is not None:
        state["alpha"] = torch.tensor(stored)
    lora = parse_lora({f"blocks.0.attn.proj.{name}": value for name, value in state.items()}, alpha=asked)
    torch.testing.assert_close(lora.krons[0].matrix(), scale * torch.kron(w1, up @ down))
