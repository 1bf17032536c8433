"""Checks of inside.py: text encoders, LoRAs, lists of files, and what the nodes of trainings show and free."""

from __future__ import annotations

import contextlib
from pathlib import Path
from unittest import mock

import torch
from inside_process import PROMPT, ROOT, Setup, close


def check_text_encoder_equals_transformers(s: Setup) -> None:
    """Plain and 8-bit, by our node's path and by the stock one; long prompts are cut at 120 tokens."""
    encoder = s.part("pixart_core.text").TextEncoder.from_pretrained(s.family, dtype=torch.float32)
    clips = {q: s.part("nodes.bridge.clip").load_clip(str(s.family / "text_encoder"), q) for q in ("none", "8-bit")}
    encode = s.part("nodes.bridge.prompt").encode_prompts
    for text in (PROMPT, "", "A (RED:1.3) Mountain", "and a lake " * 100):
        caption, mask = encoder.encode([text])
        expected = caption[:, : int(mask.sum())]
        for quantization, limit in (("none", 1e-4), ("8-bit", 0.1)):
            found = encode(clips[quantization], text, "", 0, 0, False)[0][0][0]
            assert found.shape == expected.shape and found.shape[1] <= 120
            close(found, expected, limit)
    stock = clips["none"].encode_from_tokens_scheduled(clips["none"].tokenize(PROMPT.upper()))[0][0]
    close(stock, encoder.encode([PROMPT])[0][:, : stock.shape[1]], 1e-4)
    linear = clips["8-bit"].cond_stage_model.t5xxl.transformer.encoder.block[0].layer[0].SelfAttention.q
    assert type(linear.weight).__name__ == "QuantizedTensor" or type(linear.weight.data).__name__ == "QuantizedTensor"


def check_a_prompt_that_another_familys_encoder_read_is_named(s: Setup) -> None:
    """Both bundled families' encoders are equally wide. Of a model outside a pipeline folder nothing is known."""
    family, said = s.part("nodes.bridge.family"), mock.Mock()
    latent, models = s.sampling.empty_latent(64, 64, 1), ROOT / "models"
    elsewhere = s.family.parent / "elsewhere" / "of_nobody_knows_what.safetensors"
    elsewhere.parent.mkdir()
    elsewhere.write_bytes((models / "nano" / "base" / "pixart_nano_base.safetensors").read_bytes())
    places = {"nano256/transformer": "nano256", "nano/base/pixart_nano_base.safetensors": "nano", elsewhere: ""}
    for reader, quantization in (("nano", "none"), ("nano256", "8-bit")):
        clip = s.part("nodes.bridge.clip").load_clip(str(models / reader / "text_encoder"), quantization)
        stock = clip.encode_from_tokens_scheduled(clip.tokenize("a lake"))
        ours, _ = s.part("nodes.bridge.prompt").encode_prompts(clip, "a lake", "", 0, 0, False)
        for place, own in places.items():
            model = s.sampling.watch_sampling(s.load(str(models / place), "float32"))
            for positive in (stock, ours):
                said.reset_mock()
                with mock.patch.object(family, "say_once", said):
                    s.sampling.run_lcm(model, positive, latent, 3, 1, "diffusers")
                texts = [call.args[0] for call in said.call_args_list]
                assert bool(texts) == (own not in ("", reader)), (place, reader, texts)
                name = {"nano": "bundled/nano", "nano256": "bundled/nano 256"}.get(own)
                assert all(f"choose {name} in PixArt-δ Text Encoder Loader" in text for text in texts), texts


