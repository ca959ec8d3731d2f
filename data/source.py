"""The tokenizer of a model that a run starts from."""

from pathlib import Path

from config import DataError
from data.tokenizer import TOKENIZER_NAME, Tokenizer


def read_tokenizer(folder: str) -> Tokenizer:
    """Of a tokenizer.json, a Hugging Face folder, a checkpoint, or a run's newest one. Raises DataError if there is none."""
    path = Path(folder)
    if path.is_file():
        return Tokenizer.load(path)
    of_checkpoints = sorted(path.glob(f"checkpoints/step_*/{TOKENIZER_NAME}"))
    for found in (path / TOKENIZER_NAME, *of_checkpoints[-1:]):
        if found.is_file():
            return Tokenizer.load(found)
    raise DataError(
        f"{path}: no tokenizer.json there; give a run, a checkpoint, or a Hugging Face folder, into which transformers writes "
        "it by AutoTokenizer.from_pretrained(FOLDER).save_pretrained(FOLDER)"
    )


def check_vocabulary(tokenizer: Tokenizer, source: str) -> None:
    """Raises DataError if the model that a run starts from knows the ids of the run's data by other names."""
    theirs = read_tokenizer(source)
    shared = range(min(tokenizer.vocab_size, theirs.vocab_size))
    differing = [number for number in shared if tokenizer.name_of(number) != theirs.name_of(number)]
    if differing:
        number = differing[0]
        raise DataError(
            f"run.start_from {source} has another tokenizer than the data: id {number} is {theirs.name_of(number)!r} there and "
            f"{tokenizer.name_of(number)!r} here, as are {len(differing) - 1:,} more; prepare the data again with "
            f"--tokenizer and the model's tokenizer.json"
        )
