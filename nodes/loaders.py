"""Loader nodes: transformer, text encoder, autoencoder, LoRA."""

from __future__ import annotations

from comfy_api.latest import io, ui

from ..pixart_core.memory import GB, amount
from .bridge import files
from .bridge.clip import eight_bit_format, load_clip
from .bridge.guider import watch_sampling
from .bridge.model import apply_lora, load_model, model_plan
from .bridge.ui import say
from .bridge.vae import load_vae
from .inputs import CATEGORY, dtype_input, file_input, fingerprint, lora_strength_input


class PixArtDeltaModelLoader(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="PixArtDeltaModelLoader",
            display_name="PixArt-δ Model Loader",
            category=CATEGORY,
            search_aliases=[
                "checkpoint",
                "load model",
                "diffusion model",
                "pixart",
                "pixart alpha",
                "lcm",
                "turbo",
                "fast",
                "dmd",
            ],
            description="Loads a PixArt-α or PixArt-δ transformer (256, 512 or 1024 px, base or LCM) in any known "
            "layout, and shows what a picture with it needs in memory.",
            inputs=[
                file_input(
                    "model_name",
                    "model",
                    tooltip="A file in models/diffusion_models or models/checkpoints (.safetensors or the authors' "
                    '.pth), or a diffusers folder in models/pixart_delta. "bundled/…" are small models that come with '
                    "the extension.",
                ),
                dtype_input("dtype"),
            ],
            outputs=[io.Model.Output(tooltip="The transformer, for any sampler node.")],
        )

    fingerprint_inputs = fingerprint(model_name="model")

    @classmethod
    def execute(cls, model_name: str, dtype: str) -> io.NodeOutput:
        model = watch_sampling(load_model(files.locate("model", model_name), dtype))
        plan = model_plan(model)
        say(plan)
        return io.NodeOutput(model, ui=ui.PreviewText(plan))


class PixArtDeltaTextEncoderLoader(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="PixArtDeltaTextEncoderLoader",
            display_name="PixArt-δ Text Encoder Loader",
            category=CATEGORY,
            search_aliases=["t5", "t5xxl", "clip loader", "8-bit", "int8", "low vram"],
            description="Loads PixArt's text encoder (T5 v1.1 XXL for the released models), plain or in 8 bits. The "
            "CLIP works in PixArt-δ Text Encode and in the stock CLIP Text Encode.",
            inputs=[
                file_input(
                    "text_encoder_name",
                    "text_encoder",
                    tooltip="A T5 file in models/text_encoders (t5xxl_fp16.safetensors), or a text_encoder folder in "
                    "models/text_encoders or models/pixart_delta. Use the T5 that the transformer was trained with.",
                ),
                io.Combo.Input(
                    "quantization",
                    options=["none", "8-bit"],
                    tooltip="8-bit halves the memory of the text encoder (9.5 to 5 GB for T5-XXL): int8 where this "
                    "ComfyUI has it, fp8 otherwise. The weights are converted one by one while the file is read.",
                ),
            ],
            outputs=[io.Clip.Output(tooltip="The text encoder.")],
        )

    fingerprint_inputs = fingerprint(text_encoder_name="text_encoder")

    @classmethod
    def execute(cls, text_encoder_name: str, quantization: str) -> io.NodeOutput:
        clip = load_clip(files.locate("text_encoder", text_encoder_name), quantization)
        kind = f" ({eight_bit_format()})" if quantization == "8-bit" else ""
        say(f"The text encoder takes {amount(clip.patcher.model_size() / GB)}{kind}. It leaves before sampling.")
        return io.NodeOutput(clip)


class PixArtDeltaVAELoader(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="PixArtDeltaVAELoader",
            display_name="PixArt-δ VAE Loader",
            category=CATEGORY,
            search_aliases=["autoencoder", "load vae", "taesd"],
            description="Loads an autoencoder: the small kind (AutoencoderTiny) of any width, or Stable Diffusion "
            "1.x's. The latter also loads with the stock Load VAE.",
            inputs=[
                file_input(
                    "vae_name",
                    "vae",
                    tooltip="A file in models/vae, or a vae folder in models/vae or models/pixart_delta. The released "
                    "models take Stable Diffusion 1.x's autoencoder (sd-vae-ft-ema).",
                ),
            ],
            outputs=[io.Vae.Output(tooltip="The autoencoder, for VAE Decode and VAE Encode.")],
        )

    fingerprint_inputs = fingerprint(vae_name="vae")

    @classmethod
    def execute(cls, vae_name: str) -> io.NodeOutput:
        return io.NodeOutput(load_vae(files.locate("vae", vae_name)))


class PixArtDeltaLoraLoader(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="PixArtDeltaLoraLoader",
            display_name="PixArt-δ LoRA Loader",
            category=CATEGORY,
            search_aliases=["lcm-lora", "load lora", "style", "flash", "turbo"],
            description="Applies a PixArt LoRA (PEFT, diffusers or OneTrainer layout) at the alpha it was trained "
            "with. The stock loader takes a missing alpha for the rank, which is four times too strong for the "
            "official LCM-LoRA.",
            inputs=[
                io.Model.Input("model", tooltip="A MODEL from PixArt-δ Model Loader."),
                file_input(
                    "lora_name",
                    "lora",
                    tooltip="A LoRA in models/loras. Keep a PEFT folder's adapter_config.json beside its weights: it "
                    "holds alpha.",
                ),
                lora_strength_input(
                    "strength", tooltip="1 is as trained, 0 is off, negative values take the LoRA's direction away."
                ),
            ],
            outputs=[io.Model.Output(tooltip="The MODEL with the LoRA.")],
        )

    fingerprint_inputs = fingerprint(lora_name="lora")

    @classmethod
    def execute(cls, model, lora_name: str, strength: float) -> io.NodeOutput:
        return io.NodeOutput(apply_lora(model, files.locate("lora", lora_name), strength))