def check_a_training_can_have_the_memory(s: Setup) -> None:
    """With free_memory, a training node leaves none of ComfyUI's models on the device before its job is queued."""
    from comfy import model_management

    training = s.part("nodes.background.start")
    found: list[int] = []

    def create(*_) -> None:
        found.append(len(model_management.loaded_models()))
        raise InterruptedError  # so that no job is queued

    queue = mock.Mock(jobs=list, same=lambda *_: None, create=create, root=s.family)
    stand_ins = {
        "_dataset": lambda text: mock.Mock(folder=Path(text), ready=True),
        "checked_settings": lambda kind, values, _known: kind.make({**values, "run": "queue", "base": "there"}),
        "read_base": lambda _config: None,
        "check_and_estimate": lambda *_, **__: "",
    }
    for free in (False, True):
        model_management.load_models_gpu([s.model])
        jobs = mock.patch.object(training.jobs, "queue", lambda: queue)
        with jobs, mock.patch.multiple(training, **stand_ins), contextlib.suppress(InterruptedError):
            training.start_training("lcd", "", {"data": "here"}, "", False, free)
    assert found[0] > 0 and found[1] == 0, found


def check_prompt_rules_leave_names_of_embeddings(s: Setup) -> None:
    rules = s.part("nodes.bridge.prompt").prompt_text
    assert rules("  A Red (Lake:1.2), embedding:My_Dog.v2 AND (embedding:Ü:1.1) ") == (
        "a red (lake:1.2), embedding:My_Dog.v2 and (embedding:Ü:1.1)"
    )
    assert rules("Embeddings of A", False) == "embeddings of a"


def check_a_lora_with_biases_and_a_loha(s: Setup) -> None:
    """As ComfyUI's LoraSave extracts it, and of a kind that only ComfyUI's loader knows; by hand."""
    from safetensors.torch import save_file

    key = "diffusion_model.blocks.0.attn.qkv"
    width = s.model.model.diffusion_model.config.hidden_size
    torch.manual_seed(0)
    bias, rows = torch.randn(3 * width), torch.randn(width)
    parts = [torch.randn(*shape) for shape in ((3 * width, 2), (2, width), (3 * width, 2), (2, width))]
    plain = {f"{key}.lora_up.weight": parts[0], f"{key}.lora_down.weight": parts[1], f"{key}.diff_b": bias}
    plain["transformer.transformer_blocks.1.attn1.to_k.diff_b"] = rows
    other = {f"{key}.hada_{name}": part for name, part in zip(("w1_a", "w1_b", "w2_a", "w2_b"), parts, strict=True)}
    before = s.model.model.diffusion_model.state_dict()
    for name, state in (("plain", plain), ("loha", other)):
        path = s.family.parent / f"{name}.safetensors"
        save_file({each: tensor.clone() for each, tensor in state.items()}, path)
        patched = s.part("nodes.bridge.model").apply_lora(s.model, str(path), 0.5)
        found = {each: patched.patch_weight_to_device(each, return_weight=True) for each in patched.patches}
        change = parts[0] @ parts[1] * (1 if name == "plain" else parts[2] @ parts[3])
        close(found[f"{key}.weight"], before["blocks.0.attn.qkv.weight"] + change / 2)
        if name == "plain":
            close(found[f"{key}.bias"], before["blocks.0.attn.qkv.bias"] + bias / 2)
            other_bias = before["blocks.1.attn.qkv.bias"].clone()
            other_bias[width : 2 * width] += rows / 2
            close(found["diffusion_model.blocks.1.attn.qkv.bias"], other_bias)


def check_dora_and_lokr_are_as_peft_merges_them(s: Setup) -> None:
    """An export of the trainer through ComfyUI's own loader, under its own names, and through our node."""
    import copy

    import comfy.sd
    from safetensors.torch import load_file

    lora, export = s.part("training.lora"), s.part("training.export")
    network = s.part("pixart_core.checkpoint").load_pixart(s.family / "transformer", torch.float32)
    for kind in ("lora", "dora", "lokr"):
        trained = lora.add_lora(copy.deepcopy(network), 3, 6.0, kind=kind)
        for number, each in enumerate(each for each in trained.parameters() if each.requires_grad):
            each.data += 0.1 * torch.randn(each.shape, generator=torch.Generator().manual_seed(number))
        path = s.family.parent / f"{kind}.safetensors"
        export.write_weights(trained, path, "comfyui", torch.float32, {}, "")
        wanted: dict[str, dict[int, torch.Tensor]] = {}
        for name, layer in lora._layers(trained).items():
            layer.merge()
            key, part, _ = lora._target(name)
            wanted.setdefault(key, {})[part] = layer.get_base_layer().weight.detach()
        node = s.part("nodes.bridge.model").apply_lora(s.model, str(path), 1.0)
        stock, _ = comfy.sd.load_lora_for_models(s.model, None, load_file(path), 1.0, 0)
        for patched in (node, stock):
            assert len(patched.patches) == len(wanted)
            for key in wanted:
                found = patched.patch_weight_to_device(f"diffusion_model.{key}", return_weight=True)
                merged = torch.cat([part for _, part in sorted(wanted[key].items())])
                close(found, merged.reshape(found.shape), 1e-4)


