"""Muon: what is orthogonal, which weights it moves, and that the autoencoder's start hands colours through."""

import random

import torch
from pixart_delta.training.nano import autoencoder
from pixart_delta.training.nano.learning import muon
from pixart_delta.training.nano.worlds import WORLDS
from pixart_delta.training.step.muon import orthogonal


def test_singular_values_come_near_one_and_directions_stay():
    torch.manual_seed(0)
    for rows, columns in ((6, 40), (6, 6), (40, 6)):
        matrix = torch.randn(rows, columns)
        left, _, right = torch.linalg.svd(matrix, full_matrices=False)
        inner = left.T @ orthogonal(matrix) @ right.T
        found = inner.diagonal()
        assert 0.5 < found.min() and found.max() < 1.3
        assert (inner - torch.diag(found)).abs().max() < 1e-3


def test_hidden_weights_are_moved_by_their_rate_and_the_others_by_adam():
    torch.manual_seed(0)
    net = torch.nn.Sequential(torch.nn.Conv2d(3, 8, 3), torch.nn.Conv2d(8, 8, 3), torch.nn.Conv2d(8, 3, 3))
    optimizer = muon(net, learning_rate=1e-3, hidden_rate=0.1, outer=(net[0], net[2]))
    before = {name: value.clone() for name, value in net.state_dict().items()}
    net(torch.randn(2, 3, 9, 9)).square().sum().backward()
    optimizer.step()
    moved = {name: (value - before[name]) for name, value in net.state_dict().items()}
    sizes = torch.linalg.svdvals(moved["1.weight"].flatten(1)) / 0.1
    assert 0.5 < sizes.min() and sizes.max() < 1.3
    for name, value in moved.items():
        if name != "1.weight":  # Adam's first step is the rate in each number
            torch.testing.assert_close(value.abs(), torch.full_like(value, 1e-3), rtol=0.05, atol=1e-5)


def test_the_autoencoder_begins_with_the_colours_of_its_pictures():
    torch.manual_seed(0)
    vae, crops = autoencoder.build(8), autoencoder.Source(WORLDS[2], 256).crops(random.Random(1), 8, 64)
    with torch.no_grad():
        latent = vae.encode(crops).latents
        error = (vae.decode(latent).sample - crops).square().mean()
    colours = crops[:, :, ::8, ::8] * 2
    torch.testing.assert_close(latent[:, :3], colours)
    assert error < 0.3 * crops.var() and latent[:, 3].abs().max() < 2
