"""A pipeline folder of random weights in the nano family's layout, small enough to make in a second.

    make_nano_folder(path)       model_index.json, transformer/, text_encoder/, tokenizer/, vae/, scheduler/, base/

Everything that loads the bundled family or the released weights loads this too, so tests need no download.
"""

from __future__ import annotations

import json
from pathlib import Path

import torch

from pixart_core.checkpoint import save_controlnet, save_pixart
from pixart_core.config import PixArtConfig
from pixart_core.controlnet import ControlNetTransformer
from pixart_core.model import PixArt
from pixart_core.tokenizer import complete_tokenizer

CAPTION_CHANNELS = 64
_SENTENCES = [
    f"a {sky} sky with a {light} over {colour} mountains, a {ground} and a {thing} on the {side}"
    for sky, light in (("dawn", "sun"), ("night", "moon"), ("sunset", "sun"), ("clear blue", "cloud"))
    for colour, ground in (("red", "lake"), ("grey", "meadow"), ("purple", "desert"), ("white", "field of snow"))
    for thing, side in (("small house", "left"), ("sailing boat", "right"), ("pair of trees", "shore"))
]


def nano_config(**changes) -> PixArtConfig:
    """A two-block micro-conditioned transformer for 128 px; `changes` are fields of PixArtConfig."""
    values = {
        "input_size": 16,
        "hidden_size": 48,
        "depth": 2,
        "num_heads": 4,
        "caption_channels": CAPTION_CHANNELS,
        "interpolation_scale": 1.0,
        "micro_condition": True,
    }
    return PixArtConfig(**values | changes)


def random_pixart(config: PixArtConfig, seed: int = 0) -> PixArt:
    """A transformer in which every weight matters: the zero-initialised outputs are random too."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = PixArt(config).initialize_weights().eval()
        with torch.no_grad():
            for module in model.modules():
                if isinstance(module, torch.nn.Linear):
                    module.bias.normal_(std=0.02)
            for block in model.blocks:
                block.cross_attn.proj.weight.normal_(std=config.hidden_size**-0.5)
            model.final_layer.linear.weight.normal_(std=0.5 * config.hidden_size**-0.5)
    return model


def random_controlnet(
    base: PixArt, copy_blocks_num: int = 1, seed: int = 0, kind: type[ControlNetTransformer] = ControlNetTransformer
) -> ControlNetTransformer:
    """Copies of the base's blocks between random, non-zero linears."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        control = kind(base.config, copy_blocks_num).initialize_from(base).eval()
        with torch.no_grad():
            for name, parameter in control.named_parameters():
                if "_proj." in name:
                    parameter.normal_(std=0.1)
    return control


def make_nano_folder(
    path,
    seed: int = 0,
    hidden_size: int = 48,
    *,
    controlnet: bool = False,
    dtype: torch.dtype = torch.float16,
    vae: str = "tiny",
    **config,
) -> Path:
    """Write a diffusers-style pipeline folder with random weights.

    Args:
        path: folder to write to; made when missing.
        seed: of every weight.
        hidden_size, config: fields of `PixArtConfig` that differ from `nano_config`'s.
        controlnet: also write controlnet/ (one copied block).
        dtype: of the transformer file; the text encoder and the autoencoder are float32.
        vae: "tiny" (AutoencoderTiny, as the nano family) or "kl" (AutoencoderKL, as the released weights).

    Returns:
        The folder.
    """
    path = Path(path)
    path.mkdir(parents=True, exist_ok=True)
    model = random_pixart(nano_config(hidden_size=hidden_size, **config), seed)
    save_pixart(model, path / "transformer", layout="diffusers", dtype=dtype)
    (path / "base").mkdir(exist_ok=True)
    save_pixart(model, path / "base" / "pixart_nano_base.safetensors", layout="authors", dtype=dtype)
    if controlnet:
        (path / "controlnet").mkdir(exist_ok=True)
        control = random_controlnet(model, seed=seed)
        save_controlnet(control, path / "controlnet" / "diffusion_pytorch_model.safetensors")
    make_text_encoder(path, seed, model.config.caption_channels)
    make_vae(path / "vae", seed, vae)
    scheduler = {
        "_class_name": "LCMScheduler",
        "beta_start": 1e-4,
        "beta_end": 0.02,
        "beta_schedule": "linear",
        "num_train_timesteps": 1000,
        "original_inference_steps": 50,
        "prediction_type": "epsilon",
        "clip_sample": False,
        "set_alpha_to_one": True,
        "timestep_scaling": 10.0,
    }
    (path / "scheduler").mkdir(exist_ok=True)
    (path / "scheduler" / "scheduler_config.json").write_text(json.dumps(scheduler, indent=2))
    (path / "model_index.json").write_text(
        json.dumps(
            {
                "_class_name": "PixArtAlphaPipeline",
                "_diffusers_version": "0.30.0",
                "scheduler": ["diffusers", "LCMScheduler"],
                "text_encoder": ["transformers", "T5EncoderModel"],
                "tokenizer": ["transformers", "T5Tokenizer"],
                "transformer": ["diffusers", "PixArtTransformer2DModel"],
                "vae": ["diffusers", "AutoencoderKL" if vae == "kl" else "AutoencoderTiny"],
            },
            indent=2,
        )
    )
    return path


