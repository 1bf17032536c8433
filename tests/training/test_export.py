"""Exports load where they are meant to: in our loaders, in diffusers, in PEFT, in ComfyUI's own LoRA node."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from pixart_delta.pixart_core.checkpoint import save_pixart
from pixart_delta.pixart_core.text import TextEncoder
from pixart_delta.training import sampling
from pixart_delta.training.config import ConfigError, make_config
from pixart_delta.training.export import LAYOUTS, export, write_result
from pixart_delta.training.sampling import sample
from pixart_delta.training.tasks import TASKS
from safetensors import safe_open
from safetensors.torch import load_file

import pixart_core as pc
from pixart_core.delta import apply_lora
from pixart_core.identify import inspect_file
from pixart_core.lora import load_lora
from tests.fixtures_nano import make_nano_folder, nano_config, random_pixart
from tests.training import runs_fixture

CONFIG = nano_config(depth=4)
INSIDE = Path(__file__).with_name("inside_lora.py")


@pytest.fixture(scope="module")
def base(tmp_path_factory):
    return save_pixart(random_pixart(CONFIG), tmp_path_factory.mktemp("export") / "base.safetensors")


def trained(command, base, **settings):
    """A task whose trained weights have all moved, and its settings."""
    values = {"run": "/home/me/secret/run", "data": "/data/mine", "base": str(base), "precision": "fp32", **settings}
    if command == "controlnet":
        values["copy_blocks"] = 2
    config = make_config(command, values)
    task = TASKS[command](config)
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for network in (task.model, task.ema):
            for name, parameter in () if network is None else network.named_parameters():
                if task.model.get_parameter(name).requires_grad:
                    parameter.add_(0.05 * torch.randn(parameter.shape, generator=generator))
    return task, config


def inputs():
    generator = torch.Generator().manual_seed(1)
    mask = torch.ones(2, 7)
    mask[1, 4:] = 0
    return {
        "latent": torch.randn(2, 4, 6, 10, generator=generator),
        "timestep": torch.tensor([999, 259]),
        "caption": torch.randn(2, 7, CONFIG.caption_channels, generator=generator),
        "caption_mask": mask,
        "image_size": torch.tensor([[48.0, 80.0]] * 2),
        "aspect_ratio": torch.tensor([[0.6]] * 2),
    }


def in_diffusers(transformer):
    """What diffusers' transformer makes of `inputs`."""
    x = inputs()
    return transformer(
        x["latent"],
        encoder_hidden_states=x["caption"],
        encoder_attention_mask=x["caption_mask"],
        timestep=x["timestep"],
        added_cond_kwargs={"resolution": x["image_size"], "aspect_ratio": x["aspect_ratio"]},
    ).sample


def close(one, other, limit=1e-5):
    return (one - other).norm() <= limit * other.norm()


@torch.no_grad()
def test_a_model_loads_in_our_loader_and_in_diffusers(base, tmp_path):
    from diffusers import PixArtTransformer2DModel

    task, config = trained("lcd", base)
    expected = task.ema(**inputs())
    ours = pc.load_pixart(write_result(task, config, tmp_path / "a.safetensors", dtype=torch.float32))
    assert torch.equal(ours(**inputs()), expected) and not close(expected, task.model(**inputs()), 1e-2)
    last = pc.load_pixart(write_result(task, config, tmp_path / "b.safetensors", dtype=torch.float32, average=False))
    assert torch.equal(last(**inputs()), task.model(**inputs()))
    folder = write_result(task, config, tmp_path / "diffusers", "diffusers", torch.float32)
    assert close(in_diffusers(PixArtTransformer2DModel.from_pretrained(folder)), expected)
    assert torch.equal(ours.y_embedder.y_embedding, pc.load_pixart(base).y_embedder.y_embedding)


