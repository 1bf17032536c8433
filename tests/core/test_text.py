"""Prompts: the authors' preprocessing, the encoder against transformers, quantised loading, the cache, bad folders."""

import importlib.util
import json
import shutil
import warnings

import pytest
import torch
from safetensors.torch import load_file, save_file

from pixart_core import t5
from pixart_core import text as text_module
from pixart_core.checkpoint import CheckpointError
from pixart_core.text import EmbeddingCache, TextEncoder, normalize_prompt
from tests.fixtures_nano import make_text_encoder

PROMPTS = ["A red House on the Lake ", "", "moon", "a sailing boat and a pair of trees on the shore " * 3]


def encoder(folder, **kwargs):
    return TextEncoder.from_pretrained(folder, **{"dtype": torch.float32, **kwargs})


@pytest.fixture
def copy(nano, tmp_path):
    """A text encoder folder of this test's own."""
    for name in ("text_encoder", "tokenizer"):
        shutil.copytree(nano / name, tmp_path / name)
    return tmp_path


def reference(folder, prompts, max_length=120, **kwargs):
    from transformers import AutoTokenizer, T5EncoderModel

    tokenizer = AutoTokenizer.from_pretrained(folder / "tokenizer")
    model = T5EncoderModel.from_pretrained(folder / "text_encoder", **kwargs).eval()
    inputs = tokenizer(
        [p.lower().strip() for p in prompts],
        padding="max_length",
        max_length=max_length,
        truncation=True,
        return_tensors="pt",
    )
    with torch.no_grad():
        hidden = model(**inputs).last_hidden_state
    return hidden * inputs.attention_mask[..., None], inputs.attention_mask


def test_prompts_are_lower_case():
    assert normalize_prompt("  A Red HOUSE\n") == "a red house"
    assert normalize_prompt("") == ""
    with pytest.raises(TypeError, match="a prompt is a string, got int"):
        normalize_prompt(3)


def test_clean_caption_is_the_authors():
    from diffusers import PixArtAlphaPipeline

    pipeline = PixArtAlphaPipeline.__new__(PixArtAlphaPipeline)
    dirty = (
        "A <b>Photo</b> of @someone at https://example.com/x.png #12345 &amp; ***CATS*** 1024x768 «quoted» IMG_1234.jpg"
    )
    cleaned = normalize_prompt(dirty, clean_caption=True)
    assert cleaned == pipeline._text_preprocessing(dirty, clean_caption=True)[0]
    assert "example" not in cleaned
    assert "<b>" not in cleaned
    assert "photo" in cleaned


def test_clean_caption_without_its_packages(monkeypatch):
    find = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None if name == "ftfy" else find(name))
    with pytest.raises(ImportError, match="clean_caption needs ftfy: pip install ftfy"):
        normalize_prompt("x", clean_caption=True)


def test_embeddings_match_transformers(nano):
    caption, mask = encoder(nano).encode(PROMPTS)
    expected, expected_mask = reference(nano, PROMPTS)
    assert torch.equal(mask, expected_mask) and mask.sum(1).tolist()[1] == 1
    torch.testing.assert_close(caption, expected, rtol=1e-5, atol=1e-5)


def test_a_prompt_in_a_mixed_batch_is_as_it_is_alone(nano):
    text = encoder(nano)
    together, mask = text.encode(PROMPTS + PROMPTS[:1])
    for index, prompt in enumerate(PROMPTS + PROMPTS[:1]):
        alone, alone_mask = text.encode(prompt)
        assert torch.equal(mask[index], alone_mask[0])
        torch.testing.assert_close(together[index], alone[0], rtol=1e-5, atol=1e-5)


def test_a_long_prompt_is_cut_with_a_warning(nano, caplog):
    prompt = "mountains " * 500 + "zenith"
    caption, mask = encoder(nano).encode(prompt)
    assert caption.shape == (1, 120, 64) and mask.sum() == 120
    expected, _ = reference(nano, [prompt])
    torch.testing.assert_close(caption, expected, rtol=1e-5, atol=1e-5)
    assert "PixArt reads 120; this was cut off" in caplog.text and "enith'" in caplog.text


