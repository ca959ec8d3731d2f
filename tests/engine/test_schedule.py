"""Learning rates against their closed forms and against transformers' schedules."""

import math
from itertools import pairwise

import pytest
import torch
from transformers import get_scheduler

from config.schema import ScheduleSection
from engine.schedule import lr_factor

STEPS, WARMUP = 100, 10


def factors(**settings) -> list[float]:
    schedule = ScheduleSection(steps=STEPS, **{"warmup_steps": WARMUP, **settings})
    return [lr_factor(schedule, step) for step in range(STEPS)]


def transformers_factors(name: str, **settings) -> list[float]:
    optimizer = torch.optim.SGD([torch.zeros(1, requires_grad=True)], lr=1.0)
    scheduler = get_scheduler(name, optimizer, WARMUP, STEPS, scheduler_specific_kwargs=settings)
    values = []
    for _ in range(STEPS):
        values.append(scheduler.get_last_lr()[0])
        optimizer.step()
        scheduler.step()
    return values


@pytest.mark.parametrize(
    ("ours", "theirs"), [("linear", "linear"), ("cosine", "cosine"), ("constant", "constant_with_warmup")]
)
def test_after_the_warmup_the_shape_is_transformers(ours, theirs):
    assert factors(name=ours, min_lr_ratio=0.0)[WARMUP:] == pytest.approx(
        transformers_factors(theirs)[WARMUP:], abs=1e-12
    )


@pytest.mark.parametrize("name", ["constant", "linear", "cosine", "wsd", "inverse_sqrt"])
def test_warmup_rises_in_equal_steps_to_the_peak(name):
    values = factors(name=name)
    assert values[:WARMUP] == pytest.approx([(i + 1) / WARMUP for i in range(WARMUP)])
    assert max(values) == values[WARMUP - 1] == 1.0


def test_inverse_sqrt_is_the_transformers_paper():
    # step^-0.5 against warmup^-0.5, arXiv:1706.03762 equation 3, steps counted from 1
    expected = [(step + 1) ** -0.5 / WARMUP**-0.5 for step in range(WARMUP, STEPS)]
    assert factors(name="inverse_sqrt")[WARMUP:] == pytest.approx(expected)


def test_wsd_is_flat_and_then_falls_linearly_to_the_floor():
    values = factors(name="wsd", cooldown_fraction=0.4, min_lr_ratio=0.2)
    assert set(values[WARMUP:60]) == {1.0}
    falls = [a - b for a, b in pairwise(values[60:])]
    assert falls == pytest.approx([0.8 / 40] * len(falls))
    assert values[-1] == pytest.approx(0.2 + 0.8 / 40)


def test_cosine_ends_at_the_floor():
    schedule = ScheduleSection(steps=STEPS, name="cosine", min_lr_ratio=0.1)
    assert lr_factor(schedule, STEPS) == pytest.approx(0.1)
    assert lr_factor(schedule, STEPS // 2) == pytest.approx(0.1 + 0.9 * 0.5 * (1 + math.cos(math.pi / 2)))