@torch.no_grad()
def test_a_student_with_guidance_embedding_becomes_a_plain_model(base, tmp_path):
    task, config = trained("lcd", base, w_embedding=True, guidance=7.0)
    path = write_result(task, config, tmp_path / "a.safetensors", dtype=torch.float32)
    assert load_file(path).keys() == load_file(base).keys()
    time = torch.stack([inputs()["timestep"].float(), torch.full((2,), 7.0)], 1)
    assert close(pc.load_pixart(path)(**inputs()), task.ema(**{**inputs(), "timestep": time}))


@pytest.fixture(scope="module")
def lora(base, tmp_path_factory):
    """(task and its settings, file, what the network with it gives)."""
    task, config = trained("lcm-lora", base, lora_rank=3, lora_alpha=6.0)
    path = write_result(task, config, tmp_path_factory.mktemp("lora") / "lora.safetensors", dtype=torch.float32)
    with torch.no_grad():
        return (task, config), path, task.model(**inputs())


@torch.no_grad()
def test_a_lora_loads_in_our_loader_with_its_alpha(lora, base):
    _, path, expected = lora
    loaded, model = load_lora(path), pc.load_pixart(base)
    assert loaded.rank == 3 and {delta.alpha for delta in loaded.deltas} == {6.0}
    before = model(**inputs())
    apply_lora(model, loaded)
    assert close(model(**inputs()), expected) and not close(before, expected, 1e-2)


def test_a_finetuned_lora_is_such_a_file_too(lora, base, tmp_path):
    path = write_result(*trained("finetune", base, lora_rank=3), tmp_path / "lora.safetensors")
    assert load_file(path).keys() == load_file(lora[1]).keys()


@torch.no_grad()
def test_a_lora_loads_in_peft_on_diffusers_transformer(lora, base, tmp_path):
    from diffusers import PixArtTransformer2DModel
    from peft import PeftModel

    made, _, expected = lora
    folder = write_result(*made, tmp_path / "peft", "peft", torch.float32)
    save_pixart(pc.load_pixart(base), tmp_path / "base", "diffusers")
    transformer = PixArtTransformer2DModel.from_pretrained(tmp_path / "base")
    adapted = PeftModel.from_pretrained(transformer, folder)
    assert close(in_diffusers(adapted), expected)
    again = load_lora(folder)
    assert {delta.alpha for delta in again.deltas} == {6.0}
    model = pc.load_pixart(base)
    apply_lora(model, again)
    assert close(model(**inputs()), expected)


def test_a_lora_loads_in_comfyuis_own_node(comfyui_path, lora, base, tmp_path):
    _, path, _ = lora
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    command = [sys.executable, INSIDE, comfyui_path, base, path, tmp_path / "out.safetensors"]
    done = subprocess.run(command, timeout=300, capture_output=True, text=True, cwd=comfyui_path, env=environment)
    assert done.returncode == 0, done.stderr[-3000:]
    assert "lora key not loaded" not in done.stderr + done.stdout
    expected = pc.load_pixart(base)
    apply_lora(expected, load_lora(path))
    found, before = load_file(tmp_path / "out.safetensors"), load_file(base)
    for name, weight in expected.named_parameters():
        assert close(found[name], weight), name
    changed = {name for name in before if name in found and not close(found[name], before[name].float(), 1e-3)}
    assert changed == {delta.key for delta in load_lora(path).deltas}


