"""How long an optimiser step takes on a cluster, part by part, without running it.

A model of mechanisms, each in a file beside this one: device.py (what a device does in a second), compute.py (one micro-batch),
traffic.py and network.py (what ranks send each other, and how long it takes), update.py (the optimiser). Its constants are
physical, and few; `python -m benchmarks.plan_error` compares it with published runs.
"""

import math
from dataclasses import dataclass
from typing import Any

from config.block_memory import FP32
from config.compiling import choose_compile
from config.derive import Derived
from config.hardware import Cluster
from config.schema import RunConfig
from config.zero_memory import States
from launch.plan.compute import MicroBatch, Numerics, micro_batch
from launch.plan.device import Device, make_device
from launch.plan.network import Group, collective_seconds, make_group
from launch.plan.traffic import Traffic, step_traffic
from launch.plan.update import offload_seconds, update_seconds

LAUNCH_SECONDS = 1.2e-5
"""Of the host, for each kernel that it starts, with the Python around it."""
HOOK_SECONDS = 2e-3
"""Of the host, for ZeRO 3's hooks on one block in one pass: about what stage 3 took longer than stage 1 on a CPU."""
CONTENTION = 0.15
"""Share of hidden communication that computing loses to it: it takes some of the device's units and memory bandwidth."""
STRAGGLING = 0.01
"""By which each doubling of the nodes slows a step: all wait for the slowest."""


@dataclass(frozen=True)
class Communication:
    """One kind of message in an optimiser step."""

    bytes: float
    """Of a rank's whole tensors."""
    seconds: float
    exposed: float
    """Seconds of it in which nothing is computed."""


@dataclass(frozen=True)
class StepTime:
    """Seconds of one optimiser step by part, and what follows from them."""

    compute: dict[str, float]
    """Without communication."""
    communication: dict[str, Communication]
    tokens: int
    """Of text, of all ranks."""
    flops: float
    """Of all ranks, by the convention in config/count.py: without what is recomputed."""
    peak: float
    """FLOP/s of all devices in bf16, by the data sheet."""

    @property
    def seconds(self) -> float:
        return sum(self.compute.values()) + sum(part.exposed for part in self.communication.values())

    @property
    def tokens_per_second(self) -> float:
        return self.tokens / self.seconds

    @property
    def mfu(self) -> float:
        return self.flops / self.seconds / self.peak


def estimate_step(config: RunConfig, derived: Derived, ds_json: dict[str, Any], cluster: Cluster) -> StepTime:
    """`ds_json` as filled by `deepspeed_json`. The batch is the one after the ramp."""
    accelerator, micro = cluster.accelerator, derived.accumulation_steps
    states = States(config, derived, ds_json)
    precision, numerics = _numerics(states, cluster)
    device = make_device(accelerator, precision, config.engine.kernel, config.model.position == "relative")
    one = micro_batch(config, device, numerics)
    again = one.recomputing(config.engine.activation_checkpointing)
    busy = {"forward": micro * one.forward, "backward": micro * (one.backward + again)}
    parts = {
        "matrix products": micro * one.matmul.total,
        "attention": micro * one.attention.total,
        "element-wise": micro * one.elementwise.total,
        "logits and head": micro * one.head,
        "recomputing": micro * again,
        "gradients and casts": micro * _gradient_seconds(states, numerics, device),
        "optimiser": update_seconds(states, device),
        "offload": offload_seconds(states, accelerator),
        "host": _host_seconds(states, one, sum(busy.values()), accelerator.kind),
    }
    communication = _communication(states, cluster, busy)
    seconds = sum(parts.values()) + sum(part.exposed for part in communication.values())
    parts["stragglers"] = STRAGGLING * math.log2(cluster.nodes) * seconds
    return StepTime(
        compute={name: value for name, value in parts.items() if value},
        communication=communication,
        tokens=derived.tokens_per_step,
        flops=derived.flops_per_token * derived.tokens_per_step,
        peak=1e12 * accelerator.bf16_tflops * derived.world_size,
    )


def _numerics(states: States, cluster: Cluster) -> tuple[str, Numerics]:
    """The precision's name, and what follows from it."""
    low = next((name for name in ("bf16", "fp16") if states.ds_json[name]["enabled"]), None)
    precision = low or ("bf16_autocast" if states.computes_low else "fp32")
    info = cluster.accelerator.device_info
    compiled = choose_compile(states.config, states.derived, precision, info, states.stage).value
    return precision, Numerics(2 if states.computes_low else FP32, states.number, compiled)


def _gradient_seconds(states: States, numerics: Numerics, device: Device) -> float:
    """Of one micro-batch: casting weights under autocast, adding gradients to those before, and ZeRO's copies of them into
    buckets and out."""
    casts = 2 * (numerics.matmul + FP32) if numerics.matmul != numerics.residual else 0
    copies = 4 * numerics.residual if states.stage > 1 or not states.accumulates else 0
    adding = numerics.matmul + 2 * FP32 if states.accumulates else 0
    return device.memory_seconds(states.trained * (casts + copies + adding))


def _host_seconds(states: States, one: MicroBatch, busy: float, kind: str) -> float:
    """By which starting kernels takes longer than running them. On a CPU the one waits for the other."""
    engine, micro = states.config.engine, states.derived.accumulation_steps
    seconds = LAUNCH_SECONDS * (one.kernels.total + one.kernels.forward * (engine.activation_checkpointing != "none"))
    if states.stage == 3:
        seconds += 2 * states.config.model.num_layers * HOOK_SECONDS
    return micro * seconds if kind == "cpu" else max(micro * seconds - busy, 0.0)


def _communication(states: States, cluster: Cluster, busy: dict[str, float]) -> dict[str, Communication]:
    """Every kind of message, and how much of it is not hidden by the work that it runs beside."""
    left = dict(busy, nothing=0.0)
    result = {}
    for traffic in step_traffic(states):
        group = _group(traffic, states, cluster)
        seconds = collective_seconds(cluster, traffic.operation, traffic.size, traffic.messages, group)
        hidden = min(seconds, left[traffic.hidden_by])
        left[traffic.hidden_by] -= hidden
        result[traffic.name] = Communication(traffic.size, seconds, seconds - hidden + CONTENTION * hidden)
    return result


def _group(traffic: Traffic, states: States, cluster: Cluster) -> Group:
    ranks, slices = states.derived.world_size, states.config.engine.tensor_parallel
    near = min(int(states.zero.get("zero_hpz_partition_size", 1)), ranks)
    return {
        "replicas": make_group(cluster, ranks // slices, slices),
        "all": make_group(cluster, ranks),
        "neighbours": make_group(cluster, states.config.engine.sequence_parallel * slices),
        "node": make_group(cluster, near),
        "heads": make_group(cluster, ranks // near, near),
    }[traffic.group]
