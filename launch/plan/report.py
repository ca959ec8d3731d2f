"""A plan in words and as JSON: the recommended option in full, then the table of what it was chosen from."""

from dataclasses import asdict
from textwrap import fill
from typing import Any

from config import Choice
from config.hardware import Cluster
from config.plan import gigabytes
from launch.plan.choices import Choices
from launch.plan.forecast import Forecast, duration
from launch.plan.option import MICRO_BATCH, SETTINGS, Option

TITLES = ("ds_config", "micro × accumulation", "precision", "recompute", "shared", "memory", "step", "tokens/s", "MFU")


def report(choices: Choices, choice: Choice[Option], ahead: Forecast) -> str:
    option, cluster = choice.value, choices.room.cluster
    rows = [*ahead.plan.rows(), *_rows(option, ahead, cluster)]
    changes = " ".join(f"{name}={value}" for name, value in option.changes(choices.recipe).items())
    return "\n".join(
        [
            ahead.plan.name,
            *(f"{title:<26}{text}".rstrip() for title, text in rows),
            "",
            *_table(choices, option),
            "",
            fill(f"→ recommended: {choice.reason or 'nothing else fits'}.", 120, subsequent_indent="  "),
            f"  in the recipe or on the command line: {changes}" if changes else "  which is what the recipe says",
        ]
    )


def _rows(option: Option, ahead: Forecast, cluster: Cluster) -> list[tuple[str, str]]:
    step, device = option.step, cluster.accelerator
    assert step is not None
    one = "GPU" if device.kind == "gpu" else "rank"
    energy = f"{ahead.energy_kwh:,.1f}" if ahead.energy_kwh > 1 else f"{ahead.energy_kwh:.4f}"
    free = device.memory_gb * 1e9 - option.device_bytes
    nodes = f" on {cluster.nodes:,} nodes, {cluster.network.name}" if cluster.nodes > 1 else ""
    saves = f"{gigabytes(ahead.plan.checkpoint_bytes)} each {option.config.checkpoint.every_steps:,} steps"
    return [
        (
            "cluster",
            f"{cluster.gpus:,} × {device.name}{nodes}; {gigabytes(int(free))} of {device.memory_gb:g} GB stay free",
        ),
        ("a step", f"{duration(step.seconds):>16}"),
        *((f"  {name}", f"{duration(seconds):>16}") for name, seconds in step.compute.items()),
        *(
            (
                f"  {name}",
                f"{duration(c.exposed):>16}   waited for, of {duration(c.seconds)} for {gigabytes(int(c.bytes))}",
            )
            for name, c in step.communication.items()
        ),
        (
            "speed",
            f"{step.tokens_per_second:,.0f} tokens/s, {step.tokens_per_second / cluster.gpus:,.0f} a {one}, "
            f"MFU {step.mfu:.1%} of {device.bf16_tflops:g} TFLOP/s",
        ),
        ("the whole run", duration(ahead.seconds)),
        ("energy", f"{energy} kWh at {device.watts:g} W a {one} (hosts and cooling come on top)"),
        ("cost", f"${ahead.dollars:,.0f} at ${device.dollars_per_hour:.2f} a {one} and hour"),
        (
            "checkpoints",
            f"{saves} take {duration(ahead.save_seconds)} at {ahead.storage_gb:g} GB/s a node, {ahead.save_share:.1%} of the time",
        ),
        ("reading", f"{ahead.read_bytes_per_second / 1e6:,.3g} MB/s of token ids in all"),
    ]


def shown(choices: Choices, best: Option) -> list[Option]:
    """The fastest with each value of each setting, the recommended one and the recipe's own; the fastest first."""
    fastest: dict[Any, Option] = {}
    for option in choices.fitting:
        for name, value in option.settings().items():
            if name != MICRO_BATCH:
                fastest.setdefault((name, value), option)
    listed = [best, *fastest.values()]
    if isinstance(choices.written, Option) and choices.written.step:
        listed.append(choices.written)
    unique = {tuple(option.settings().items()): option for option in listed}
    return sorted(unique.values(), key=lambda option: option.seconds)


def _table(choices: Choices, best: Option) -> list[str]:
    written = choices.written
    marks = {tuple(best.settings().items()): "→"}
    lines: list[tuple[str, ...]] = [("", *TITLES, "")]
    for option in shown(choices, best):
        key = tuple(option.settings().items())
        own = isinstance(written, Option) and written.settings() == option.settings()
        lines.append((marks.get(key, ""), *_cells(option), "as the recipe says" if own else ""))
    fitting = {option.config.engine.ds_config for option in choices.fitting}
    left = {o.config.engine.ds_config: o for o in reversed(choices.too_large)}
    for name in sorted(left.keys() - fitting):
        lines.append(("", *_cells(left[name]), f"{gigabytes(int(left[name].excess(choices.room)))} too large"))
    widths = [max(len(line[i]) for line in lines) for i in range(len(lines[0]))]
    table = ["  ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)).rstrip() for line in lines]
    if isinstance(written, str):
        table.append(f"as the recipe says: {written}")
    elif written.step is None:
        table.append(f"as the recipe says: {gigabytes(int(written.excess(choices.room)))} a rank too large")
    return table


def _cells(option: Option) -> tuple[str, ...]:
    engine, step = option.config.engine, option.step
    shared = [f"{name} {size}" for name, size in _shared(option) if size > 1]
    return (
        engine.ds_config,
        f"{option.config.batch.micro_batch_size} × {option.derived.accumulation_steps}",
        option.precision,
        engine.activation_checkpointing,
        ", ".join(shared) or "–",
        gigabytes(option.device_bytes) + (f" + {gigabytes(option.host_bytes)} host" if option.host_bytes else ""),
        *((duration(step.seconds), f"{step.tokens_per_second:,.0f}", f"{step.mfu:.1%}") if step else ("–", "–", "–")),
    )


def _shared(option: Option) -> list[tuple[str, int]]:
    engine = option.config.engine
    return [("sequence", engine.sequence_parallel), ("tensor", engine.tensor_parallel)]


def as_json(choices: Choices, choice: Choice[Option], ahead: Forecast) -> dict[str, Any]:
    """All that `report` says, by name; bytes, seconds and FLOPs as numbers."""
    option, cluster = choice.value, choices.room.cluster
    return {
        "recipe": choices.recipe.run.name,
        "cluster": {"gpus": cluster.gpus, "gpus_per_node": cluster.gpus_per_node, "gpu": cluster.accelerator.name}
        | {"network": cluster.network.name},
        "parameters": option.derived.parameters.total,
        "total_tokens": option.derived.total_tokens,
        "total_flops": option.derived.total_flops,
        "checkpoint_bytes": ahead.plan.checkpoint_bytes,
        "recommended": _option_json(option) | {"reason": choice.reason},
        "forecast": {name: value for name, value in vars(ahead).items() if name != "plan"} | {"seconds": ahead.seconds},
        "options": [_option_json(other) for other in shown(choices, option)],
    }


def _option_json(option: Option) -> dict[str, Any]:
    step = option.step
    assert step is not None
    return {
        "settings": dict(zip(SETTINGS, option.settings().values(), strict=True)),
        "precision": option.precision,
        "accumulation_steps": option.derived.accumulation_steps,
        "device_bytes": option.memory.device,
        "host_bytes": option.memory.host,
        "step_seconds": step.seconds,
        "parts_seconds": step.compute,
        "communication": {name: asdict(part) for name, part in step.communication.items()},
        "tokens_per_second": step.tokens_per_second,
        "mfu": step.mfu,
    }