@torch.no_grad()
def test_a_control_loads_alone_and_joined_with_its_base(base, tmp_path):
    task, config = trained("controlnet", base)
    x, hint = inputs(), torch.randn(2, 4, 6, 10)
    rest = [x[name] for name in ("caption_mask", "image_size", "aspect_ratio")]
    plain = pc.load_pixart(base)
    expected = task.model(plain, x["latent"], x["timestep"], x["caption"], hint, *rest)
    for layout in LAYOUTS["controlnet"]:
        path = write_result(task, config, tmp_path / f"{layout}.safetensors", layout, torch.float32)
        control = pc.load_controlnet(path, config=CONFIG)
        found = control(plain, x["latent"], x["timestep"], x["caption"], hint, *rest)
        assert all(torch.equal(a, b) for a, b in zip(found, expected, strict=True)), layout
    names = {layout: set(load_file(tmp_path / f"{layout}.safetensors")) for layout in LAYOUTS["controlnet"]}
    assert {"controlnet.0.before_proj.weight", "controlnet.1.copied_block.attn.qkv.weight"} < names["comfyui"]
    assert "controlnet_blocks.1.transformer_block.attn1.to_q.weight" in names["diffusers"]
    assert names["joint"] == names["comfyui"] | {f"base_model.{name}" for name in load_file(base)}
    joined = pc.load_pixart(tmp_path / "joint.safetensors")
    assert all(torch.equal(joined.state_dict()[name], tensor) for name, tensor in plain.state_dict().items())


@torch.no_grad()
def test_a_joint_file_keeps_the_base_as_it_is_though_training_rounded_it(base, tmp_path):
    task, config = trained("controlnet", base, precision="bf16")
    joined = pc.load_pixart(write_result(task, config, tmp_path / "joint.safetensors", "joint", torch.float32))
    assert all(torch.equal(tensor, pc.load_pixart(base).state_dict()[n]) for n, tensor in joined.state_dict().items())


def test_unet_wiring_is_kept(base, tmp_path):
    task, config = trained("controlnet", base, wiring="unet")
    assert pc.load_controlnet(write_result(task, config, tmp_path / "out.safetensors")).wiring == "unet"


@pytest.mark.parametrize("command", ["lcd", "lcm-lora", "controlnet"])
def test_a_file_says_how_it_was_made_but_not_where(command, base, tmp_path):
    path = write_result(*trained(command, base), tmp_path / "a.safetensors", step=7)
    about = inspect_file(path).metadata["training"]
    assert (about["command"], about["step"], about["config"]["run"], about["config"]["base"]) == (
        command,
        7,
        "run",
        "base.safetensors",
    )
    with safe_open(path, "pt") as file:
        assert "secret" not in str(file.metadata())
        floating = {file.get_tensor(name).dtype for name in file.keys() if not name.endswith(".alpha")}
    assert floating == {torch.float16}


def test_a_familys_colours_of_previews_go_on_with_what_is_trained_from_it(tmp_path):
    colours = {"preview": {"factors": [[0.5, 0.25, 0.0]] * 4, "bias": [0.0, -1.0, 0.125]}}
    base = save_pixart(random_pixart(CONFIG), tmp_path / "base.safetensors", metadata=colours)
    task, config = trained("lcd", base)
    base.unlink()  # it was read when the training began
    for layout, name in (("comfyui", "a.safetensors"), ("diffusers", "a")):
        metadata = inspect_file(write_result(task, config, tmp_path / name, layout)).metadata
        assert metadata["preview"] == colours["preview"] and metadata["training"]["command"] == "lcd"


@pytest.mark.parametrize(
    "command,layout,message",
    [
        ("lcd", "peft", "a pixart is written as comfyui or diffusers"),
        ("lcm-lora", "diffusers", "a lora is written as comfyui or peft"),
        ("controlnet", "peft", "a controlnet is written as comfyui, diffusers or joint"),
    ],
)
def test_layouts_that_do_not_exist_are_named(command, layout, message, base, tmp_path):
    with pytest.raises(ConfigError, match=message):
        write_result(*trained(command, base), tmp_path / "x.safetensors", layout)
    assert not list(tmp_path.iterdir())


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    """A finished run of every command, and a pipeline folder."""
    folder = tmp_path_factory.mktemp("runs")
    material = runs_fixture.make_material(folder)
    models = make_nano_folder(folder / "models")
    for command in runs_fixture.COMMANDS:
        values = runs_fixture.settings(command, material, folder / command, steps=3, workers=0, models=str(models))
        runs_fixture.run_here(command, values)
    return folder


