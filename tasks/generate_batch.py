"""Texts for a file of prompts, in the file's order, whatever is computed together; a stopped command continues."""

import argparse
import io
import json
import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tqdm import tqdm

from config import ConfigError, DataError
from data.example_files import text_lines
from data.files import write_atomically
from data.prompt import Prompt, encode_prompt
from data.records import fields_of
from data.tokenizer import Tokenizer
from engine.sample import fill_masks
from model.beam import beam_search
from model.decoder import Decoder, NewToken, Request
from model.sampling import Sampling, sequence_key
from tasks.checkpoints import Trained
from tasks.embedding import frame
from tasks.generate import SAMPLING, refuse
from tasks.text_stream import StopText, TextStream

SETTINGS = ("model", "dtype", "input", "tokens", *SAMPLING, "stop", "samples", "beams", "logprobs")
"""Options that change what is written."""
WRITERS = ("tokens", *SAMPLING, "stop", "samples", "beams", "logprobs")
"""Those of models that write."""


@dataclass
class Row:
    """A line of the input."""

    number: int
    fields: dict[str, Any]
    prompt: Prompt


def write_file(trained: Trained, options: argparse.Namespace) -> None:
    """Write `options.out`: each input line's fields with "text", or "texts" of several samples, and why they ended.

    Draws are a function of the seed, the line and the sample. Lines are appended to a file beside, which gets its name
    when it is complete. Raises DataError for a bad line before anything is computed, ConfigError for settings that
    have no effect on the model or are not those that an unfinished file was begun with.
    """
    if options.out.exists():
        raise ConfigError(f"{options.out} exists already: give --out another name, or remove it")
    if not options.out.parent.is_dir():
        raise ConfigError(f"--out {options.out}: there is no folder {options.out.parent}: make it first")
    if trained.objective.name == "masked_lm":
        refuse(options, WRITERS, "has no effect on a model that names what [MASK] hides: leave it out")
    options.seed = options.seed or 0
    begin, _ = frame(trained)
    rows = [
        Row(n, fields, encode_prompt(text, trained.objective, trained.tokenizer, begin))
        for n, (fields, text) in enumerate(read(options.input))
    ]
    check_lengths(rows, options, trained.config.max_positions)
    partial, settings = (options.out.with_name(f".{options.out.name}.{end}") for end in ("partial", "settings.json"))
    done = finished_lines(partial, settings, options)
    texts = results(trained, rows[done:], options)
    with open(partial, "a", encoding="utf-8") as file, tqdm(total=len(rows), initial=done, unit="prompt") as bar:
        for row, result in zip(rows[done:], texts, strict=True):
            file.write(json.dumps(row.fields | result, ensure_ascii=False) + "\n")
            file.flush()
            bar.update()
    os.replace(partial, options.out)
    settings.unlink()
    print(f"{options.out}: {len(rows):,} prompts")


def results(trained: Trained, rows: list[Row], options: argparse.Namespace) -> Iterator[dict[str, Any]]:
    """What is written of each row."""
    model, tokenizer = trained.model, trained.tokenizer
    if trained.objective.name == "masked_lm":
        return masks(model, tokenizer, rows)
    if options.beams:
        return beams(model, tokenizer, rows, options)
    return in_order(continuations(model, tokenizer, rows, options), rows[0].number if rows else 0)


def read(path: Path) -> Iterator[tuple[dict[str, Any], str]]:
    """Fields and prompt of each line. Raises DataError naming the line that has none."""
    if not path.is_file():
        raise DataError(f"{path}: no such file")
    for number, line in text_lines(path):
        if path.suffix != ".jsonl":
            yield {"prompt": line}, line
            continue
        try:
            fields = fields_of(line)
        except ValueError as error:
            raise DataError(f"{path}:{number}: {error}") from None
        if not isinstance(fields.get("prompt"), str):
            raise DataError(
                f'{path}:{number}: no text "prompt"; a line is {{"prompt": "Once upon"}}, with other fields as you like'
            )
        yield fields, fields["prompt"]


def check_lengths(rows: list[Row], options: argparse.Namespace, longest: int) -> None:
    """Raises DataError naming the first line that does not fit. Beams need room for all tokens; the last takes none."""
    more = options.tokens - 1 if options.beams else 0
    for row in rows:
        length = max(len(row.prompt.tokens) + more, len(row.prompt.source or ()))
        if length > longest:
            cure = "shorten it, or lower --tokens" if more else "shorten it"
            raise DataError(
                f"{options.input}:{row.number + 1}: {length} tokens, more than the model's {longest}: {cure}"
            )


