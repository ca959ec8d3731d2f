"""A step that is looked at, beside what plain hooks and gathered weights say about it. Run in fresh processes."""

from typing import Any

import torch

from engine.build import build_engine
from engine.dist import connect
from engine.engine import Engine
from engine.self_check import gather_weights
from engine.statistics import Statistics
from tests.tiny import rank_batches, tiny_config

MODULE = "blocks.1.feed_forward.down_proj"


def compare(engine_section: dict[str, Any]) -> dict[str, Any]:
    world = connect(60)
    engine, _ = build_engine(tiny_config(engine=engine_section), world)
    step = lambda index: rank_batches(index, 2, world.rank, world.size)  # noqa: E731
    engine.step(0, step(0))
    before, statistics, seen = gather_weights(engine), Statistics(), {"output": [], "gradient": []}
    hook = engine.deepspeed.module.get_submodule(MODULE).register_forward_hook(_record(seen))
    with statistics.collected(engine):
        report = engine.step(1, step(1))
    hook.remove()
    after = gather_weights(engine)
    return {
        "grad_norm": report.grad_norm,
        "truth": {kind: _numbers(torch.cat(tensors)) for kind, tensors in seen.items()},
        "modules": {name: {k: t.moments.tolist() for k, t in of.items()} for name, of in statistics.modules.items()},
        "parameters": statistics.parameters,
        "norms": {name: float(before[name].norm()) for name in after},
        "updates": {name: float((after[name] - before[name]).norm()) for name in after},
    }


def _record(seen: dict[str, list[torch.Tensor]]) -> Any:
    def hook(module: Any, inputs: Any, output: torch.Tensor) -> None:
        if torch._C._current_graph_task_id() == -1:
            seen["output"].append(output.detach().flatten())
            output.register_hook(lambda gradient: seen["gradient"].append(gradient.flatten()))

    return hook


def _numbers(values: torch.Tensor) -> list[float]:
    """Count, mean, sum of squared deviations, largest magnitude, zeros, not finite."""
    squares = float(values.double().var(correction=0)) * len(values)
    return [len(values), float(values.double().mean()), squares, float(values.abs().max()), int((values == 0).sum()), 0]


def cost_when_off() -> float:
    """Microseconds that the inspector adds to a step at which it does not look."""
    import time
    from pathlib import Path

    from engine.checkpoint import RunState
    from engine.inspection import Inspector

    world = connect(60)
    engine: Engine = build_engine(tiny_config(), world)[0]
    inspector, state = Inspector(engine, None, Path("nowhere"), print), RunState()  # type: ignore[arg-type]
    began = time.perf_counter()
    for _ in range(10_000):
        with inspector.step(state):
            pass
    return (time.perf_counter() - began) * 100