def check_the_loss_is_plotted_with_its_four_bands(s: Setup) -> None:
    """Each in its colour, and none where nothing is held out."""
    pictures = s.part("nodes.bridge.pictures")
    steps, losses = [10, 20, 30], [0.5, 0.4, None]
    held_out = [[factor, None, 0.5 * factor] for factor in (0.3, 0.1, 0.2, 0.6, 0.8)]

    def colours(*curves) -> set:
        plot = (pictures.loss_plot(steps, losses, *curves)[0] * 255).round().int().flatten(0, 1)
        return set(map(tuple, plot.tolist()))

    of_bands, others = set(pictures._BANDS), {pictures._CURVE, pictures._HELD_OUT}
    assert of_bands | others <= colours(held_out)
    assert not of_bands & colours(held_out[:1]) and others <= colours(held_out[:1])
    assert not of_bands & colours([[None] * 3] * 5) and pictures._HELD_OUT not in colours()


def check_lists_offer_what_fits(s: Setup) -> None:
    """Shards once, as the folder or the index; folders by what they are; only LoRA among the LoRA."""
    import shutil

    import folder_paths
    from safetensors.torch import load_file, save_file

    files = s.part("nodes.bridge.files")
    root = s.family.parent / "lists"
    encoders, own, loras = root / "encoders", root / "own", root / "loras"
    state = load_file(s.family / "text_encoder" / "model.safetensors")
    names = sorted(state)
    for folder in (encoders / "t5-v1_1-xxl", encoders, own / "PixArt", loras):
        folder.mkdir(parents=True, exist_ok=True)
    for part, chosen in ((1, names[:4]), (2, names[4:])):
        for folder in (encoders / "t5-v1_1-xxl", encoders):
            save_file({each: state[each] for each in chosen}, folder / f"model-0000{part}-of-00002.safetensors")
    shutil.copy(s.family / "text_encoder" / "config.json", encoders / "t5-v1_1-xxl")
    shutil.copy(s.family / "transformer" / "diffusion_pytorch_model.safetensors", own / "A_model.safetensors")
    save_file({"block1.convs.0.weight": torch.zeros(1)}, own / "A_network.safetensors")
    save_file({"x.lora_A.weight": torch.zeros(1)}, own / "another_models_lora.safetensors")
    shutil.copy(ROOT / "models/nano/lcm_lora/pytorch_lora_weights.safetensors", own / "a_lora.safetensors")
    places = {"text_encoders": encoders, files.FOLDER: own, "loras": loras}
    kept = {name: folder_paths.folder_names_and_paths[name] for name in places}
    try:
        for name, place in places.items():
            folder_paths.folder_names_and_paths[name] = ([str(place)], folder_paths.supported_pt_extensions)
        listed = {kind: [x for x in files.names(kind) if "bundled" not in x] for kind in ("text_encoder", "lora")}
        assert listed["text_encoder"] == ["model-00001-of-00002.safetensors", "t5-v1_1-xxl/"], listed
        assert listed["lora"] == ["a_lora.safetensors"], listed
        assert "A_model.safetensors" in files.names("model")
        assert "A_network.safetensors" in files.names("hed")
        assert files.locate("text_encoder", "t5-v1_1-xxl/") == str(encoders / "t5-v1_1-xxl")
    finally:
        folder_paths.folder_names_and_paths.update(kept)
