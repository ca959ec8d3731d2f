"""Labelled examples whose labels have to be read: no word alone tells them, and their place varies."""

import json
import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

Example = dict[str, Any]
FILLERS = ["the", "model", "reads", "a", "row", "of", "tokens", "and", "predicts", "each", "next", "one"]
ANIMALS, DIGITS = ("cat", "dog", "horse", "sheep"), ("zero", "one", "two", "three", "four", "five", "six", "seven")


def fillers(draw: random.Random, most: int = 3) -> list[str]:
    return draw.choices(FILLERS, k=draw.randrange(most + 1))


def between(draw: random.Random, *words: str) -> str:
    """The words in their order, with others around them."""
    return " ".join(part for word in words for part in (*fillers(draw), word)) + " " + " ".join(fillers(draw))


def classification(draw: random.Random, number: int) -> Example:
    """Which of two animals comes first."""
    first, second = draw.sample(ANIMALS[:2], 2)
    return {"text": between(draw, first, second), "label": first}


def pair(draw: random.Random, number: int) -> Example:
    """Whether two texts tell of the same animal."""
    first, second = draw.choice(ANIMALS), draw.choice(ANIMALS)
    if number % 2:
        second = first
    return {"text": between(draw, first), "second": between(draw, second), "label": "yes" if first == second else "no"}


def regression(draw: random.Random, number: int) -> Example:
    """The number that two digits make, a different one in each example."""
    return {"text": between(draw, DIGITS[number // 8], DIGITS[number % 8]), "label": number / 8}


def token_classification(draw: random.Random, number: int) -> Example:
    """Names of one or two words; `one` belongs to a name only after an animal."""
    words: list[str] = []
    tags: list[str] = []
    for animal in draw.sample(ANIMALS, 2):
        before = fillers(draw)
        two = draw.random() < 0.5
        kind = "A" if animal in ANIMALS[:2] else "B"
        words += [*before, "one", *before[:1], animal, *["one"] * two]
        tags += ["O"] * (len(before) + 1 + len(before[:1])) + [f"B-{kind}"] + [f"I-{kind}"] * two
        words.append("reads")
        tags.append("O")
    return {"text": words, "label": tags}


def relation(draw: random.Random, number: int) -> Example:
    """Whether the first entity is who does it."""
    first, second = draw.sample(ANIMALS, 2)
    one, two = f"[E1]{first}[/E1]", f"[E2]{second}[/E2]"
    verb, label = draw.choice([("eats", "subject"), ("is eaten by", "object")])
    if draw.random() < 0.5:
        return {"text": f"{between(draw, one)} {verb} {two}", "label": label}
    other = {"subject": "object", "object": "subject"}[label]
    return {"text": f"{between(draw, two)} {verb} {one}", "label": other}


def writing(draw: random.Random, number: int) -> Example:
    """Three words backwards, a different three in each example."""
    words = [DIGITS[number // 8], draw.choice(ANIMALS), DIGITS[number % 8]]
    return {"text": " ".join(words) + " backwards:", "label": " " + " ".join(reversed(words))}


def conversation(draw: random.Random, number: int) -> Example:
    """Two questions: the second answer is about the words of both."""
    first, second = FILLERS[number // 8], FILLERS[number % 8]
    talk = [("user", first), ("assistant", f"{first} {first}"), ("user", second), ("assistant", f"{second} {first}")]
    return {"messages": [{"role": role, "content": content} for role, content in talk]}


MAKERS: dict[str, Callable[[random.Random, int], Example]] = {
    "classification": classification,
    "pair": pair,
    "regression": regression,
    "token_classification": token_classification,
    "relation": relation,
    "seq2seq": writing,
    "instruction": writing,
    "conversation": conversation,
}


def write_examples(path: Path, task: str, count: int = 64) -> Path:
    draw = random.Random(1)
    path.write_text("".join(json.dumps(MAKERS[task](draw, number)) + "\n" for number in range(count)))
    return path
