"""What an option means for the whole run: days, energy, money, checkpoints and reading."""

from dataclasses import dataclass

from config.hardware import Cluster
from config.plan import Plan, plan
from launch.plan.option import Option

HOUR, DAY = 3600, 86400
STORAGE_GB = 2.0
"""GB/s that a node writes to shared storage, where none is given."""


@dataclass(frozen=True)
class Forecast:
    train_seconds: float
    """Of training steps alone."""
    plan: Plan
    """Parameters, batch, length and memory, as `train.py --dry-run` prints them."""
    storage_gb: float
    """GB/s that a node writes."""
    saves: int
    save_seconds: float
    """Of one checkpoint, during which the run waits."""
    energy_kwh: float
    """Of the devices, not of hosts, network and cooling."""
    dollars: float
    read_bytes_per_second: float
    """Token ids that all ranks together read."""

    @property
    def seconds(self) -> float:
        return self.train_seconds + self.saves * self.save_seconds

    @property
    def save_share(self) -> float:
        return self.saves * self.save_seconds / self.seconds


def forecast(option: Option, cluster: Cluster, storage_gb: float) -> Forecast:
    """`storage_gb`: GB/s of one node to the storage that keeps checkpoints; each rank writes its own share."""
    assert option.step is not None
    config, derived, device = option.config, option.derived, cluster.accelerator
    planned = plan(config, derived, option.ds_json, device.device_info)
    train_seconds = derived.total_tokens / option.step.tokens_per_second
    saves = -(-config.schedule.steps // config.checkpoint.every_steps) if config.checkpoint.every_steps else 0
    save_seconds = planned.checkpoint_bytes / (storage_gb * 1e9 * cluster.nodes)
    device_hours = cluster.gpus * (train_seconds + saves * save_seconds) / HOUR
    return Forecast(
        plan=planned,
        train_seconds=train_seconds,
        storage_gb=storage_gb,
        saves=saves,
        save_seconds=save_seconds,
        energy_kwh=device_hours * device.watts / 1000,
        dollars=device_hours * device.dollars_per_hour,
        read_bytes_per_second=option.step.tokens_per_second * (2 if config.model.vocab_size <= 1 << 16 else 4),
    )


def duration(seconds: float) -> str:
    """`27.3 days`, `5.1 hours`, `12 minutes`, `40 s`, `3 ms`."""
    for unit, name in ((DAY, "days"), (HOUR, "hours"), (60, "minutes")):
        if seconds >= 2 * unit:
            return f"{seconds / unit:,.1f} {name}"
    return f"{seconds:,.3g} s" if seconds >= 0.1 else f"{seconds * 1000:,.3g} ms"