def make_text_encoder(path: Path, seed: int = 0, width: int = CAPTION_CHANNELS) -> None:
    """Write text_encoder/ (two layers, gated GELU) and tokenizer/ (Unigram trained on a few sentences)."""
    from transformers import T5Config, T5EncoderModel

    tokenizer = make_tokenizer(path / "tokenizer")
    config = T5Config(
        vocab_size=len(tokenizer),
        d_model=width,
        d_kv=16,
        d_ff=2 * width,
        num_layers=2,
        num_heads=4,
        feed_forward_proj="gated-gelu",
        is_encoder_decoder=False,
        use_cache=False,
        tie_word_embeddings=False,
        pad_token_id=0,
        eos_token_id=1,
        decoder_start_token_id=0,
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        T5EncoderModel(config).eval().save_pretrained(path / "text_encoder")


def make_tokenizer(path: Path):
    """Write spiece.model and what belongs beside it; returns the loaded tokenizer (pad 0, eos 1, unk 2)."""
    import sentencepiece

    path.mkdir(parents=True, exist_ok=True)
    with (path / "spiece.model").open("wb") as file:
        sentencepiece.SentencePieceTrainer.train(
            sentence_iterator=iter(_SENTENCES),
            model_writer=file,
            model_type="unigram",
            vocab_size=120,
            pad_id=0,
            eos_id=1,
            unk_id=2,
            bos_id=-1,
            hard_vocab_limit=False,
            minloglevel=2,
        )
    return complete_tokenizer(path)


def make_vae(path: Path, seed: int = 0, kind: str = "tiny") -> None:
    """Write an f8 autoencoder with 4 latent channels: AutoencoderTiny (scale 1) or AutoencoderKL (scale 0.18215)."""
    from diffusers import AutoencoderKL, AutoencoderTiny

    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        if kind == "kl":
            names = {"down_block_types": ("DownEncoderBlock2D",) * 4, "up_block_types": ("UpDecoderBlock2D",) * 4}
            vae = AutoencoderKL(block_out_channels=(8,) * 4, norm_num_groups=4, layers_per_block=1, **names)
        else:
            vae = AutoencoderTiny(
                encoder_block_out_channels=(8,) * 4,
                decoder_block_out_channels=(8,) * 4,
                num_encoder_blocks=(1,) * 4,
                num_decoder_blocks=(1,) * 4,
                scaling_factor=1.0,
            )
        vae.eval().save_pretrained(path)
    config = json.loads((path / "config.json").read_text())
    if kind == "tiny":
        del config["block_out_channels"]  # derived: diffusers writes it, and warns when it reads it
    (path / "config.json").write_text(json.dumps(config, indent=2))
