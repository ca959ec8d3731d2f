"""`python -m data prepare | inspect | verify`: make, look at and check datasets."""

import argparse
import os
import sys
from pathlib import Path

from config import DataError


def main(arguments: list[str] | None = None) -> int:
    """Run one command. Returns the exit code: 0 done, 1 damage found, 2 a wrong input, 130 interrupted."""
    options = _parser().parse_args(arguments)
    try:
        return int(options.run(options))
    except (DataError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("\nstopped; what is finished is kept: the same command goes on from here", file=sys.stderr)
        return 130


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m data", description="Make, look at and check datasets.")
    commands = parser.add_subparsers(metavar="COMMAND", required=True)
    _add_prepare(commands.add_parser("prepare", help="raw text -> token shards", description=PREPARE_HELP))
    inspect = commands.add_parser("inspect", help="counts, lengths and samples of a dataset")
    inspect.add_argument("folder", type=Path, metavar="DIR")
    inspect.add_argument("--documents", type=_natural, default=3, metavar="N", help="samples to decode (default 3)")
    inspect.set_defaults(run=_inspect)
    verify = commands.add_parser("verify", help="read every byte of a dataset and check it")
    verify.add_argument("folder", type=Path, metavar="DIR")
    verify.set_defaults(run=_verify)
    return parser


PREPARE_HELP = """Turn sources into a dataset folder: token shards, tokenizer.json and manifest.json. A SOURCE is a .txt,
.jsonl, .jsonl.gz, .jsonl.zst or .parquet file, a folder of them, 'stdlib' (the sources and documentation of the running
Python) or hf:NAME_OR_PATH[:config][:split] (whatever `datasets` loads). Stopped or killed, the same command goes on."""


def _add_prepare(prepare: argparse.ArgumentParser) -> None:
    add = prepare.add_argument
    add("sources", nargs="+", metavar="SOURCE")
    add("--out", type=Path, required=True, metavar="DIR", help="the dataset's folder")
    tokenizer = prepare.add_mutually_exclusive_group()
    tokenizer.add_argument(
        "--vocab-size", type=int, default=32768, metavar="N", help="train a byte-level BPE of N tokens (default 32768)"
    )
    tokenizer.add_argument(
        "--tokenizer",
        metavar="PATH",
        help="use this one: a tokenizer.json, a folder with it or with GPT-2's two files, a .tiktoken file, or 'bytes'",
    )
    add("--sample-mb", type=_positive, default=64, metavar="M", help="MiB of text to train it on (default 64)")
    held_out = prepare.add_mutually_exclusive_group()
    held_out.add_argument(
        "--split-valid", type=_fraction, default=0.005, metavar="F", help="share of documents held out (default 0.005)"
    )
    held_out.add_argument(
        "--split-valid-tail", type=_fraction, metavar="F", help="hold out the last share of each document's characters"
    )
    add("--normalise", choices=("nfc", "nfkc", "none"), default="nfc", help="Unicode form (default nfc)")
    add("--text-field", default="text", metavar="NAME", help="field or column with the text (default text)")
    add(
        "--txt-documents",
        choices=("file", "paragraph", "line"),
        default="file",
        help="what one document of a .txt file is (default file)",
    )
    add("--skip-bad-lines", action="store_true", help="leave malformed .jsonl lines out and count them")
    add("--keep-duplicates", action="store_true", help="keep documents with the same text")
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    add("--workers", type=_positive, default=cores, metavar="N", help=f"processes (default {cores}, one for each core)")
    add("--overwrite", action="store_true", help="replace what was prepared in DIR with other arguments")
    prepare.set_defaults(run=_prepare)


def _prepare(options: argparse.Namespace) -> int:
    from data.documents import ReadOptions
    from data.prepare import PrepareOptions, prepare

    prepare(
        PrepareOptions(
            sources=tuple(options.sources),
            out=options.out,
            vocab_size=options.vocab_size,
            tokenizer=options.tokenizer,
            sample_mb=options.sample_mb,
            split_valid=options.split_valid if options.split_valid_tail is None else options.split_valid_tail,
            valid_tail=options.split_valid_tail is not None,
            normalise=options.normalise,
            keep_duplicates=options.keep_duplicates,
            read=ReadOptions(options.text_field, options.txt_documents, options.skip_bad_lines),
            workers=options.workers,
            overwrite=options.overwrite,
        ),
        say=lambda line: print(line, flush=True),
    )
    print(f"next: python -m data inspect {options.out}")
    return 0


def _inspect(options: argparse.Namespace) -> int:
    from data.report import report

    print(report(options.folder, options.documents))
    return 0


def _verify(options: argparse.Namespace) -> int:
    from data.verify import verify

    result = verify(options.folder)
    for problem in result.problems:
        print(f"error: {problem}", file=sys.stderr)
    print(result)
    return 1 if result.problems else 0


def _natural(text: str) -> int:
    if not text.isdigit():
        raise argparse.ArgumentTypeError(f"{text!r} is not a whole number from 0 on")
    return int(text)


def _positive(text: str) -> int:
    if _natural(text) < 1:
        raise argparse.ArgumentTypeError(f"{text!r} is not a whole number from 1 on")
    return int(text)


def _fraction(text: str) -> float:
    try:
        value = float(text)
    except ValueError:
        value = -1.0
    if not 0 <= value < 1:
        raise argparse.ArgumentTypeError(f"{text!r} is not a number from 0 to below 1")
    return value


if __name__ == "__main__":
    sys.exit(main())
