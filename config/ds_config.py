"""DeepSpeed JSON files: found, read and checked by themselves."""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from config.errors import ConfigError
from config.load import display_path

DS_CONFIGS = Path(__file__).parents[1] / "ds_configs"

REFUSED = {
    "optimizer": "the optimiser is built from the recipe's section `optimizer` and handed to DeepSpeed: remove it here",
    "scheduler": "the learning rate follows the recipe's section `schedule`: remove it here",
    "tensor_parallel": "set engine.tensor_parallel in the recipe instead: remove it here",
    "sequence_parallel_size": "set engine.sequence_parallel in the recipe instead: remove it here",
    "bfloat16": 'an old name that would be ignored: write "bf16"',
}


@dataclass(frozen=True)
class DSConfig:
    path: str
    """As messages shall name it."""
    values: dict[str, Any]

    @property
    def zero(self) -> dict[str, Any]:
        return self.values["zero_optimization"]

    @property
    def stage(self) -> int:
        return self.zero["stage"]

    def offload_device(self, what: str) -> str:
        """Where `optimizer` or `param` is kept: none or cpu."""
        return (self.zero.get(f"offload_{what}") or {}).get("device", "none")


def find_ds_config(name_or_path: str) -> Path:
    """A name in ds_configs/ or a path. Raises ConfigError with the names there are."""
    path = Path(name_or_path)
    shipped = DS_CONFIGS / f"{path.name.removesuffix('.json')}.json"
    if path.is_file():
        return path
    if path.parent == Path(".") and shipped.exists():
        return shipped
    names = ", ".join(sorted(p.stem for p in DS_CONFIGS.glob("*.json")))
    raise ConfigError(
        f"engine.ds_config={name_or_path}: no such file; give the path of a DeepSpeed JSON or a name in ds_configs/: {names}"
    )


def read_ds_config(name_or_path: str) -> DSConfig:
    """Raises ConfigError with every setting that is wrong whatever the recipe says."""
    path = find_ds_config(name_or_path)
    name = display_path(path)
    try:
        values = json.loads(path.read_text(encoding="utf-8"), object_pairs_hook=_without_repeats)
    except json.JSONDecodeError as error:
        raise ConfigError(f"{name}:{error.lineno}:{error.colno}: not JSON: {error.msg}") from None
    except (OSError, ValueError) as error:
        raise ConfigError(f"{name}: {error}") from None
    if not isinstance(values, dict):
        raise ConfigError(f"{name}: expected an object of DeepSpeed settings")
    problems = [f"{key}: {reason}" for key, reason in REFUSED.items() if key in values] + _zero_problems(values)
    if problems:
        raise ConfigError("\n".join(f"{name}: {problem}" for problem in problems))
    return DSConfig(name, values)


def _without_repeats(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    keys = [key for key, _ in pairs]
    repeated = {key for key in keys if keys.count(key) > 1}
    if repeated:
        raise ValueError(f"{', '.join(sorted(repeated))} is set twice")
    return dict(pairs)


def _zero_problems(values: dict[str, Any]) -> list[str]:
    zero = values.get("zero_optimization")
    stage = zero.get("stage") if isinstance(zero, dict) else None
    if not isinstance(zero, dict) or stage not in (0, 1, 2, 3) or isinstance(stage, bool):
        return [f"zero_optimization.stage must be 0, 1, 2 or 3, not {json.dumps(stage)}"]
    problems = []
    for what, lowest in (("optimizer", 1), ("param", 3)):
        offload = zero.get(f"offload_{what}") or {}
        if not isinstance(offload, dict):
            problems.append(f'zero_optimization.offload_{what} must be {{"device": …}}, not {json.dumps(offload)}')
            continue
        device = offload.get("device", "none")
        if device not in ("none", "cpu"):
            why = "; what is swapped to nvme cannot be saved" if device == "nvme" else ""
            problems.append(f'zero_optimization.offload_{what}.device must be "none" or "cpu", not {device!r}{why}')
        elif device != "none" and stage < lowest:
            problems.append(f"zero_optimization.offload_{what} needs stage {lowest} or more, not stage {stage}")
    return problems
