"""Files that commands of this room write where they are told to."""

from pathlib import Path

from config import ConfigError


def write_file(path: Path, text: str, setting: str) -> None:
    """Write a text, and the folders it needs. Raises ConfigError with the setting that chose the place."""
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text, encoding="utf-8")
    except OSError as error:
        raise ConfigError(f"{path} cannot be written: {error.strerror}; give another {setting}") from None
