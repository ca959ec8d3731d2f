"""Train a model further on labelled examples: writes a recipe for train.py and runs it."""

import argparse
from pathlib import Path
from typing import Any

TASKS = ("classification", "regression", "token_classification", "relation", "seq2seq", "instruction")
ADAPTERS = ("lora", "adalora", "houlsby")

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
        help="field of the text, the prompt or the source (default text); conversations in `messages` are found",
    )
    parser.add_argument("--pair", default="", help="field of the second text of a pair")
    parser.add_argument("--label", default="label", help="field of the label, or of the text to write (default label)")
    parser.add_argument(
        "--tags",
        choices=("iob2", "iob1"),
        default="iob2",
        help="how entities are tagged; iob1 is learned as iob2 (default)",
    )
    parser.add_argument("--epochs", type=int, default=3, help="times that every example is learned from (default 3)")
    parser.add_argument("--balanced", action="store_true", help="weigh labels by how rare they are")
    parser.add_argument(
        "--adapter", choices=ADAPTERS, help="train small modules inside the frozen model, not all of it"
    )
    parser.add_argument("--recipe", type=Path, help="file to write (default TASK-MODEL[-ADAPTER].yaml)")
    parser.add_argument("--write-only", action="store_true", help="write the recipe and stop")


def run(options: argparse.Namespace) -> int:
    import runpy
    import sys

    import yaml

    from config import ConfigError
    from config.load import load_recipe, merged_recipe
    from data.files import write_atomically
    from tasks.finetune_recipe import draft, fit, name_of

    if options.epochs < 1:
        raise ConfigError(f"--epochs {options.epochs}: every example has to be learned from at least once")
    path = options.recipe or Path(f"{name_of(options)}.yaml")
    drafted = path.with_suffix(".draft.yaml")

    def write(sections: dict[str, Any]) -> None:
        write_atomically(drafted, yaml.safe_dump(sections, sort_keys=False, allow_unicode=True, width=120))

    try:
        sections = draft(options)
        write(sections)
        write(fit(sections, load_recipe(str(drafted), options.overrides), options.epochs))
        text = f"# {options.task} from {options.model}\n{merged_recipe(str(drafted), options.overrides)}"
    finally:
        drafted.unlink(missing_ok=True)
    keep_or_write(path, text)
    load_recipe(str(path))
    print(f"{path} is written; deepspeed train.py {path} trains it again, also after changes", flush=True)
    if options.write_only:
        return 0
    sys.argv = [str(TRAIN), str(path)]
    # As `python train.py` does, Ctrl-C included, without importing torch once more.
    runpy.run_path(sys.argv[0], run_name="__main__")
    raise AssertionError("train.py ends the process")


def keep_or_write(path: Path, text: str) -> None:
    """Raises ConfigError if there is another recipe already: somebody may have edited it."""
    from config import ConfigError
    from data.files import write_atomically

    if path.exists() and path.read_text(encoding="utf-8") != text:
        raise ConfigError(
            f"{path} exists with other settings: train it by deepspeed train.py {path}, remove it, or give --recipe another name"
        )
    write_atomically(path, text)
