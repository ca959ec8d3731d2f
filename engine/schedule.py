"""Learning rate as a pure function of the step."""

import math

from config.schema import ScheduleSection


def lr_factor(schedule: ScheduleSection, step: int) -> float:
    """Share of the peak rate that optimiser step `step` (from 0) uses.

    Warm-up rises linearly and reaches the peak at its last step. `linear` and `cosine` then fall to min_lr_ratio at
    the end of the run (SGDR without restarts, arXiv:1608.03983); `wsd` stays and falls linearly over the last
    cooldown_fraction (arXiv:2405.18392); `inverse_sqrt` is sqrt(warmup / step) (arXiv:1706.03762).
    """
    if step < schedule.warmup_steps:
        return (step + 1) / schedule.warmup_steps
    if schedule.name == "constant":
        return 1.0
    if schedule.name == "inverse_sqrt":
        return math.sqrt(max(schedule.warmup_steps, 1) / (step + 1))
    floor = schedule.min_lr_ratio
    start = schedule.warmup_steps
    if schedule.name == "wsd":
        start = max(start, round(schedule.steps * (1 - schedule.cooldown_fraction)))
    progress = min(max(step - start, 0) / max(schedule.steps - start, 1), 1.0)
    if schedule.name == "cosine":
        return floor + (1 - floor) * 0.5 * (1 + math.cos(math.pi * progress))
    return floor + (1 - floor) * (1 - progress)
