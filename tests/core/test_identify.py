"""What a file is: every released shape is known, every other file is named with what takes it."""

import json

import pytest
import torch
from safetensors.torch import load_file, save_file

import pixart_core as pc
from pixart_core import convert, identify
from pixart_core.checkpoint import CheckpointError, load_controlnet, save_controlnet
from pixart_core.identify import is_distilled
from tests.core.checkpoint_fixture import CONFIG, OFFICIAL, assert_same, sparse_file

RELEASED = pytest.mark.parametrize(
    "name,config", [("PixArt-XL-2-1024-MS", pc.PIXART_1024_MS), ("PixArt-XL-2-512x512", pc.PIXART_512)]
)


@RELEASED
def test_every_key_and_shape_of_the_released_models(tmp_path, name, config):
    shapes = {key: tuple(shape) for key, shape in OFFICIAL[name].items()}
    on_meta = {key: tuple(tensor.shape) for key, tensor in pc.PixArt(config, device="meta").state_dict().items()}
    assert on_meta == shapes
    info = pc.inspect_file(sparse_file(tmp_path / "authors.safetensors", shapes))
    assert (info.kind, info.layout, info.config) == ("pixart", "authors", config)
    theirs = {
        key: tuple(tensor.shape)
        for key, tensor in convert.authors_to_diffusers(
            {key: torch.empty(shape, device="meta") for key, shape in shapes.items()}
        ).items()
    }
    (tmp_path / "folder").mkdir()
    sparse_file(tmp_path / "folder" / "diffusion_pytorch_model.safetensors", theirs)
    (tmp_path / "folder" / "config.json").write_text(json.dumps(convert.config_to_diffusers(config)))
    assert pc.inspect_file(tmp_path / "folder").config == config


@RELEASED
def test_every_key_and_shape_of_the_released_controlnets(tmp_path, name, config):
    shapes = {key: tuple(shape) for key, shape in OFFICIAL[f"{name}-ControlNet13"].items()}
    on_meta = pc.ControlNetTransformer(config, 13, device="meta").state_dict()
    assert {key: tuple(tensor.shape) for key, tensor in on_meta.items()} == shapes
    joint = shapes | {f"base_model.{key}": tuple(shape) for key, shape in OFFICIAL[name].items()}
    info = pc.inspect_file(sparse_file(tmp_path / "joint.safetensors", joint))
    assert (info.kind, info.config, info.copy_blocks_num) == ("pixart+controlnet", config, 13)
    info = pc.inspect_file(sparse_file(tmp_path / "control.safetensors", shapes))
    assert (info.kind, info.copy_blocks_num, info.config.hidden_size) == ("controlnet", 13, 1152)
    assert info.wiring == "transformer"


def test_released_256_and_lcm(tmp_path):
    shapes = dict(OFFICIAL["PixArt-XL-2-512x512"]) | {"pos_embed": [1, 256, 1152]}
    assert pc.inspect_file(sparse_file(tmp_path / "256.safetensors", shapes)).config == pc.PIXART_256
    # The LCM model exists in diffusers' layout only. As a lone file its micro-conditions tell what it is.
    names = {
        key: tuple(tensor.shape)
        for key, tensor in convert.authors_to_diffusers(
            {key: torch.empty(shape, device="meta") for key, shape in OFFICIAL["PixArt-XL-2-1024-MS"].items()}
        ).items()
    }
    del names["caption_projection.y_embedding"]
    assert pc.inspect_file(sparse_file(tmp_path / "lcm.safetensors", names)).config == pc.PIXART_1024_MS


def test_a_whole_512_model_loads_from_its_shapes_alone(tmp_path):
    path = sparse_file(tmp_path / "512.safetensors", OFFICIAL["PixArt-XL-2-512x512"], "BF16", 2)
    loaded = pc.load_pixart(path)
    assert loaded.config == pc.PIXART_512 and sum(p.numel() for p in loaded.parameters()) > 600e6


def test_a_distilled_model_is_known_by_what_made_it_or_by_its_pipelines_scheduler(model, tmp_path):
    def said(path) -> bool | None:
        return is_distilled(pc.inspect_file(path))

    for command, expected in (("lcd", True), ("finetune", None)):
        made = {"training": {"command": command}}
        assert said(pc.save_pixart(model, tmp_path / f"{command}.safetensors", metadata=made)) is expected
    assert said(pc.save_pixart(model, tmp_path / "other.safetensors", metadata={"distilled": False})) is False
    for name, expected in (("LCMScheduler", True), ("DPMSolverMultistepScheduler", False)):
        pipeline = tmp_path / name
        pipeline.mkdir()
        pc.save_pixart(model, pipeline / "transformer", "diffusers")
        (pipeline / "base").mkdir()
        beside = pc.save_pixart(model, pipeline / "base" / "base.safetensors")
        assert said(pipeline / "transformer") is None
        (pipeline / "scheduler").mkdir()
        (pipeline / "scheduler" / "scheduler_config.json").write_text(f'{{"_class_name": "{name}"}}')
        file = next((pipeline / "transformer").glob("*.safetensors"))
        assert [said(path) for path in (pipeline / "transformer", file)] == [expected] * 2
        assert said(beside) is None and said(beside.parent) is None