@pytest.mark.parametrize("command", runs_fixture.COMMANDS)
def test_export_of_a_run_is_what_the_run_exported_itself(command, runs, tmp_path):
    exported = next((runs / command / "exports").glob("*.safetensors"))
    for run in (runs / command, runs / command / "checkpoints/step_00000003.safetensors"):
        again = export(make_config("export", {"run": str(run), "output": str(tmp_path / exported.name)}))
        one, other = load_file(exported), load_file(again)
        assert one.keys() == other.keys() and all(torch.equal(one[name], other[name]) for name in one)
    assert inspect_file(again).metadata["training"]["step"] == 3


def test_a_run_goes_on_and_is_exported_without_the_file_that_its_student_began_as(tmp_path):
    material = runs_fixture.make_material(tmp_path)
    begun = tmp_path / "begun.safetensors"
    values = runs_fixture.settings("lcd", material, tmp_path / "run", steps=1, workers=0) | {"student": str(begun)}
    begun.write_bytes(Path(values["base"]).read_bytes())
    runs_fixture.run_here("lcd", values)
    begun.unlink()
    runs_fixture.run_here("lcd", {**values, "steps": 2})
    again = export(make_config("export", {"run": str(tmp_path / "run"), "output": str(tmp_path / "again.safetensors")}))
    exported = next((tmp_path / "run" / "exports").glob("*.safetensors"))
    assert load_file(again)["final_layer.linear.weight"].equal(load_file(exported)["final_layer.linear.weight"])
    training = inspect_file(again).metadata["training"]
    assert training["step"] == 2 and training["config"]["student"] == "begun.safetensors"


@pytest.mark.parametrize("command", runs_fixture.COMMANDS)
def test_samples_of_a_run(command, runs, tmp_path):
    from PIL import Image

    values = {"run": str(runs / command), "count": 3}
    path = sample(make_config("sample", values))
    assert path.parent == runs / command / "samples" and path.name == "sample_00000003_0.png"
    picture = Image.open(path)
    assert picture.size == (3 * 64 + 8, 2 * 64 + 4 if command == "controlnet" else 64)  # hints above
    assert picture.tobytes() == Image.open(sample(make_config("sample", values))).tobytes()
    other = Image.open(sample(make_config("sample", {**values, "seed": 1, "output": str(tmp_path / "other.png")})))
    assert other.tobytes() != picture.tobytes()
    values |= {"prompts": ["a red mountain", "a lake at dawn, with a boat"], "output": str(tmp_path / "prompted.png")}
    side = 64 if command == "controlnet" else 128  # of the hints in the data; of the model
    prompted = Image.open(sample(make_config("sample", values)))
    assert prompted.size == (2 * side + 4, 2 * side + 4 if command == "controlnet" else side)


def test_prompts_are_encoded_where_the_networks_run(runs, tmp_path, monkeypatch):
    """Not on the CPU by default, where T5-XXL takes minutes."""
    asked = []
    open_encoder = TextEncoder.from_pretrained

    def note(path, device=None):
        asked.append(device)
        return open_encoder(path, device=device)

    monkeypatch.setattr(TextEncoder, "from_pretrained", note)
    monkeypatch.setattr(sampling, "default_device", lambda: torch.device("cpu", 0))
    values = {"run": str(runs / "lcd"), "prompts": ["a lake"], "output": str(tmp_path / "x.png")}
    assert sample(make_config("sample", values)).exists() and asked == [torch.device("cpu", 0)]


def test_samples_without_a_pipeline_folder(runs):
    config = make_config("sample", {"run": str(runs / "lcd"), "models": str(runs / "nowhere")})
    with pytest.raises(ValueError, match="models of .* is not at .*nowhere: say where it is now with models="):
        sample(config)
