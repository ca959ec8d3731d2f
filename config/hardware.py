"""Accelerators and networks by name: what config/hardware.yaml knows of them, with its sources."""

import re
from dataclasses import dataclass, replace
from difflib import get_close_matches
from functools import cache
from pathlib import Path
from typing import Literal

import yaml

from config.device import DeviceInfo
from config.errors import ConfigError

HARDWARE = Path(__file__).with_name("hardware.yaml")
NOISE = {"nvidia", "amd", "tesla", "geforce", "instinct", "intel", "gpu", "gb", "oam", "hbm2", "hbm2e", "hbm3", "hbm3e"}
"""Words of a driver's device name that do not tell devices apart."""


@dataclass(frozen=True)
class Accelerator:
    """One device as programs see it. Rates are dense data-sheet peaks."""

    name: str
    also: tuple[str, ...]
    """Further words that may stand in its name."""
    memory_gb: float
    """10^9 bytes, as are all GB here."""
    bf16_tflops: float
    """Of matrix products in bf16, or in fp16 where `fast_bf16` is false."""
    fp32_tflops: float
    """Of matrix products of fp32 numbers, without TF32, which runs do not turn on."""
    memory_bandwidth_gb: float
    """GB/s of its memory."""
    link_gb: float
    """GB/s to the other devices of a node, one direction."""
    host_gb: float
    """GB/s to the host's memory that copies reach, one direction."""
    watts: float
    dollars_per_hour: float
    matmul_efficiency: float
    """Share of the bf16 peak that large matrix products reach."""
    attention_efficiency: float
    """The same of attention (PyTorch's or flash-attn 2; heads of 128, long causal rows, forward and backward)."""
    source: str
    flash_efficiency: float | None = None
    """The same with the flash-attn made for it (3 or 4), where that is faster."""
    fp8_tflops: float | None = None
    switch_sums: bool = False
    """Whether the switch between a node's devices adds up what they send."""
    kind: Literal["gpu", "cpu"] = "gpu"
    fast_bf16: bool = True

    @property
    def device_info(self) -> DeviceInfo:
        """What precision and compiling are chosen by."""
        return DeviceInfo(self.kind, self.name, fast_bf16=self.fast_bf16, fp16=self.kind == "gpu")


@dataclass(frozen=True)
class Network:
    """What connects nodes."""

    name: str
    gbit_per_second: float
    """Of one adapter, one direction."""
    per: Literal["gpu", "node"]
    """Whether each device has an adapter, or a node's devices share one."""
    latency_us: float
    """Of one message between two nodes."""
    source: str

    def gb_per_second(self, gpus_per_node: int) -> float:
        """GB/s of one device while all of its node send."""
        return self.gbit_per_second / 8 / (gpus_per_node if self.per == "node" else 1)


@dataclass(frozen=True)
class Cluster:
    """The devices of a run. Nodes are full, but for a run on fewer devices than a node has."""

    accelerator: Accelerator
    gpus: int
    gpus_per_node: int
    network: Network

    @property
    def nodes(self) -> int:
        return -(-self.gpus // self.gpus_per_node)

    @property
    def network_gb(self) -> float:
        """GB/s of one device between nodes, one direction, while all of its node send."""
        return self.network.gb_per_second(min(self.gpus, self.gpus_per_node))


@cache
def accelerators() -> dict[str, Accelerator]:
    return {
        name: Accelerator(name=name, **{**values, "also": tuple(map(str, values["also"]))})
        for name, values in _table()["accelerators"].items()
    }


@cache
def networks() -> dict[str, Network]:
    return {name: Network(name=name, **values) for name, values in _table()["networks"].items()}


def find_accelerator(name: str) -> Accelerator:
    """By one of its usual spellings: `h100-80`, `H100 SXM5`, `A100-SXM4-40GB`, `rtx4090`. Raises ConfigError."""
    known = by_device_name(name)
    if known is None:
        raise ConfigError(
            _unknown("accelerator", name, accelerators(), "another one is a row more in config/hardware.yaml")
        )
    return known


def by_device_name(name: str) -> Accelerator | None:
    """The first accelerator that each word of the name fits, as a driver spells it; None if there is none.

    A word that is not understood (Laptop, NVL, MIG) may mean another device, so it fits none.
    """
    words = _words(name)
    return next((a for a in accelerators().values() if words and words <= _words(a.name) | {*a.also}), None)


def find_network(name: str) -> Network:
    """`infiniband-400` (or ib-400), with `/node` or `/gpu` to say who has an adapter of that rate. Raises ConfigError."""
    base, _, per = name.lower().replace("_", "-").partition("/")
    base = re.sub(r"^(ib|eth)-?(?=\d)", lambda m: {"ib": "infiniband-", "eth": "ethernet-"}[m[1]], base)
    if base not in networks() or per not in ("", "gpu", "node"):
        raise ConfigError(_unknown("network", name, networks(), "NAME/node or NAME/gpu says who has an adapter"))
    network = networks()[base]
    return replace(network, name=f"{base}/{per}", per=per) if per else network  # type: ignore[arg-type]  # gpu or node


def _words(name: str) -> set[str]:
    """`NVIDIA H100 80GB HBM3` is {h100, 80}, `rtx4090` {rtx, 4090}, `A100-SXM4-40GB` {a100, sxm, 40}."""
    plain = re.sub(r"\b(\d+)gb\b", r"\1", name.lower().replace("_", "-"))
    plain = re.sub(r"\bsxm\d\b", "sxm", re.sub(r"\brtx(?=\d)", "rtx ", plain))
    return set(re.findall(r"[a-z0-9]+", plain)) - NOISE


def _unknown(kind: str, name: str, known: dict, advice: str) -> str:
    close = get_close_matches(name.lower(), known, 1)
    guess = f"; did you mean {close[0]}?" if close else "."
    return f"unknown {kind} {name!r}{guess} There are {', '.join(known)}; {advice}"


@cache
def _table() -> dict:
    return yaml.safe_load(HARDWARE.read_text(encoding="utf-8"))
