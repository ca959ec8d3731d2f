"""Rows of a cache come, grow and go: each keeps its own keys and values, and the buffers stay small."""

import random

import torch

from model.cache import KVCache


def filled(lengths: list[int], seed: int) -> tuple[KVCache, list[torch.Tensor]]:
    """A cache of such rows, and their keys; values are the negated keys."""
    width, cache = max(lengths), KVCache(2)
    k_BTKE = torch.randn(len(lengths), width, 1, 2, generator=torch.Generator().manual_seed(seed))
    for layer in cache.layers:
        layer.append(k_BTKE, -k_BTKE)
    cache.set_lengths(lengths)
    return cache, [k_BTKE[row, width - length :] for row, length in enumerate(lengths)]


def test_rows_that_come_and_go_keep_their_own(monkeypatch):
    monkeypatch.setattr(KVCache, "room", 2)
    draw = random.Random(0)
    (cache, rows), most, longest = filled([3, 5], seed=0), 2, 5
    for step in range(400):
        kind = draw.random()
        if kind < 0.15 and len(rows) < 20:
            others, new = filled([draw.randint(1, 9) for _ in range(draw.randint(1, 3))], seed=step)
            cache.join(others)
            rows += new
        elif kind < 0.3 and len(rows) > 1:
            row = draw.randrange(len(rows))
            cache.drop(row)
            rows[row] = rows[-1]
            rows.pop()
        else:
            k_B1KE = torch.full((len(rows), 1, 1, 2), float(step))
            for layer in cache.layers:
                layer.append(k_B1KE, -k_B1KE)
            rows = [torch.cat([row, k_B1KE[0]]) for row in rows]
        most, longest = max(most, len(rows)), max(longest, *map(len, rows))
        for number, k_TKE in enumerate(rows):
            seen = slice(cache.starts[number], cache.end)
            assert torch.equal(cache.keys[1, number, seen], k_TKE)
            assert torch.equal(cache.values[0, number, seen], -k_TKE)
        assert cache.keys.shape[1] <= 2 * most and cache.keys.shape[2] <= 2 * longest + 2


def test_columns_of_rows_that_have_left_are_given_up():
    cache, _ = filled([30], seed=0)
    cache.join(filled([2], seed=1)[0])
    cache.drop(0)
    cache.join(filled([3, 1, 2], seed=2)[0])
    assert cache.length == 3 and cache.keys.shape[2] == 6
