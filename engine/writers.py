"""TensorBoard and Weights & Biases, with the same three calls: scalars, text, close."""

from pathlib import Path
from typing import Any


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
    def __init__(self, folder: Path, project: str, settings_text: str):
        import wandb
        import yaml

        settings = yaml.safe_load(settings_text)
        self._wandb = wandb
        # The folder's name is the run's identity, so a resumed run continues the same curves.
        wandb.init(project=project, dir=str(folder), id=folder.name, name=folder.name, config=settings, resume="allow")

    def scalars(self, step: int, values: dict[str, Any]) -> None:
        self._wandb.log(values, step=step)

    def text(self, step: int, text: str) -> None:
        self._wandb.log({"sample": self._wandb.Html(f"<pre>{text}</pre>")}, step=step)

    def close(self) -> None:
        self._wandb.finish()
