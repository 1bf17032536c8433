"""Small random models and files for the tests of checkpoints."""

import json
import os
import struct
from pathlib import Path

import torch

import pixart_core as pc

ROOT = Path(__file__).parents[2]
CONFIG = pc.PixArtConfig(
    input_size=8, hidden_size=48, depth=3, num_heads=4, caption_channels=16, model_max_length=8, interpolation_scale=1.0
)
OFFICIAL = json.loads((ROOT / "tests" / "goldens" / "official_checkpoint_keys.json").read_text())


def randomized(module, seed=0):
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for tensor in [*module.parameters(), *module.buffers()]:
            tensor.normal_(std=0.1, generator=generator)
    return module.eval()


def assert_same(module, expected, without=()):
    found, state = module.state_dict(), expected.state_dict()
    assert found.keys() == state.keys() - set(without)
    for name, tensor in found.items():
        assert torch.equal(tensor, state[name]), name


def sparse_file(path, shapes, dtype="F32", size=4):
    """A safetensors file of zeros that takes no room on disk: only its header is written."""
    header, offset = {}, 0
    for name, shape in shapes.items():
        end = offset + torch.Size(shape).numel() * size
        header[name] = {"dtype": dtype, "shape": list(shape), "data_offsets": [offset, end]}
        offset = end
    text = json.dumps(header).encode()
    path.write_bytes(struct.pack("<Q", len(text)) + text)
    os.truncate(path, 8 + len(text) + offset)
    return path
