"""Which files are one set of weights: every name that transformers, diffusers, PEFT, the hub and users give them."""

import json
import shutil

import pytest
import torch
from safetensors.torch import load_file, save_file

import pixart_core as pc
from pixart_core.errors import CheckpointError
from pixart_core.text import TextEncoder
from pixart_core.vae import decode, load_vae
from pixart_core.weightfolder import find_part, find_weights, snapshot, weight_sets
from tests.core.checkpoint_fixture import CONFIG, assert_same


def shards(state, folder, names, index):
    """Split a state over two files and list them."""
    folder.mkdir(parents=True, exist_ok=True)
    keys, where = sorted(state), {}
    for file, chosen in zip(names, (keys[: len(keys) // 2], keys[len(keys) // 2 :]), strict=True):
        part = {key: state[key].clone() for key in chosen}
        save_file(part, folder / file) if file.endswith(".safetensors") else torch.save(part, folder / file)
        where |= dict.fromkeys(chosen, file)
    if index:
        (folder / index).write_text(json.dumps({"metadata": {}, "weight_map": where}))


ROWS = {
    "safetensors": ("m-0000{}-of-00002.safetensors", "m.safetensors.index.json"),
    "bin": ("pytorch_model-0000{}-of-00002.bin", "pytorch_model.bin.index.json"),
    "diffusers bin": ("diffusion_pytorch_model-0000{}-of-00002.bin", "diffusion_pytorch_model.bin.index.json"),
    "variant": (
        "diffusion_pytorch_model.fp16-0000{}-of-00002.safetensors",
        "diffusion_pytorch_model.safetensors.index.fp16.json",
    ),
    "variant of early transformers": ("model-0000{}-of-00002.bf16.safetensors", "model.safetensors.index.bf16.json"),
    "no index": ("my_model-0000{}-of-00002.safetensors", None),
    "no index, bin": ("pytorch_model-0000{}-of-00002.bin", None),
    "names of its own": ("part{}.safetensors", "model.safetensors.index.json"),
}


@pytest.mark.parametrize("row,index", ROWS.values(), ids=ROWS)
def test_shards_load_as_one_from_the_folder_the_index_and_each_of_them(model, tmp_path, row, index):
    names = [row.format(number) for number in (1, 2)]
    shards(model.state_dict(), tmp_path, names, index)
    paths = [tmp_path, *([tmp_path / index] if index else []), *(tmp_path / name for name in names if "-of-" in name)]
    for path in paths:
        assert_same(pc.load_pixart(path, config=CONFIG), model)
    (tmp_path / names[1]).unlink()
    with pytest.raises(CheckpointError, match=f"missing: {names[1]}"):
        find_weights(tmp_path)


@pytest.mark.parametrize(
    "name",
    [
        "diffusion_pytorch_model.fp16.safetensors",
        "diffusion_pytorch_model.bf16.bin",
        "diffusion_pytorch_model.non_ema.safetensors",
        "model.SAFETENSORS",
        "my_own_name.ckpt",
        "my_own_name.pt",
        "weights.sft",
    ],
)
def test_a_folder_with_one_file_of_any_name(model, tmp_path, name):
    state = {key: tensor.clone() for key, tensor in model.state_dict().items()}
    pickled = name.endswith((".bin", ".ckpt", ".pt"))
    torch.save(state, tmp_path / name) if pickled else save_file(state, tmp_path / name)
    (tmp_path / "README.md").write_text("no weights")
    assert_same(pc.load_pixart(tmp_path, config=CONFIG), model)
    assert_same(pc.load_pixart(f"{tmp_path}/", config=CONFIG), model)


def test_which_of_several_sets_is_taken(tmp_path):
    for name in ("pytorch_model.bin", "model.fp16.safetensors", "model.safetensors", "optimizer.bin", "zz.safetensors"):
        (tmp_path / name).write_bytes(b"x")
    order = [each.path.name for each in weight_sets(tmp_path)]
    assert order[:3] == ["model.safetensors", "model.fp16.safetensors", "pytorch_model.bin"]
    for name in ("model.safetensors", "model.fp16.safetensors", "pytorch_model.bin"):
        assert find_weights(tmp_path).path.name == name
        (tmp_path / name).unlink()
    with pytest.raises(CheckpointError, match="several files of weights, choose one: zz.safetensors, optimizer.bin"):
        find_weights(tmp_path)


def test_an_index_of_which_nothing_was_downloaded_is_passed_over(model, tmp_path):
    shards(model.state_dict(), tmp_path, ["pytorch_model-00001-of-00002.bin", "pytorch_model-00002-of-00002.bin"], None)
    index = tmp_path / "model.safetensors.index.json"
    index.write_text(json.dumps({"weight_map": {"x": "model-00001-of-00001.safetensors"}}))
    assert_same(pc.load_pixart(tmp_path, config=CONFIG), model)
    with pytest.raises(CheckpointError, match="missing: model-00001"):
        find_weights(index)


def test_the_hubs_cache(model, tmp_path):
    repository = tmp_path / "models--someone--pixart"
    blob, made = repository / "blobs" / "abc", repository / "snapshots" / "123" / "transformer"
    blob.parent.mkdir(parents=True)
    made.mkdir(parents=True)
    saved = pc.save_pixart(model, tmp_path / "plain", layout="diffusers")
    shutil.move(saved / "diffusion_pytorch_model.safetensors", blob)
    shutil.copy(saved / "config.json", made)
    (made / "diffusion_pytorch_model.fp16.safetensors").symlink_to("../../../blobs/abc")
    (repository / "snapshots" / "older").mkdir()
    (repository / "refs").mkdir()
    (repository / "refs" / "main").write_text("123\n")
    for path in (repository, made.parent, made, made / "diffusion_pytorch_model.fp16.safetensors"):
        assert_same(pc.load_pixart(path), model)
    assert snapshot(repository) == made.parent
    blob.unlink()
    for path in (repository, made / "diffusion_pytorch_model.fp16.safetensors"):
        with pytest.raises(CheckpointError, match="fp16.safetensors is a link to a file that is not there"):
            pc.load_pixart(path)


def test_a_download_of_one_part_needs_no_model_index(model, tmp_path):
    pc.save_pixart(model, tmp_path / "transformer", layout="diffusers")
    assert_same(pc.load_pixart(tmp_path), model)


@pytest.fixture
def authors_download(nano, tmp_path):
    """What the authors' tools/download.py leaves: models under names of their own beside each other."""
    folder = tmp_path / "pretrained"
    state = load_file(nano / "text_encoder" / "model.safetensors")
    row = [f"pytorch_model-0000{number}-of-00002.bin" for number in (1, 2)]
    shards(state, folder / "t5-v1_1-xxl", row, "pytorch_model.bin.index.json")
    for file in [nano / "text_encoder" / "config.json", *(nano / "tokenizer").iterdir()]:
        shutil.copy(file, folder / "t5-v1_1-xxl")
    shutil.copytree(nano / "vae", folder / "sd-vae-ft-ema")
    return folder


def test_the_authors_folders_under_their_own_names(nano, authors_download):
    expected = TextEncoder.from_pretrained(nano, torch.float32).encode(["a red lake"])[0]
    t5 = authors_download / "t5-v1_1-xxl"
    for path in (authors_download, t5):
        assert torch.equal(TextEncoder.from_pretrained(path, torch.float32).encode(["a red lake"])[0], expected)
    latent = torch.randn(1, 4, 2, 2, generator=torch.Generator().manual_seed(0))
    for path in (authors_download, authors_download / "sd-vae-ft-ema"):
        assert torch.equal(decode(load_vae(path), latent), decode(load_vae(nano), latent))
    pipeline = pc.Pipeline.from_pretrained(authors_download, transformer=nano / "transformer")
    assert pipeline.text.folder == t5
    shutil.copytree(t5, authors_download / "t5-v1_1-small")
    with pytest.raises(CheckpointError, match="several models for text_encoder, choose one: t5-v1_1-small/, t5-v1_1-x"):
        TextEncoder.from_pretrained(authors_download)


def test_find_part_reads_configs_not_names(tmp_path):
    for name, text in (("a", '{"kind": 1}'), ("b", '\ufeff{"kind": 2}'), ("c", "{"), ("d", "[]")):
        (tmp_path / name).mkdir()
        (tmp_path / name / "config.json").write_text(text, encoding="utf-8")
    assert find_part(tmp_path, "part", lambda values: values["kind"] == 2) == tmp_path / "b"
    assert find_part(tmp_path, "part", lambda values: values["kind"] == 3) == tmp_path
    (tmp_path / "part").mkdir()
    assert find_part(tmp_path, "part", lambda values: values["kind"] == 2) == tmp_path / "part"


@pytest.mark.parametrize("variant", ["fp16", "bf16", "of_mine"])
@pytest.mark.parametrize("size", [None, "200KB"])
def test_a_pipeline_that_diffusers_saved_as_a_variant(nano, tmp_path, variant, size):
    from diffusers import AutoencoderTiny, PixArtTransformer2DModel
    from transformers import T5EncoderModel

    more = {"variant": variant} | ({"max_shard_size": size} if size else {})
    PixArtTransformer2DModel.from_pretrained(nano / "transformer").half().save_pretrained(
        tmp_path / "transformer", **more
    )
    AutoencoderTiny.from_pretrained(nano / "vae").half().save_pretrained(tmp_path / "vae", **more)
    T5EncoderModel.from_pretrained(nano / "text_encoder").half().save_pretrained(tmp_path / "text_encoder", **more)
    shutil.copytree(nano / "tokenizer", tmp_path / "tokenizer")
    one, other = pc.Pipeline.from_pretrained(tmp_path), pc.Pipeline.from_pretrained(nano)
    assert all(variant in file.name for file in tmp_path.glob("*/*.safetensors"))
    for part in (lambda pipe: pipe.transformer, lambda pipe: pipe.vae, lambda pipe: pipe.text.load()):
        found, expected = part(one).state_dict(), part(other).state_dict()
        assert found.keys() == expected.keys() - {"y_embedder.y_embedding"}
        for name, tensor in found.items():
            torch.testing.assert_close(tensor.float(), expected[name].half().float(), rtol=1e-2, atol=1e-3)


def test_an_autoencoder_from_before_diffusers_renamed_its_attention(nano_released, tmp_path):
    shutil.copytree(nano_released / "vae", tmp_path / "vae")
    file = next((tmp_path / "vae").glob("*.safetensors"))
    names = {"to_q": "query", "to_k": "key", "to_v": "value", "to_out.0": "proj_attn"}
    state = {}
    for name, tensor in load_file(file).items():
        present = next((part for part in names if f".attentions.0.{part}." in name), None)
        state[name.replace(present, names[present]) if present else name] = tensor
    assert any(".query.weight" in name for name in state)
    save_file(state, file)
    latent = torch.randn(1, 4, 2, 2, generator=torch.Generator().manual_seed(0))
    assert torch.equal(decode(load_vae(tmp_path), latent), decode(load_vae(nano_released), latent))
