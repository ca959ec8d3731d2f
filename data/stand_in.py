"""Something to read for `train.py --debug` where the recipe's corpus is not there: this project's model code."""

from collections.abc import Callable
from pathlib import Path

from config import DataError, RunConfig
from config.data_schema import DatasetSection
from data.manifest import MANIFEST_NAME
from data.prepare import PrepareOptions, prepare

TEXT = Path(__file__).parents[1] / "model"
FOLDER = Path("corpora/debug")
VOCAB_SIZE = 512


def with_stand_in(config: RunConfig, ranks: int, say: Callable[[str], None]) -> RunConfig:
    """The config itself if its corpora are there, else with a small corpus in their place, made in about a second and kept.

    Raises DataError under several ranks, which would make it all at once.
    """
    missing = [dataset.path for dataset in config.data.datasets if not (Path(dataset.path) / MANIFEST_NAME).exists()]
    if not missing:
        return config
    if not (FOLDER / MANIFEST_NAME).exists():
        if ranks > 1:
            raise DataError(
                f"{missing[0]}: no dataset; make it with python -m data prepare ... --out {missing[0]}, or run --debug once "
                f"in one process, which makes {FOLDER} to stand in for it"
            )
        prepare(PrepareOptions((str(TEXT),), FOLDER, VOCAB_SIZE, split_valid=0.1), say=lambda text: None)
    say(f"{missing[0]} is not there: {FOLDER}, made of this project's own code, stands in for it")
    data = config.data.model_copy(update={"datasets": (DatasetSection(path=str(FOLDER)),), "mixture_schedule": ()})
    return config.model_copy(update={"data": data})
