"""Random pipeline folders, made once a session. Tests that change one work on a copy."""

import pytest

from tests.fixtures_nano import make_nano_folder


@pytest.fixture(scope="session")
def nano(tmp_path_factory):
    """The nano family's layout: 128 px, micro-conditioned, AutoencoderTiny, with a ControlNet-Transformer."""
    return make_nano_folder(tmp_path_factory.mktemp("nano"), controlnet=True)


@pytest.fixture(scope="session")
def nano_released(tmp_path_factory):
    """What the released 1024-MS weights look like, but small: sample size 128, AutoencoderKL, float32."""
    import torch

    return make_nano_folder(tmp_path_factory.mktemp("released"), input_size=128, interpolation_scale=2.0, vae="kl",
                            dtype=torch.float32)