@pytest.mark.parametrize(("quantization", "error", "kind"), [("int8", 0.05, "Int8Params"), ("int4", 0.3, "Params4bit")])
def test_quantised_weights_are_those_of_transformers(nano, quantization, error, kind):
    import transformers
    from packaging.version import Version
    from transformers import BitsAndBytesConfig, T5EncoderModel

    text = encoder(nano, quantization=quantization)
    caption, _ = text.encode(PROMPTS)
    exact, _ = reference(nano, PROMPTS)
    assert 0 < (caption - exact).norm() / exact.norm() < error
    config = (
        BitsAndBytesConfig(load_in_8bit=True)
        if quantization == "int8"
        else BitsAndBytesConfig(load_in_4bit=True, bnb_4bit_quant_type="nf4", bnb_4bit_compute_dtype=torch.float32)
    )
    # Renamed in 4.56; a version that does not know the new name hands it on to the model.
    renamed = Version(transformers.__version__) >= Version("4.56")
    options = {
        "quantization_config": config,
        "device_map": {"": "cpu"},
        "dtype" if renamed else "torch_dtype": torch.float32,
    }
    try:
        same, _ = reference(nano, PROMPTS, **options)
    except RuntimeError as error:
        if "None of the available devices" not in str(error):
            raise
        pytest.skip("this version of transformers lets bitsandbytes run on a GPU only; ours runs it on a CPU")
    # LLM.int8 rounds activations, too: where two CPUs' last bits differ, a value goes to the next of the 255 levels,
    # and its row with it. So almost all values are alike, and the rest differ by less than the rounding itself costs.
    differ = (caption - same).abs() > 1e-4 + 1e-4 * same.abs()
    assert differ.float().mean() < 0.02 and (caption - same).norm() / exact.norm() < error / 10
    theirs = T5EncoderModel.from_pretrained(nano / "text_encoder", **options)
    weights = dict(theirs.named_parameters())
    # As read: bitsandbytes lays 4 bits out anew in the first product on a CPU with AVX-512.
    for name, weight in encoder(nano, quantization=quantization).load().named_parameters():
        if type(weight).__name__ == kind:
            assert torch.equal(weight.data, weights[name].data), name
    kinds = {name.split(".")[-2]: type(weight).__name__ for name, weight in text.load().named_parameters()}
    assert kinds["q"] == kinds["wi_1"] == kind and kinds["wo"] == kinds["shared"] == "Parameter"


@pytest.mark.parametrize(("quantization", "error"), [("none", 0.01), ("int8", 0.05), ("int4", 0.3)])
def test_half_precision_saves_memory_on_a_cpu_that_multiplies_in_float32(nano, monkeypatch, quantization, error):
    for module in (text_module, t5):
        monkeypatch.setattr(module, "preferred_dtype", lambda _: torch.float32)
    products = []
    linear = torch.nn.functional.linear
    monkeypatch.setattr(
        torch.nn.functional,
        "linear",
        lambda x, weight, bias=None: products.append(weight.dtype) or linear(x, weight, bias),
    )
    text = encoder(nano, dtype=torch.bfloat16 if quantization == "none" else None, quantization=quantization)
    caption, _ = text.encode(PROMPTS)
    exact, _ = reference(nano, PROMPTS)
    assert 0 < (caption - exact).norm() / exact.norm() < error
    kept = {weight.dtype for weight in text.load().parameters() if weight.is_floating_point()}
    assert kept == {torch.bfloat16} and set(products) == {torch.float32}


def test_8_bits_say_nothing_about_their_insides(nano, caplog):
    """bitsandbytes before 0.50 warns, later ones log, that LLM.int8 casts what it multiplies."""
    with warnings.catch_warnings(record=True) as warned:
        warnings.simplefilter("always")
        encoder(nano, dtype=torch.bfloat16, quantization="int8").encode(PROMPTS)
    assert "MatMul8bitLt" not in caplog.text + "".join(str(warning.message) for warning in warned)


