"""A small model and LoRAs for it."""

import torch

import pixart_core as pc
from pixart_core.delta import apply_lora

CONFIG = pc.PixArtConfig(
    input_size=8, hidden_size=48, depth=2, num_heads=4, caption_channels=16, model_max_length=8, interpolation_scale=1.0
)
RANK = 4
# What train_pixart_lcm_lora.py adapts, convolution included ("proj" matches pos_embed.proj).
TARGETS = [
    "to_q",
    "to_k",
    "to_v",
    "to_out.0",
    "proj_in",
    "proj_out",
    "ff.net.0.proj",
    "ff.net.2",
    "proj",
    "linear",
    "linear_1",
    "linear_2",
]

IMAGE_SIZE, ASPECT_RATIO = torch.tensor([[48.0, 64.0]] * 2), torch.tensor([[0.75]] * 2)


def random_model(seed=0):
    generator = torch.Generator().manual_seed(seed)
    model = pc.PixArt(CONFIG).eval().requires_grad_(False)
    for tensor in [*model.parameters(), *model.buffers()]:
        tensor.normal_(std=0.1, generator=generator)
    return model


def inputs():
    generator = torch.Generator().manual_seed(1)
    return {
        "latent": torch.randn(2, 4, 6, 8, generator=generator),
        "timestep": torch.tensor([999, 259]),
        "caption": torch.randn(2, 5, 16, generator=generator),
    }


def changed(model, lora, strength=1.0):
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    apply_lora(model, lora, strength)
    return {name: tensor - before[name] for name, tensor in model.state_dict().items()}


def pair(rows=48, columns=48):
    """Up (rows, rank) and down (rank, columns)."""
    generator = torch.Generator().manual_seed(0)
    return torch.randn(rows, RANK, generator=generator), torch.randn(RANK, columns, generator=generator)


def stem_state(stem, **more):
    up, down = pair()
    return {f"{stem}.lora_A.weight": down, f"{stem}.lora_B.weight": up} | more
