"""How far the planner's step times are from published runs and from this project's own: `python -m benchmarks.plan_error`."""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from statistics import mean, median
from typing import Any

import yaml

from config import load_recipe
from config.derive import derive
from config.ds_json import deepspeed_json
from config.hardware import Accelerator, Cluster, Network, find_accelerator, find_network
from launch.plan.speed import StepTime, estimate_step

PUBLISHED = Path(__file__).with_name("published.yaml")
ALL_LOGITS = 10**9
"""Tokens whose logits the published codebases have at once."""
SIX_LAYERS = (
    "model.num_layers=6", "model.hidden_size=256", "model.num_heads=4", "model.vocab_size=8192", "model.max_positions=256",
    "data.row_length=256", "batch.micro_batch_size=8", "batch.global_batch_size=32", "engine.compile=on",
)  # fmt: skip
OWN = {  # recipe, overrides and tokens/s on two CPU threads, as docs/benchmarks.md and README.md have them
    "6 x 256, ZeRO 0": ("gpt2_124m", (*SIX_LAYERS, "engine.ds_config=zero0"), 12_419),
    "6 x 256, ZeRO 1": ("gpt2_124m", (*SIX_LAYERS, "engine.ds_config=zero1"), 12_949),
    "6 x 256, ZeRO 2": ("gpt2_124m", (*SIX_LAYERS, "engine.ds_config=zero2"), 11_362),
    "6 x 256, ZeRO 3": ("gpt2_124m", (*SIX_LAYERS, "engine.ds_config=zero3", "engine.compile=off"), 5_894),
    "gpt_quickstart": ("gpt_quickstart", ("engine.compile=on",), 10_638),
}


@dataclass(frozen=True)
class Run:
    """A measured run, and the recipe that comes closest to it."""

    name: str
    source: str
    recipe: str
    overrides: tuple[str, ...]
    accelerator: Accelerator
    gpus: int
    network: Network
    measured: float
    """Tokens per second and GPU."""
    calibrated: bool = False
    """The planner's constants were set with a look at it."""


def published_runs() -> Iterator[Run]:
    table = yaml.safe_load(PUBLISHED.read_text(encoding="utf-8"))
    for source, model, gpu, gpus, row, micro, accumulation, recomputed, speed, *mark in table["runs"]:
        recipe, *overrides = table["models"][model]
        common: dict[str, Any] = table["settings"][source]
        slices = common.get("tensor_parallel", 1)
        values = {
            "data.row_length": row,
            "batch.micro_batch_size": micro,
            "batch.global_batch_size": micro * accumulation * gpus // slices,
            "model.max_positions": row,
            "engine.activation_checkpointing": recomputed,
            "engine.loss_chunk_tokens": ALL_LOGITS,
            "engine.tensor_parallel": 1,
            **{
                f"engine.{name}": value for name, value in common.items() if name not in ("network", "slower_attention")
            },
        }
        yield Run(
            name=f"{model}, T {row:,}, {micro} x {accumulation}" + (f", {recomputed}" if recomputed != "none" else ""),
            source=source,
            recipe=recipe,
            overrides=(*overrides, *(f"{name}={value}" for name, value in values.items())),
            accelerator=_accelerator(gpu, common.get("slower_attention", 1)),
            gpus=gpus,
            network=find_network(common.get("network") or ("infiniband-200" if "a100" in gpu else "infiniband-400")),
            measured=speed,
            calibrated=bool(mark),
        )


def _accelerator(name: str, slower_attention: float) -> Accelerator:
    """torchtitan's H100s have slower memory and are limited to 500 of 700 W, of which the clock follows about the root."""
    known = find_accelerator(name.removesuffix("-500w"))
    if name.endswith("-500w"):
        clock = (500 / known.watts) ** 0.5
        known = replace(known, name=name, watts=500, memory_bandwidth_gb=2400, bf16_tflops=clock * known.bf16_tflops)
    return replace(known, attention_efficiency=known.attention_efficiency / slower_attention)


def own_runs() -> Iterator[Run]:
    for name, (recipe, overrides, speed) in OWN.items():
        settings, cpu = (*overrides, "engine.precision=bf16_autocast"), find_accelerator("cpu")
        yield Run(name, "docs", recipe, settings, cpu, 1, find_network("loopback"), speed)


def predict(run: Run) -> StepTime:
    config = load_recipe(run.recipe, list(run.overrides))
    derived = derive(config, run.gpus)
    ds_json = deepspeed_json(config, derived, config.engine.precision, run.accelerator.device_info)
    return estimate_step(config, derived, ds_json, Cluster(run.accelerator, run.gpus, 8, run.network))


def error(run: Run) -> float:
    """Relative, of the predicted tokens per second."""
    return predict(run).tokens_per_second / run.gpus / run.measured - 1


def show(runs: Iterable[Run]) -> None:
    """Print each run, and errors by source, as Markdown tables."""
    off = [(run, error(run)) for run in runs]
    print("| run (T, micro-batch x accumulation) | source | devices | measured | predicted | error |")
    print("| --- | --- | --- | --- | --- | --- |")
    for run, relative in off:
        source = run.source + (" (c)" if run.calibrated else "")
        speeds = f"{run.measured:,.0f} | {run.measured * (1 + relative):,.0f} | {relative:+.0%}"
        print(f"| {run.name} | {source} | {run.gpus} x {run.accelerator.name} | {speeds} |")
    groups: dict[str, list[tuple[Run, float]]] = {}
    for run, relative in off:
        kind = f"{run.source} on {run.accelerator.name.split('-')[0]}"
        for group in (kind, "calibrated (c)" if run.calibrated else "held out", "all"):
            groups.setdefault(group, []).append((run, relative))
    print(
        "\n| runs | number | devices | median error | mean | worst | within 20 % |\n| --- | --- | --- | --- | --- | --- | --- |"
    )
    for name, some in sorted(groups.items(), key=lambda item: (item[0] in ("held out", "all"), item[0])):
        print(f"| {name} | {len(some)} | {_summary(some)} |")


def _summary(off: list[tuple[Run, float]]) -> str:
    devices, errors = [run.gpus for run, _ in off], [relative for _, relative in off]
    sizes = [abs(relative) for relative in errors]
    count = f"{min(devices)}" if min(devices) == max(devices) else f"{min(devices)}-{max(devices)}"
    within = sum(size <= 0.2 for size in sizes)
    return f"{count} | {median(sizes):.1%} | {mean(errors):+.1%} | {max(errors, key=abs):+.0%} | {within}"


if __name__ == "__main__":
    show(published_runs())
    print()
    show(own_runs())
