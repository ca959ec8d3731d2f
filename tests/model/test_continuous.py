"""Rows that join and leave a batch are continued as if each were alone."""

import pytest
import torch

from config import GPTConfig
from model import build, generate, init_weights
from model.continuous import ContinuousBatch, Row

SIZES = {"vocab_size": 61, "num_layers": 2, "hidden_size": 32, "num_heads": 4, "max_positions": 48}


def make(**settings):
    config = GPTConfig(**SIZES, **settings)
    model = build(config)
    init_weights(model, config, seed=0)
    return model.eval()


def alone(model, prompt, count, **options):
    return generate(model, torch.tensor([prompt]), max_new_tokens=count, **options).new_tokens[0]


@pytest.mark.parametrize(
    "settings", [{}, {"position": "learned"}, {"sliding_window": 5, "num_kv_heads": 2}, {"attention_softcap": 5.0}]
)
def test_rows_that_come_and_go_write_what_each_writes_alone(settings):
    model = make(**settings)
    draw = torch.Generator().manual_seed(1)
    rows = [
        Row(torch.randint(61, (length,), generator=draw).tolist(), temperature=0 if length % 2 else 0.9, top_p=0.8)
        for length in (3, 11, 1, 6, 20)
    ]
    seeds = [None if row.temperature == 0 else seed for seed, row in enumerate(rows)]
    for row, seed in zip(rows, seeds, strict=True):
        row.generator = None if seed is None else torch.Generator().manual_seed(seed)
    schedule = {0: ("join", rows[:2]), 4: ("join", rows[2:4]), 7: ("leave", rows[:1]), 9: ("join", rows[4:])}
    batch, written = ContinuousBatch(model), {id(row): [] for row in rows}
    for time in range(22):
        if batch.rows:
            batch.step()
            for row in batch.rows:
                written[id(row)].append(row.token)
        change, members = schedule.get(time, ("", []))
        if change == "join":
            batch.join(members)
            for row in members:
                written[id(row)].append(row.token)
        elif change == "leave":
            batch.leave(members)
    for row, seed in zip(rows, seeds, strict=True):
        tokens = written[id(row)]
        expected = alone(model, row.prompt, len(tokens), temperature=row.temperature, top_p=row.top_p, seed=seed)
        assert len(tokens) >= 8 and tokens == expected


def test_an_emptied_batch_starts_afresh():
    model = make()
    batch, first, second = ContinuousBatch(model), Row([1, 2, 3], 0), Row([4, 5], 0)
    batch.join([first])
    batch.leave([first])
    batch.join([second])
    batch.step()
    assert second.token == alone(model, [4, 5], 2, temperature=0)[1]