def test_shapes_that_tell_nothing_need_a_configuration(model, tmp_path):
    save_file(model.state_dict(), tmp_path / "own.safetensors")
    assert pc.inspect_file(tmp_path / "own.safetensors").config is None
    with pytest.raises(CheckpointError, match=r"does not say its number of attention heads .*config=PixArtConfig"):
        pc.load_pixart(tmp_path / "own.safetensors")
    assert_same(pc.load_pixart(tmp_path / "own.safetensors", config=CONFIG), model)
    lone = {
        key: tuple(tensor.shape)
        for key, tensor in convert.authors_to_diffusers(
            {key: torch.empty(shape, device="meta") for key, shape in OFFICIAL["PixArt-XL-2-512x512"].items()}
        ).items()
    }
    with pytest.raises(CheckpointError, match="not those of exactly one released PixArt-α model"):  # 256 or 512?
        pc.load_pixart(sparse_file(tmp_path / "lone.safetensors", lone))


# Other files -----------------------------------------------------------------------------------------------------

ALIENS = {
    "sd unet": (
        ["model.diffusion_model.input_blocks.0.0.weight", "first_stage_model.decoder.conv_in.weight"],
        "sd",
        "a Stable Diffusion UNet or checkpoint.*Load Checkpoint",
    ),
    "sd unet of diffusers": (
        ["conv_in.weight", "down_blocks.0.resnets.0.time_emb_proj.weight"],
        "sd",
        "a Stable Diffusion UNet",
    ),
    "flux": (["double_blocks.0.img_attn.qkv.weight"], "other transformer", "a diffusion transformer of another family"),
    "sd3": (
        ["joint_blocks.0.x_block.attn.qkv.weight", "x_embedder.proj.weight"],
        "other transformer",
        "a diffusion transformer of another family",
    ),
    "vae": (["decoder.conv_in.weight", "encoder.conv_in.weight"], "vae", "an autoencoder .VAE.*Load VAE"),
    "taesd": (["taesd_decoder.1.weight"], "vae", "an autoencoder .VAE."),
    "t5": (
        ["encoder.block.0.layer.0.SelfAttention.q.weight", "shared.weight"],
        "t5",
        "a T5 text encoder.*Text Encoder Loader",
    ),
    "clip": (["text_model.encoder.layers.0.mlp.fc1.weight"], "clip", "a CLIP text encoder"),
    "lora": (["lora_unet_x.lora_down.weight", "lora_unet_x.lora_up.weight"], "lora", "a LoRA.*LoRA Loader"),
    "sd controlnet": (["control_model.input_blocks.0.0.weight"], "sd-controlnet", "a ControlNet of another model"),
    "hed": (["norm", "block1.convs.0.weight"], "hed", "a HED edge detector"),
    "something": (["a", "b"], "unknown", "nothing that PixArt knows .it begins with a, b"),
}


@pytest.mark.parametrize("names,kind,message", ALIENS.values(), ids=ALIENS)
def test_other_files_are_named_with_what_takes_them(tmp_path, names, kind, message):
    path = tmp_path / "file.safetensors"
    save_file({name: torch.zeros(1) for name in names}, path)
    assert pc.inspect_file(path).kind == kind
    with pytest.raises(CheckpointError, match=f"file.safetensors is not a PixArt-α/δ transformer but {message}"):
        pc.load_pixart(path)
    with pytest.raises(CheckpointError, match=f"file.safetensors is not a PixArt ControlNet but {message}"):
        load_controlnet(path)


def test_pixart_sigma_is_told_from_alpha(tmp_path):
    shapes = dict(OFFICIAL["PixArt-XL-2-512x512"]) | {"y_embedder.y_embedding": [300, 4096]}
    path = sparse_file(tmp_path / "sigma.safetensors", shapes)
    assert pc.inspect_file(path).kind == "sigma"
    with pytest.raises(CheckpointError, match="but a PixArt-Σ transformer .300 tokens.*Load Diffusion Model"):
        pc.load_pixart(path)


@pytest.mark.parametrize(
    "sample_size,pipeline,kind",
    [
        (128, None, "sigma"),
        (256, None, "sigma"),
        (64, "PixArtSigmaPipeline", "sigma"),
        (64, "PixArtAlphaPipeline", "pixart"),
    ],
)
def test_pixart_sigma_folders(tmp_path, sample_size, pipeline, kind):
    config = pc.PixArtConfig(input_size=sample_size, interpolation_scale=2.0, micro_condition=False)
    shapes = {
        key: tuple(tensor.shape)
        for key, tensor in convert.authors_to_diffusers(
            {key: torch.empty(shape, device="meta") for key, shape in OFFICIAL["PixArt-XL-2-512x512"].items()}
        ).items()
    }
    (tmp_path / "transformer").mkdir()
    sparse_file(tmp_path / "transformer" / "diffusion_pytorch_model.safetensors", shapes)
    (tmp_path / "transformer" / "config.json").write_text(json.dumps(convert.config_to_diffusers(config)))
    if pipeline:
        (tmp_path / "model_index.json").write_text(json.dumps({"_class_name": pipeline}))
    assert pc.inspect_file(tmp_path / "transformer").kind == kind