def test_sharded_and_pickled_and_whole_t5_weights(nano, copy):
    expected, _ = encoder(nano).encode(PROMPTS)
    folder = copy / "text_encoder"
    state = load_file(folder / "model.safetensors")
    (folder / "model.safetensors").unlink()
    torch.save(
        {**state, "decoder.block.0.x": torch.zeros(1), "lm_head.weight": torch.zeros(2)}, folder / "pytorch_model.bin"
    )
    assert torch.equal(encoder(copy).encode(PROMPTS)[0], expected)
    names = sorted(state)
    for part, chosen in enumerate((names[:9], names[9:])):
        save_file({name: state[name] for name in chosen}, folder / f"part{part}.safetensors")
    weight_map = {name: f"part{int(index >= 9)}.safetensors" for index, name in enumerate(names)}
    (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": weight_map}))
    assert torch.equal(encoder(copy).encode(PROMPTS)[0], expected)
    (folder / "part1.safetensors").unlink()
    with pytest.raises(CheckpointError, match=r"part1\.safetensors"):
        encoder(copy)


def test_weights_leave_memory_and_come_back(nano):
    text = encoder(nano)
    assert not text.loaded
    before, _ = text.encode("a house")
    assert text.loaded
    text.unload()
    assert not text.loaded
    assert torch.equal(text.encode("a house")[0], before)


def test_cache_hit_needs_no_weights(nano, tmp_path):
    first = encoder(nano, cache=tmp_path)
    expected, mask = first.encode(PROMPTS)
    assert len(list(tmp_path.glob("*.safetensors"))) == len(PROMPTS)
    second = encoder(nano, cache=EmbeddingCache(tmp_path))
    caption, same_mask = second.encode([prompt.upper() for prompt in PROMPTS])
    assert not second.loaded
    assert torch.equal(caption, expected)
    assert torch.equal(mask, same_mask)
    second.encode(PROMPTS[:1] + ["another"])
    assert second.loaded and len(list(tmp_path.glob("*.safetensors"))) == len(PROMPTS) + 1
    assert second.cache.clear() == len(PROMPTS) + 1 and not list(tmp_path.iterdir())


def test_cache_tells_encoders_and_lengths_apart(nano, copy, tmp_path):
    cache = tmp_path / "cache"
    encoder(nano, cache=cache).encode("a house")
    make_text_encoder(copy, seed=1)  # same names and shapes, other weights
    others = [
        encoder(copy, cache=cache),
        encoder(nano, cache=cache, dtype=torch.bfloat16),
        encoder(nano, cache=cache, quantization="int8"),
    ]
    for count, other in enumerate(others, start=2):
        other.encode("a house")
        assert other.loaded and len(list(cache.iterdir())) == count
    shorter = encoder(nano, cache=cache)
    assert shorter.encode("a house", max_length=5)[0].shape == (1, 5, 64) and shorter.loaded


def test_a_damaged_cache_entry_is_replaced(nano, tmp_path, caplog):
    expected, _ = encoder(nano, cache=tmp_path).encode("a house")
    (entry,) = tmp_path.iterdir()
    entry.write_bytes(entry.read_bytes()[:50])
    assert torch.equal(encoder(nano, cache=tmp_path).encode("a house")[0], expected)
    assert "removing the damaged cache entry" in caplog.text
    assert torch.equal(EmbeddingCache(tmp_path).get(entry.stem), expected[0, : len(load_file(entry)["caption"])])


def test_weights_must_fit_the_config(copy):
    file = copy / "text_encoder" / "model.safetensors"
    state = load_file(file)
    name = "encoder.block.1.layer.1.DenseReluDense.wo.weight"
    save_file({k: v for k, v in state.items() if k != name}, file)
    with pytest.raises(CheckpointError, match=rf"missing are {name}"):
        encoder(copy).encode("x")
    save_file({**state, name: torch.zeros(3, 3)}, file)
    with pytest.raises(CheckpointError, match=rf"unknown or of another shape are {name}"):
        encoder(copy).encode("x")


def test_damaged_weights_are_named(copy):
    file = copy / "text_encoder" / "model.safetensors"
    state = load_file(file)
    state["encoder.final_layer_norm.weight"][3] = float("nan")
    save_file(state, file)
    with pytest.raises(ValueError, match="text_encoder returned NaN or infinite values: its weights are damaged"):
        encoder(copy).encode("x")
    file.write_bytes(file.read_bytes()[:1000])
    with pytest.raises(CheckpointError, match=r"model\.safetensors .* cut short or damaged"):
        encoder(copy)


def test_folders_that_are_no_text_encoder(nano, copy):
    with pytest.raises(FileNotFoundError, match="does not exist"):
        encoder(nano / "missing")
    with pytest.raises(ValueError, match="is a file: give the folder"):
        encoder(nano / "text_encoder" / "model.safetensors")
    with pytest.raises(ValueError, match="holds a PixArtTransformer2DModel model; PixArt reads T5"):
        shutil.copytree(nano / "transformer", copy / "text_encoder", dirs_exist_ok=True)
        encoder(copy)
    shutil.rmtree(copy / "tokenizer")
    with pytest.raises(FileNotFoundError, match="no tokenizer for the text encoder"):
        encoder(copy)


def test_a_tokenizer_inside_the_encoder_folder(nano, copy):
    shutil.move(copy / "tokenizer" / "tokenizer.json", copy / "text_encoder")
    shutil.move(copy / "tokenizer" / "tokenizer_config.json", copy / "text_encoder")
    text = encoder(copy / "text_encoder")
    assert text.tokenizer_folder == copy / "text_encoder"
    assert torch.equal(text.encode("a house")[0], encoder(nano).encode("a house")[0])


def test_quantization_names_and_needs(nano, monkeypatch):
    with pytest.raises(ValueError, match="choose one of none, int8, int4"):
        encoder(nano, quantization="fp8")
    with pytest.raises(ValueError, match="bitsandbytes does not run on mps"):
        encoder(nano, quantization="int8", device="mps")
    find = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None if name == "bitsandbytes" else find(name))
    with pytest.raises(ImportError, match="needs bitsandbytes: pip install bitsandbytes"):
        encoder(nano, quantization="int8")
    with pytest.raises(ValueError, match="at least one prompt"):
        encoder(nano).encode([])


