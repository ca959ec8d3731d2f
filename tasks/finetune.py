"""Train a model further on labelled examples: writes a recipe for train.py and runs it."""

import argparse
from pathlib import Path

from config import ConfigError

TASKS = ("classification", "regression", "token_classification", "relation", "seq2seq", "instruction")
LABELLED = ("classification", "token_classification", "relation")
ADAPTERS = ("lora", "adalora", "houlsby")
EPOCHS = 3
STEPS = "schedule.steps"
OWN = {
    "objective.name": "TASK",
    "data.examples.train": "--train",
    "data.examples.valid": "--valid",
    "data.examples.text": "--text",
    "data.examples.messages": "--text",
    "data.examples.pair": "--pair",
    "data.examples.label": "--label",
    "data.examples.tags": "--tags",
    "adapter.name": "--adapter",
}
"""Settings that the rest of the recipe is made from, and what sets them."""

TRAIN = Path(__file__).parents[1] / "train.py"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("task", choices=TASKS, help="what to learn")
    parser.add_argument("model", type=Path, help="run, checkpoint or Hugging Face folder to start from")
    parser.add_argument("overrides", nargs="*", metavar="section.key=value", help="settings of the recipe")
    parser.add_argument(
        "--train", required=True, help="examples to learn from: .jsonl, .csv, .tsv, CoNLL or `datasets`"
    )
    parser.add_argument("--valid", required=True, help="examples to validate on")
    parser.add_argument(
        "--text",
        default="text",
        help="field of the text, the prompt, the source or the conversation (default text; conversations in `messages` are found)",
    )
    parser.add_argument("--pair", default="", help="field of the second text of a pair")
    parser.add_argument("--label", default="label", help="field of the label, or of the text to write (default label)")
    parser.add_argument(
        "--tags",
        choices=("iob2", "iob1"),
        default="iob2",
        help="how entities are tagged (default iob2); iob1 is learned as iob2",
    )
    parser.add_argument("--epochs", type=int, help=f"times that every example is learned from (default {EPOCHS})")
    parser.add_argument("--balanced", action="store_true", help="weigh labels by how rare they are")
    parser.add_argument(
        "--adapter", choices=ADAPTERS, help="train small modules inside the frozen model, not all of it"
    )
    parser.add_argument(
        "--recipe", type=Path, help="file to write (default TASK-MODEL[-ADAPTER].yaml); its name is the run's"
    )
    parser.add_argument("--write-only", action="store_true", help="write the recipe and stop")


def run(options: argparse.Namespace) -> int:
    import runpy
    import sys

    from tasks.finetune_recipe import name_of

    path = options.recipe or Path(f"{name_of(options)}.yaml")
    check_options(options, path)
    write_recipe(options, path)
    print(f"{path} is written; deepspeed train.py {path} trains it again, also after changes", flush=True)
    if options.write_only:
        return 0
    sys.argv = [str(TRAIN), str(path)]
    # As `python train.py` does, Ctrl-C included, without importing torch once more.
    runpy.run_path(sys.argv[0], run_name="__main__")
    raise AssertionError("train.py ends the process")


def write_recipe(options: argparse.Namespace, path: Path) -> None:
    """The recipe, and the encoded examples where a training from it finds them."""
    from config.load import new_recipe
    from data.example_table import encode_table, keep_table
    from data.examples import examples_tokenizer
    from tasks.finetune_recipe import draft, fit

    sections = draft(options)
    config, _ = new_recipe(sections, str(path), options.overrides)
    tokenizer, examples = examples_tokenizer(config), config.data.examples
    assert examples is not None
    train, valid = (encode_table(file, config, tokenizer) for file in (examples.train, examples.valid))
    sections = fit(sections, config, train, valid, settings_in(options.overrides), options.epochs or EPOCHS)
    config, text = new_recipe(sections, str(path), options.overrides)
    for table in (train, valid):
        keep_table(table, config, tokenizer)
    keep_or_write(path, f"# {options.task} from {options.model}\n{text}")


def check_options(options: argparse.Namespace, recipe: Path) -> None:
    """Raises ConfigError for an option that nothing comes of, and for a setting that an option sets."""
    if options.epochs is not None and options.epochs < 1:
        raise ConfigError(f"--epochs {options.epochs}: every example has to be learned from at least once")
    if options.balanced and options.task not in LABELLED:
        raise ConfigError(f"--balanced weighs labels, and {options.task} has none: leave it out")
    if options.tags != "iob2" and options.task != "token_classification":
        raise ConfigError(
            f"--tags {options.tags} is for token_classification, and {options.task} has no tags: leave it out"
        )
    if recipe.suffix not in (".yaml", ".yml"):
        raise ConfigError(f"--recipe {recipe}: a recipe is a .yaml file, give it this ending")
    given = settings_in(options.overrides)
    if options.epochs is not None and STEPS in given:
        raise ConfigError(f"--epochs {options.epochs} and {STEPS} both say how long to train: give one of them")
    if taken := sorted(given & OWN.keys()):
        raise ConfigError(f"{taken[0]}: give {OWN[taken[0]]} instead, by which the rest of the recipe goes, too")


def settings_in(overrides: list[str]) -> set[str]:
    return {text.partition("=")[0].strip() for text in overrides}


def keep_or_write(path: Path, text: str) -> None:
    """Raises ConfigError if there is another recipe already: somebody may have edited it."""
    from data.files import write_atomically

    if path.exists() and path.read_text(encoding="utf-8") != text:
        raise ConfigError(
            f"{path} exists with other settings: train it by deepspeed train.py {path}, remove it, or give --recipe another name"
        )
    path.parent.mkdir(parents=True, exist_ok=True)
    write_atomically(path, text)
