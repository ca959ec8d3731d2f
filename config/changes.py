"""What may change between a checkpoint and the recipe that continues it."""

from dataclasses import dataclass
from typing import Any, Literal

from config.contrastive_schema import micro_batch_matters
from config.schema import RunConfig

Kind = Literal["harmless", "needs_consent", "refused"]

ADAPTER_SHAPE = ("name", "rank", "alpha", "targets", "bottleneck")

# The first pattern that a setting's name starts with decides. A setting that no pattern knows needs consent.
RULES: list[tuple[str, Kind, str]] = [
    ("model.dropout", "needs_consent", "regularises differently from here on"),
    ("model.init_std", "harmless", "only used to start"),
    ("model.zero_init_outputs", "harmless", "only used to start"),
    ("model.preset", "harmless", "the architecture's own settings are compared one by one"),
    ("model.", "refused", "the checkpoint's weights belong to another model"),
    ("data.row_length", "refused", "rows are counted from the start, so another length reads other tokens"),
    ("data.prefetch_steps", "harmless", "read ahead more or less"),
    ("data.document_masking", "needs_consent", "the model sees other context"),
    ("data.examples.valid", "harmless", "does not change what is trained"),
    ("data.pairs.valid", "harmless", "does not change what is trained"),
    ("data.examples.", "needs_consent", "other examples, or others of their fields, are learned from here on"),
    ("data.", "needs_consent", "the order of the data is another from here on"),
    ("objective.learnable_temperature", "refused", "the checkpoint's weights have a temperature or they have none"),
    ("objective.labels", "refused", "the checkpoint's head tells other labels apart"),
    ("objective.", "needs_consent", "something else is learned from here on"),
    ("adapter.dropout", "needs_consent", "regularises differently from here on"),
    *((f"adapter.{what}", "refused", "the checkpoint's weights belong to another adapter") for what in ADAPTER_SHAPE),
    ("adapter.", "needs_consent", "ranks are allocated differently from here on"),
    ("batch.micro_batch_size", "harmless", "the same rows in other slices"),
    ("batch.ramp", "needs_consent", "steps are larger or smaller from here on"),
    ("batch.global_batch_size", "needs_consent", "steps are larger or smaller from here on"),
    ("optimizer.name", "refused", "the checkpoint holds another optimiser's state"),
    ("optimizer.", "needs_consent", "updates are computed differently from here on"),
    ("schedule.", "needs_consent", "the learning rate follows another curve from here on"),
    ("engine.precision", "needs_consent", "rounding differs from here on"),
    ("engine.", "harmless", "computes the same in another way"),
    ("run.seed", "needs_consent", "the order of the data and dropout are others from here on"),
    ("run.start_from", "harmless", "only used to start"),
    ("run.", "harmless", "does not change what is trained"),
    ("checkpoint.", "harmless", "does not change what is trained"),
    ("validation.", "harmless", "does not change what is trained"),
    ("monitor.", "harmless", "does not change what is trained"),
]

ENDLESS = ("constant", "inverse_sqrt")
"""Schedules that do not depend on the number of steps."""


@dataclass(frozen=True)
class Difference:
    setting: str
    old: Any
    new: Any
    kind: Kind
    why: str

    def __str__(self) -> str:
        return f"{self.setting}: {self.old} → {self.new} ({self.why})"


def compare(old: RunConfig, new: RunConfig) -> list[Difference]:
    """Settings in which a recipe differs from the one saved in a checkpoint, and what each means for continuing."""
    before, after = _settings(old), _settings(new)
    differences = []
    for setting in dict.fromkeys([*before, *after]):
        was, now = before.get(setting), after.get(setting)
        if was != now:
            differences.append(Difference(setting, was, now, *_judge(setting, old, new)))
    return differences


def _judge(setting: str, old: RunConfig, new: RunConfig) -> tuple[Kind, str]:
    if setting == "schedule.steps" and new.adapter.name == "adalora":
        return "needs_consent", "adapter adalora takes ranks away over the length of the run"
    if setting == "schedule.steps" and old.schedule.name == new.schedule.name and old.schedule.name in ENDLESS:
        return "harmless", "the learning rate does not depend on the length of the run"
    if setting == "batch.micro_batch_size" and micro_batch_matters(new.objective):
        return "needs_consent", "the rows of a micro-batch are each other's negatives"
    return next(
        ((kind, why) for start, kind, why in RULES if setting.startswith(start)), ("needs_consent", "not judged")
    )


def _settings(config: RunConfig) -> dict[str, Any]:
    """Settings by dotted name; those of the model that were left out as if they were written out."""
    temperature = {"learnable_temperature": getattr(config.objective, "learnable_temperature", False)}
    return _flat(config.model_dump()) | _flat({"model": config.model.resolved(), "objective": temperature})


def _flat(values: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    """Settings by dotted name; a list is one setting."""
    flat: dict[str, Any] = {}
    for name, value in values.items():
        flat |= _flat(value, f"{prefix}{name}.") if isinstance(value, dict) else {prefix + name: value}
    return flat