@pytest.mark.parametrize(
    "changes",
    [
        *({"num_layers": value} for value in (10**9, 0, "2", None, 2.0)),
        *({name: "8"} for name in ("d_model", "d_kv", "d_ff", "num_heads", "vocab_size")),
        *({"d_kv": value} for value in (10**9, -1, [16])),
        *({"feed_forward_proj": value} for value in ("gated-magic", "a-b-c", 3)),
        *({"layer_norm_epsilon": value} for value in (float("nan"), -1, "1e-6")),
        *({"relative_attention_num_buckets": value} for value in (0, 256, True)),
        {"pad_token_id": [0]},
    ],
    ids=str,
)
def test_what_a_config_claims_is_checked_before_a_layer_is_built(copy, changes):
    file = copy / "text_encoder" / "config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | changes))
    with pytest.raises(CheckpointError, match="text_encoder"):
        encoder(copy).encode("a house")


@pytest.mark.parametrize("text", ["[" * 100_000, "[]", "null", "", "\x00", '"t5"', "{", "1" * 5000])
def test_a_config_that_is_no_description(copy, text):
    (copy / "text_encoder" / "config.json").write_text(text)
    with pytest.raises(CheckpointError, match=r"config\.json"):
        encoder(copy)


def test_labels_and_the_like_are_not_built(copy):
    file = copy / "text_encoder" / "config.json"
    more = {"num_labels": 10**9, "quantization_config": {"x": 1}, "torch_dtype": "float99", "pruned_heads": {"0": [0]}}
    file.write_text(json.dumps(json.loads(file.read_text()) | more))
    assert encoder(copy).encode("a house")[0].isfinite().all()


def test_quantised_weights_are_no_numbers(copy):
    file = copy / "text_encoder" / "model.safetensors"
    state = load_file(file)
    name = "encoder.block.0.layer.0.SelfAttention.q.weight"
    save_file(state | {name: state[name].to(torch.int8)}, file)
    with pytest.raises(CheckpointError, match=rf"quantised to torch\.int8 \({name}\)"):
        encoder(copy).load()
