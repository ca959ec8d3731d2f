"""TensorBoard and Weights & Biases, with the same three calls: scalars, text, close."""

from pathlib import Path
from typing import Any

from config import ConfigError, RunConfig


class TensorBoardWriter:
    def __init__(self, folder: Path, settings_text: str, first_step: int):
        from torch.utils.tensorboard import SummaryWriter

        self._writer = SummaryWriter(str(folder), purge_step=first_step + 1)
        self._writer.add_text("settings", f"```yaml\n{settings_text}\n```", first_step)

    def scalars(self, step: int, values: dict[str, Any]) -> None:
        for name, value in values.items():
            self._writer.add_scalar(name, value, step)

    def text(self, step: int, text: str) -> None:
        self._writer.add_text("sample", f"```\n{text}\n```", step)

    def close(self) -> None:
        self._writer.close()


class WandbWriter:
    def __init__(self, folder: Path, config: RunConfig):
        try:
            import wandb
        except ImportError:
            raise ConfigError("monitor.wandb=true needs the wandb package: pip install -e .[wandb]") from None
        self._wandb = wandb
        # The folder's name is the run's identity, so a resumed run continues the same curves.
        name, settings = folder.name, config.model_dump(mode="json")
        wandb.init(
            project=config.monitor.wandb_project, dir=str(folder), id=name, name=name, config=settings, resume="allow"
        )

    def scalars(self, step: int, values: dict[str, Any]) -> None:
        self._wandb.log(values, step=step)

    def text(self, step: int, text: str) -> None:
        self._wandb.log({"sample": self._wandb.Html(f"<pre>{text}</pre>")}, step=step)

    def close(self) -> None:
        self._wandb.finish()