def test_controlnet_given_to_the_model_loader(control, tmp_path):
    path = save_controlnet(control, tmp_path / "control.safetensors")
    with pytest.raises(CheckpointError, match="a PixArt ControlNet without its base model.*ControlNet Loader"):
        pc.load_pixart(path)


def test_model_given_to_the_controlnet_loader(model, tmp_path):
    path = pc.save_pixart(model, tmp_path / "model.safetensors")
    with pytest.raises(CheckpointError, match="is not a PixArt ControlNet but a PixArt transformer.*Model Loader"):
        load_controlnet(path)


def test_every_kind_has_a_description():
    own = {"pixart", "pixart+controlnet", "controlnet", "sigma", "unknown"}
    kinds = set(identify._OTHER_KINDS) | own
    assert kinds == set(identify._DESCRIPTIONS)


CLAIMS = [
    ("depth", 10**9, "depth must be at most"),
    ("depth", 1000, "does not fit .* depth 1000: it has only"),
    ("depth", "3", "depth is '3': a whole number is wanted"),
    ("depth", True, "depth is True: a whole number is wanted"),
    ("hidden_size", 48.5, "hidden_size is 48.5: a whole number is wanted"),
    ("input_size", 40_000, "input_size must be at most"),
    ("input_size", 1024, "input_size / patch_size must be at most 256"),
    ("interpolation_scale", 0, "interpolation_scale must be at least"),
    ("interpolation_scale", float("nan"), "interpolation_scale must be at least"),
    ("interpolation_scale", None, "interpolation_scale is None: a number is wanted"),
    ("mlp_ratio", float("inf"), "mlp_ratio must be at most"),
    ("micro_condition", "no", "micro_condition is 'no': true or false is wanted"),
]


@pytest.mark.parametrize("name,value,message", CLAIMS, ids=[f"{name}={value}" for name, value, _ in CLAIMS])
def test_what_metadata_claims_is_bounded(model, tmp_path, name, value, message):
    claims = {"kind": "pixart", "config": CONFIG.to_dict() | {name: value}}
    save_file(model.state_dict(), tmp_path / "file.safetensors", {"pixart_delta": json.dumps(claims)})
    with pytest.raises(CheckpointError, match=rf"file\.safetensors.*{message}"):
        pc.load_pixart(tmp_path / "file.safetensors")


@pytest.mark.parametrize(
    "changes",
    [
        *({"num_layers": value} for value in (10**9, "2", None, [3], 2.5)),
        *({"sample_size": value} for value in (40_000, "x", 0, [8])),
        *({"interpolation_scale": value} for value in (0, "2", float("nan"), -1)),
        *({"num_attention_heads": value} for value in ("a", 0, 10**20)),
        {"attention_head_dim": "a" * 100},
        {"caption_channels": {}},
        {"in_channels": []},
    ],
    ids=str,
)
def test_what_a_diffusers_configuration_claims_is_bounded(model, tmp_path, changes):
    folder = pc.save_pixart(model, tmp_path / "t", layout="diffusers")
    state = load_file(folder / "diffusion_pytorch_model.safetensors")
    save_file(state, folder / "diffusion_pytorch_model.safetensors")  # without our metadata
    assert pc.load_pixart(folder)
    values = json.loads((folder / "config.json").read_text()) | changes
    (folder / "config.json").write_text(json.dumps(values))
    with pytest.raises(CheckpointError, match=str(folder)):
        pc.load_pixart(folder)


def test_a_block_number_is_no_claim(model, tmp_path):
    state = dict(model.state_dict()) | {f"blocks.{'9' * digits}.x": torch.zeros(1) for digits in (3, 9, 5000)}
    save_file(state, tmp_path / "file.safetensors", {"pixart_delta": json.dumps({"config": CONFIG.to_dict()})})
    with pytest.raises(CheckpointError, match="file.safetensors does not fit .* it has unknown"):
        pc.load_pixart(tmp_path / "file.safetensors")


def test_metadata_that_is_nested_or_of_other_kinds(model, tmp_path):
    path = tmp_path / "file.safetensors"
    for text in ("[" * 100_000, '{"config": []}', '{"config": "x"}', '{"config": {"wiring": []}}'):
        save_file(model.state_dict(), path, {"pixart_delta": text})
        with pytest.raises(CheckpointError, match="file.safetensors"):
            pc.load_pixart(path)