def finished_lines(partial: Path, settings: Path, options: argparse.Namespace) -> int:
    """Lines that an earlier command with the same settings has written; what it broke off is cut away."""
    wanted = {name: value if isinstance(value := getattr(options, name), list) else str(value) for name in SETTINGS}
    if partial.exists() and settings.exists():
        before = json.loads(settings.read_text())
        changed = [
            f"{name} {before.get(name)} → {wanted[name]}" for name in SETTINGS if before.get(name) != wanted[name]
        ]
        if changed:
            raise ConfigError(
                f"{options.out} was begun with other settings ({', '.join(changed)}): use those, or remove {partial}"
            )
    else:
        partial.unlink(missing_ok=True)
    write_atomically(settings, json.dumps(wanted))
    if not partial.exists():
        return 0
    content = partial.read_bytes()
    whole = content[: content.rfind(b"\n") + 1]
    os.truncate(partial, len(whole))
    return whole.count(b"\n")


class _Text:
    """One continuation as it grows."""

    def __init__(self, row: Row, tokenizer: Tokenizer, stop: list[str]):
        self.row, self.out = row, io.StringIO()
        self.stream = TextStream(tokenizer, self.out, stop)
        self.logprobs: list[float | None] = []

    def add(self, new: NewToken) -> str | None:
        """Why the text has ended, if it has."""
        if new.reason != "stop":
            self.logprobs.append(new.logprob)
            try:
                self.stream.add(0, new.token)
            except StopText:
                return "stop"
        return new.reason

    def finish(self) -> str:
        self.stream.finish()
        return self.out.getvalue()


def continuations(
    model: Any, tokenizer: Tokenizer, rows: list[Row], options: argparse.Namespace
) -> Iterator[tuple[int, dict[str, Any]]]:
    """(row number, result) as soon as all samples of a row have ended, `batch_size` texts at a time."""
    decoder, waiting = Decoder(model), iter(rows)
    texts: dict[int, _Text] = {}
    results: dict[int, dict[int, tuple[str, str, list[float | None]]]] = {}
    following = next(waiting, None)
    while following or len(decoder):
        while following and (not len(decoder) or len(decoder) + options.samples <= options.batch_size):
            numbers = decoder.add(make_request(following, options))
            texts |= {number: _Text(following, tokenizer, options.stop) for number in numbers}
            results[following.number] = dict.fromkeys(numbers, ("", "", []))
            following = next(waiting, None)
        for new in decoder.step():
            text = texts[new.sequence]
            if reason := text.add(new):
                decoder.remove(new.sequence)
                row = text.row.number
                results[row][new.sequence] = (text.finish(), reason, text.logprobs)
                del texts[new.sequence]
                if not texts.keys() & results[row].keys():
                    yield row, as_fields(list(results.pop(row).values()), options)


def make_request(row: Row, options: argparse.Namespace) -> Request:
    own = {name: getattr(options, name) for name in SAMPLING} | {"seed": sequence_key(options.seed, row.number)}
    return Request(
        row.prompt.tokens,
        row.prompt.source,
        options.tokens,
        row.prompt.stop_ids,
        Sampling(**own),
        options.samples,
        0 if options.logprobs else None,
    )


def as_fields(samples: list[tuple[str, str, list[float | None]]], options: argparse.Namespace) -> dict[str, Any]:
    texts, reasons, logprobs = (list(values) for values in zip(*samples, strict=True))
    names = {"text": texts, "reason": reasons} | ({"logprobs": logprobs} if options.logprobs else {})
    if options.samples == 1:
        return {name: values[0] for name, values in names.items()}
    return {f"{name.removesuffix('s')}s": values for name, values in names.items()}


def in_order(results: Iterator[tuple[int, dict[str, Any]]], first: int) -> Iterator[dict[str, Any]]:
    """The results by row number; one that is early waits for those before it."""
    early: dict[int, dict[str, Any]] = {}
    for number, result in results:
        early[number] = result
        while first in early:
            yield early.pop(first)
            first += 1


def beams(model: Any, tokenizer: Tokenizer, rows: list[Row], options: argparse.Namespace) -> Iterator[dict[str, Any]]:
    """The most probable text of each row and its score, as many rows at a time as their beams fit in `batch_size`."""
    together = max(1, options.batch_size // options.beams)
    for first in range(0, len(rows), together):
        prompts = [row.prompt for row in rows[first : first + together]]
        found = beam_search(
            model,
            [prompt.tokens for prompt in prompts],
            sources=[prompt.source for prompt in prompts if prompt.source is not None],
            num_beams=options.beams,
            max_new_tokens=options.tokens,
            stop_ids=prompts[0].stop_ids,
        )
        yield from ({"text": tokenizer.decode(tokens), "score": score} for tokens, score in found)


def masks(model: Any, tokenizer: Tokenizer, rows: list[Row]) -> Iterator[dict[str, Any]]:
    """What each row's [MASK]s hide."""
    device = model.embed_tokens.weight.device
    for row in rows:
        yield {"text": fill_masks(model, row.prompt, tokenizer, device)}
