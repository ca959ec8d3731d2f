"""The plan of a run, printed before anything slow starts: size, batch, length, memory and disk."""

from dataclasses import dataclass
from typing import Any

from config.block_memory import FP32
from config.count import FLOPS_CONVENTION
from config.derive import Derived, ranks_in_words
from config.device import DeviceInfo
from config.memory import Memory, estimate_memory
from config.schema import RunConfig
from config.zero_memory import kept_moments


@dataclass(frozen=True)
class Plan:
    name: str
    """Run, ranks, ZeRO stage and precision in words."""
    derived: Derived
    steps: int
    memory: Memory
    checkpoint_bytes: int
    """One checkpoint: weights and the optimiser's moments in fp32, 12 bytes a trained parameter for adamw."""
    keep_last: int

    def __str__(self) -> str:
        return "\n".join([self.name, *(f"{title:<26}{text}".rstrip() for title, text in self.rows())])

    def rows(self) -> list[tuple[str, str]]:
        """Title and text of each line; members of a sum are indented."""
        derived, counts = self.derived, self.derived.parameters
        per_parameter = derived.total_tokens / counts.total
        return [
            ("parameters", f"{counts.total + derived.adapter:>16,}"),
            *_numbers(
                {
                    "embedding": counts.embedding,
                    "positions": counts.positions,
                    "attention": counts.attention,
                    "feed-forward": counts.ffn,
                    "norms": counts.norms,
                    "head": counts.head,
                    "adapter": derived.adapter,
                }
            ),
            *([("trained", f"{derived.trained:>16,}")] if derived.adapter else []),
            ("batch", derived.batch_equation),
            ("run", f"{self.steps:,} steps, {derived.total_tokens:,} tokens, {per_parameter:,.1f} per parameter"),
            ("compute", f"{derived.total_flops:.3g} FLOPs, {derived.flops_per_token:,} a token"),
            ("", f"({FLOPS_CONVENTION})"),
            ("memory per rank, about", f"{gigabytes(sum(self.memory.device.values())):>16}"),
            *_sizes(self.memory.device),
            ("", f"(at its fullest, {self.memory.moment})"),
            *(
                [("host memory per rank", f"{gigabytes(sum(self.memory.host.values())):>16}")]
                if self.memory.host
                else []
            ),
            *_sizes(self.memory.host),
            ("one checkpoint", f"{gigabytes(self.checkpoint_bytes):>16}"),
            (f"  the {self.keep_last} kept", f"{gigabytes(self.checkpoint_bytes * self.keep_last):>16}"),
        ]


def plan(config: RunConfig, derived: Derived, ds_json: dict[str, Any], device: DeviceInfo | None = None) -> Plan:
    """`ds_json` as filled by `deepspeed_json`: it holds the resolved precision and the ZeRO stage. Without a device, for GPUs."""
    precision = next((p for p in ("bf16", "fp16") if ds_json[p]["enabled"]), None)
    precision = precision or ("bf16_autocast" if ds_json["torch_autocast"]["enabled"] else "fp32")
    stage = ds_json["zero_optimization"]["stage"]
    weights = derived.parameters.total + derived.adapter
    return Plan(
        name=f"{config.run.name}: {_ranks(config, derived)}, ZeRO stage {stage}, {precision}",
        derived=derived,
        steps=config.schedule.steps,
        memory=estimate_memory(config, derived, ds_json, device=device),
        checkpoint_bytes=FP32 * (weights + kept_moments(config, derived)),
        keep_last=config.checkpoint.keep_last,
    )


def _ranks(config: RunConfig, derived: Derived) -> str:
    """Ranks in words, and how they share rows."""
    ranks, engine = ranks_in_words(derived.world_size), config.engine
    if engine.tensor_parallel > 1:
        return f"{ranks}, tensor parallel {engine.tensor_parallel}"
    return ranks if engine.sequence_parallel == 1 else f"{ranks}, sequence parallel {engine.sequence_parallel}"


def gigabytes(size: int) -> str:
    """Decimal gigabytes, or megabytes below one."""
    return f"{size / 1e9:,.2f} GB" if size >= 1e9 else f"{size / 1e6:,.1f} MB"


def _numbers(parts: dict[str, int]) -> list[tuple[str, str]]:
    return [(f"  {name}", f"{number:>16,}") for name, number in parts.items() if number]


def _sizes(parts: dict[str, int]) -> list[tuple[str, str]]:
    return [(f"  {name}", f"{gigabytes(size):>16}") for name, size in parts.items()]
