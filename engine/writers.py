"""TensorBoard and Weights & Biases, with the same three calls: scalars, text, close."""

import html
import secrets
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
            raise ConfigError("monitor.wandb=true needs the wandb package: pip install -e '.[wandb]'") from None
        self._wandb = wandb
        # Kept in the run's folder, so that a resumed run continues the same curves and a fresh one has its own.
        identity = folder / "wandb_id"
        if not identity.exists():
            identity.write_text(secrets.token_hex(8))
        wandb.init(
            project=config.monitor.wandb_project,
            dir=str(folder),
            id=identity.read_text(),
            name=folder.name,
            config=config.model_dump(mode="json"),
            resume="allow",
        )

    def scalars(self, step: int, values: dict[str, Any]) -> None:
        self._wandb.log(values, step=step)

    def text(self, step: int, text: str) -> None:
        self._wandb.log({"sample": self._wandb.Html(f"<pre>{html.escape(text)}</pre>")}, step=step)

    def close(self) -> None:
        self._wandb.finish()
