"""LCM nodes: our sampler, and the patch that makes the stock KSampler right."""

from __future__ import annotations

from comfy_api.latest import io

from ..pixart_core.lcm import GRIDS, MAX_STEPS
from .bridge.guider import add_lcm_sampling, run_lcm, switch_graphs
from .inputs import CATEGORY


class PixArtDeltaLCMSampler(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="PixArtDeltaLCMSampler",
            display_name="PixArt-δ LCM Sampler",
            category=CATEGORY,
            search_aliases=["ksampler", "sample", "fast", "turbo", "few steps", "4 steps", "consistency", "dmd"],
            description="Samples a distilled (LCM) PixArt model in 1 to 8 steps. Guidance is built into the model, so "
            "there is no cfg and no negative prompt. A seed gives the same picture as pixart_core's Pipeline.",
            inputs=[
                io.Model.Input(
                    "model",
                    tooltip="A distilled model from PixArt-δ Model Loader, or a base model with an LCM-LoRA. PixArt-δ "
                    "LCM Sampling is not needed.",
                ),
                io.Conditioning.Input("positive", tooltip="The encoded prompt."),
                io.Latent.Input(
                    "latent_image",
                    tooltip="Empty latent of the wished size and batch, or an encoded picture to change (with denoise "
                    "below 1).",
                ),
                io.Int.Input(
                    "seed",
                    default=0,
                    min=0,
                    max=0xFFFFFFFFFFFFFFFF,
                    control_after_generate=True,
                    tooltip="Starting noise. The same seed and settings give the same picture.",
                ),
                io.Int.Input(
                    "steps",
                    default=4,
                    min=1,
                    max=MAX_STEPS,
                    tooltip="4 is what the model was made for; 2 is faster, 8 adds detail.",
                ),
                io.Combo.Input(
                    "grid",
                    options=list(GRIDS),
                    tooltip="Which timesteps are visited. diffusers: 999, 759, 499, 259 for 4 steps; official: 999, "
                    "759, 519, 279 as the authors' first code. dmd: for one-step models (PixArt-α-DMD), with steps 1.",
                ),
                io.Float.Input(
                    "denoise",
                    default=1.0,
                    min=0.02,
                    max=1.0,
                    step=0.01,
                    tooltip="1 starts from noise; lower values keep more of the given picture.",
                ),
            ],
            outputs=[io.Latent.Output(tooltip="The sampled latent, for VAE Decode.")],
        )

    @classmethod
    def execute(
        cls, model, positive, latent_image: dict, seed: int, steps: int, grid: str, denoise: float
    ) -> io.NodeOutput:
        return io.NodeOutput(run_lcm(model, positive, latent_image, seed, steps, grid, denoise))


class PixArtDeltaLCMSampling(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="PixArtDeltaLCMSampling",
            display_name="PixArt-δ LCM Sampling",
            category=CATEGORY,
            search_aliases=["model sampling", "lcm", "ksampler", "scheduler", "turbo", "fast"],
            description="Makes the stock KSampler sample a distilled PixArt model correctly. Set it to sampler lcm, "
            "scheduler simple, cfg 1, and 4 steps; other settings are pointed out when it runs.",
            inputs=[
                io.Model.Input(
                    "model", tooltip="A distilled model from PixArt-δ Model Loader, or a base model with an LCM-LoRA."
                )
            ],
            outputs=[io.Model.Output(tooltip="The MODEL for KSampler.")],
        )

    @classmethod
    def execute(cls, model) -> io.NodeOutput:
        return io.NodeOutput(add_lcm_sampling(model))


class PixArtDeltaCudaGraphs(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="PixArtDeltaCudaGraphs",
            display_name="PixArt-δ CUDA Graphs",
            category=CATEGORY,
            search_aliases=["cuda graph", "fast", "speed", "compile", "latency", "dynamic vram"],
            description="Turns CUDA graphs off for this model, or keeps it out of ComfyUI's dynamic memory so that "
            "they can be used. Without this node they are used on NVIDIA GPUs wherever that is safe; the log says so. "
            "The pictures are the same.",
            inputs=[
                io.Model.Input(
                    "model", tooltip="From PixArt-δ Model Loader. Put LoRA loaders and other patches after this node."
                ),
                io.Boolean.Input(
                    "enabled",
                    default=True,
                    tooltip="On: the model stays whole on the GPU while it samples, and from a size's second step on "
                    "the GPU repeats what it was given before, instead of waiting for Python. Off: never, which takes "
                    "a little less memory.",
                ),
            ],
            outputs=[io.Model.Output(tooltip="The MODEL, for LoRA loaders and samplers.")],
        )

    @classmethod
    def execute(cls, model, enabled: bool) -> io.NodeOutput:
        return io.NodeOutput(switch_graphs(model, enabled))
