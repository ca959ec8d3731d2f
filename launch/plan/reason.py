"""Why the recommended option is recommended, and what would help if nothing fits, in words."""

from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import get_args

from config import Choice, RunConfig
from config.hardware import accelerators
from config.parallel import ranks_per_row, setting
from config.plan import gigabytes
from config.transformer_schema import Recompute
from launch.plan.choices import TIE, Choices, explore
from launch.plan.option import MICRO_BATCH, RECOMPUTE, Option, Room, with_settings

MOST_GPUS = 4096
"""Where the search for more GPUs ends."""


def recommend(choices: Choices) -> Choice[Option] | None:
    """The best option and its reason; None if nothing fits."""
    best = choices.best()
    return Choice(best, "; ".join(_reasons(choices, best))) if best else None


def _reasons(choices: Choices, best: Option) -> Iterator[str]:
    """How it compares with the fastest, with what is simpler, and with what saves more memory."""
    fastest = choices.fitting[0]
    gain = best.seconds / fastest.seconds
    if gain < 1.005:
        yield "the fastest that fits"
    elif gain <= TIE:
        yield f"the simplest within {TIE - 1:.0%} of the fastest, which is {in_words(fastest)}"
    else:
        yield f"the fastest without offload, which might save {1 - 1 / gain:.0%} of the time with a fast host"
    if best.offloads:
        yield from _rival(choices, best, "without offload it", lambda o: not o.offloads)
    if ranks_per_row(best.config.engine) > 1:
        name = setting(best.config.engine).removeprefix("engine.").replace("_", " ")
        yield from _rival(choices, best, f"{name} 1", lambda o: ranks_per_row(o.config.engine) == 1)
    if best.stage > 0:
        yield from _rival(choices, best, f"ZeRO {best.stage - 1}", lambda o: o.stage == best.stage - 1)
    levels = get_args(Recompute)
    level = levels.index(best.config.engine.activation_checkpointing)
    if level:
        name, less = f"activation checkpointing {levels[level - 1]}", levels[:level]
        yield from _rival(choices, best, name, lambda o: o.config.engine.activation_checkpointing in less)
    if best.stage < 3 and choices.room.cluster.gpus > 1:
        yield from _rival(choices, best, "ZeRO 3", lambda o: o.stage == 3)


def _rival(choices: Choices, best: Option, name: str, belongs: Callable[[Option], bool]) -> Iterator[str]:
    """How much slower the fastest of some options is, or by how much the smallest of them does not fit."""
    same = [option for option in choices.fitting if belongs(option) and option.offloads <= best.offloads]
    larger = [option for option in choices.too_large if belongs(option) and option.offloads <= best.offloads]
    if same:
        yield f"{name}{_gathers(same[0])} {_slower(same[0], best)}"
    elif larger:
        yield f"{name} needs {gigabytes(int(larger[0].excess(choices.room)))} more than there is"


def _gathers(option: Option) -> str:
    """What ZeRO 3 sends for each micro-batch."""
    assert option.step is not None
    size = sum(part.bytes for name, part in option.step.communication.items() if name.startswith("weights"))
    return f", which gathers {gigabytes(int(size / option.derived.accumulation_steps))} a micro-batch," if size else ""


def _slower(option: Option, best: Option) -> str:
    ratio = option.seconds / best.seconds
    if abs(ratio - 1) < 0.005:
        return "is as fast"
    if ratio < 1:
        return f"is {1 - ratio:.0%} faster"
    return f"is {ratio - 1:.0%} slower" if ratio < 2 else f"takes {ratio:.1f} times as long"


def nothing_fits(choices: Choices, kept: frozenset[str]) -> str:
    """By how much, what comes closest, and each change that would help."""
    room, closest = choices.room, choices.too_large[0]
    cluster = room.cluster
    on_host = closest.device_bytes <= room.device_bytes
    needed, there = (closest.host_bytes, room.host_bytes) if on_host else (closest.device_bytes, room.device_bytes)
    lines = [
        f"{choices.recipe.run.name} does not fit {cluster.gpus} × {cluster.accelerator.name}: the closest, "
        f"{in_words(closest)}, needs {gigabytes(needed)} of {'host ' if on_host else ''}memory per rank, "
        f"{gigabytes(int(needed - there))} more than the {gigabytes(int(there))} there are. It would fit with"
    ]
    lines += [f"  {change}" for change in _changes_that_help(choices.recipe, room, kept)]
    return "\n".join(lines if len(lines) > 1 else [lines[0] + " none of: more GPUs, larger GPUs, more host memory"])


def _changes_that_help(config: RunConfig, room: Room, kept: frozenset[str]) -> Iterator[str]:
    for name in sorted(kept):
        if _some_fit(config, room, kept - {name}):
            yield f"another {name} than the given one"
    larger = _smallest_cluster(config, room, kept)
    if larger:
        yield f"--gpus {larger}, the smallest number that divides the batch"
    cluster = room.cluster
    larger_ones = [
        a for a in accelerators().values() if a.kind == "gpu" and a.memory_gb > cluster.accelerator.memory_gb
    ]
    for device in sorted(larger_ones, key=lambda a: a.memory_gb):
        if _some_fit(config, replace(room, cluster=replace(cluster, accelerator=device)), kept):
            yield f"--gpu {device.name}, with {device.memory_gb:g} GB"
            break
    host_gb = room.host_gb
    while cluster.accelerator.kind == "gpu" and host_gb < 8 * room.host_gb:
        host_gb *= 2
        if _some_fit(config, replace(room, host_gb=host_gb), kept):
            yield f"--host-memory {host_gb:g}, GB of each node, for offload"
            break


def _smallest_cluster(config: RunConfig, room: Room, kept: frozenset[str]) -> int | None:
    """GPUs, in whole nodes."""
    cluster, node = room.cluster, room.cluster.gpus_per_node
    for gpus in range(cluster.gpus + node, MOST_GPUS + 1, node):
        # A group of ranks shares rows within a node; the batch has to divide among the groups.
        if any(node % n == 0 and config.batch.global_batch_size % (gpus // n) == 0 for n in range(1, node + 1)):
            larger = replace(room, cluster=replace(cluster, gpus=gpus))
            if _some_fit(config, larger, kept):
                return gpus
    return None


def _some_fit(config: RunConfig, room: Room, kept: frozenset[str]) -> bool:
    """Whether anything fits: what needs the least memory is tried alone."""
    thrifty = {RECOMPUTE: "full", MICRO_BATCH: 1}
    config = with_settings(config, {name: value for name, value in thrifty.items() if name not in kept})
    kept = kept | thrifty.keys()
    return any(option.excess(room) <= 0 for option in explore(config, room, kept, []))


def in_words(option: Option) -> str:
    """`zero3, micro-batch 2 × 8, full checkpointing, tensor parallel 8`."""
    engine = option.config.engine
    words = [
        engine.ds_config,
        f"micro-batch {option.config.batch.micro_batch_size} × {option.derived.accumulation_steps}",
        option.precision,
    ]
    if engine.activation_checkpointing != "none":
        words.append(f"{engine.activation_checkpointing} checkpointing")
    for name in ("sequence_parallel", "tensor_parallel"):
        if (size := getattr(engine, name)) > 1:
            words.append(f"{name.replace('_', ' ')} {size}")
    return ", ".join(words)
