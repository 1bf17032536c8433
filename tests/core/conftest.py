"""Random pipeline folders and models, made once. Tests that change one work on a copy."""

import pytest

import pixart_core as pc
from pixart_core import convert
from tests.core.checkpoint_fixture import CONFIG, randomized
from tests.fixtures_nano import make_nano_folder


@pytest.fixture(scope="session")
def nano(tmp_path_factory):
    """The nano family's layout: 128 px, micro-conditioned, AutoencoderTiny, with a ControlNet-Transformer."""
    return make_nano_folder(tmp_path_factory.mktemp("nano"), controlnet=True)


@pytest.fixture(scope="session")
def nano_released(tmp_path_factory):
    """What the released 1024-MS weights look like, but small: sample size 128, AutoencoderKL, float32."""
    import torch

    return make_nano_folder(
        tmp_path_factory.mktemp("released"), input_size=128, interpolation_scale=2.0, vae="kl", dtype=torch.float32
    )


@pytest.fixture(scope="module")
def pipe(nano):
    import torch

    return pc.Pipeline.from_pretrained(nano, dtype=torch.float32, device="cpu")


@pytest.fixture(scope="module")
def model():
    model = randomized(pc.PixArt(CONFIG))
    model.pos_embed.copy_(convert.position_buffer(CONFIG))
    return model


@pytest.fixture(scope="module")
def control():
    return randomized(pc.ControlNetTransformer(CONFIG, 2), seed=1)
