"""Training of adapters on real DeepSpeed, run by tests in one or two fresh processes."""

from pathlib import Path
from typing import Any

from config.derive import derive
from config.device import cpu_info
from config.ds_json import deepspeed_json
from config.zero_memory import States
from engine.build import build_engine
from engine.checkpoint import RunState, load, save
from engine.dist import connect
from engine.memory import model_states
from engine.state import engine_facts, fragment_bytes
from tests.tiny import tiny_config
from tests.workers.steps import run_steps, tensor_bytes

Curve = list[tuple[float, float]]
Bytes = dict[str, tuple[int, int]]


def train_and_resume(folder: str, cases: list[dict[str, Any]], steps: int) -> list[tuple[Curve, Curve, Bytes]]:
    """Each case's curve of `steps` steps, and of the second half by a fresh engine from the checkpoint in the middle; the
    last weights of both are under `folder`/case, as one and again. And what the states take in the middle."""
    world, curves = connect(60), []
    for number, case in enumerate(cases):
        config = tiny_config(**case)
        place = Path(folder) / str(number)

        def keep(name: str, engine: Any, step: int, place: Path = place) -> Path:
            return save(place / name, engine.deepspeed, RunState(step=step), {}, world, keep_last=1)

        engine, _ = build_engine(config, world)
        curve = run_steps(engine, config, 0, steps // 2)
        middle, sizes = keep("middle", engine, steps // 2), state_bytes(engine, config)
        if config.engine.precision == "fp32":
            assert fragment_bytes(engine.deepspeed, engine_facts(engine.deepspeed)) == tensor_bytes(middle)
        curve += run_steps(engine, config, steps // 2, steps)
        keep("one", engine, steps)
        again, _ = build_engine(config, world)
        load(middle, again.deepspeed, world)
        rest = run_steps(again, config, steps // 2, steps)
        keep("again", again, steps)
        curves.append((curve, rest, sizes))
    return curves


def state_bytes(engine: Any, config: Any) -> Bytes:
    """Of weights and optimiser, as planned and as they are."""
    derived = derive(config, engine.world.size)
    planned = States(config, derived, deepspeed_json(config, derived, config.engine.precision, cpu_info()))
    found = {name: sum(part.values()) for name, part in model_states(engine).items()}
    return {
        "weights": (planned.weights(), found["weights"]),
        "optimiser": (planned.optimizer(), found["optimiser"]),
    }


def resume_elsewhere(folder: str, cases: list[tuple[int, dict[str, Any]]], steps: int) -> list[Curve]:
    """The second halves from the checkpoints of other ranks and stages."""
    world, curves = connect(60), []
    for number, case in cases:
        config = tiny_config(**case)
        engine, _ = build_engine(config, world)
        load(Path(folder) / str(number) / "middle" / f"step_{steps // 2:08d}", engine.deepspeed, world)
        curves.append(run_steps(engine, config, steps // 2, steps))
    return curves
