"""Random numbers of a step: the same whatever the number of processes, different for every place."""

import torch
from pixart_delta.training.data.draws import Draws


def numbers(draws):
    return draws.normal((4, 3, 2)), draws.integers(1000), draws.uniform()


def test_processes_share_the_draws_of_one():
    whole = numbers(Draws(43, 7, 1, 6, slice(None)))
    for rank in (0, 1):
        part = numbers(Draws(43, 7, 1, 6, slice(rank, None, 2)))
        assert all(torch.equal(mine, all_of_them[rank::2]) for mine, all_of_them in zip(part, whole, strict=True))


def test_every_seed_step_micro_batch_and_row_differs():
    places = [(1, 0, 0), (0, 1, 0), (0, 0, 1), (0, 0, 0)]
    rows = torch.cat([Draws(*place, 4, slice(None)).normal((50,)) for place in places])
    distances = torch.cdist(rows, rows) + 100 * torch.eye(len(rows))
    assert distances.min() > 1


def test_shapes_types_and_ranges():
    noise, index, share = numbers(Draws(0, 0, 0, 500, slice(None)))
    assert noise.shape == (500, 4, 3, 2)
    assert abs(noise.mean()) < 0.05
    assert abs(noise.std() - 1) < 0.05
    assert index.shape == (500,)
    assert index.dtype == torch.int64
    assert 0 <= index.min() < 50
    assert 950 < index.max() < 1000
    assert share.shape == (500,)
    assert 0 <= share.min() < 0.05
    assert 0.95 < share.max() < 1
