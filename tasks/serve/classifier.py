"""Labels and numbers of a fine-tuned model, whose texts are read exactly as its training examples were."""

from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from config import RunConfig
from config.supervised_schema import HEADED, Labelled, Regression, TokenClassification
from data.batch import IGNORE
from data.example_rows import Row, RowEncoder, first_tokens, row_encoder
from data.example_table import table_of
from data.examples import ExampleRows, collate_examples
from tasks.checkpoints import Trained
from tasks.embedding import BATCH_TOKENS, CPU_BATCH_TOKENS, batches
from tasks.evaluation.examples import scored_rows, softmax

UNLIMITED = 1 << 30


@dataclass(frozen=True)
class Reading:
    """A text, or a pair of them, as the model reads it."""

    row: Row
    targets: list[int]
    """Places of the row for which there are scores."""
    words: list[tuple[str, int | None]]
    """Of a text whose words are labelled: each with the place of its first token, if it has one."""

    def __len__(self) -> int:
        return len(self.row.ids)


class Classifier:
    def __init__(self, trained: Trained):
        """`trained` has the head of a task."""
        recipe, objective = trained.examples_recipe, trained.objective
        assert recipe is not None and recipe.data.examples is not None and isinstance(objective, Labelled | Regression)
        self.trained, self.recipe, self.objective = trained, recipe, objective
        self.longest, self.fields = recipe.data.row_length, recipe.data.examples
        self.device = next(trained.model.parameters()).device
        self.batch_tokens = CPU_BATCH_TOKENS if self.device.type == "cpu" else BATCH_TOKENS
        self._encode_whole = row_encoder(_with_rows(self.recipe, UNLIMITED, truncate=False), trained.tokenizer)
        self._encode_cut = row_encoder(_with_rows(self.recipe, self.longest, truncate=True), trained.tokenizer)
        self._begin = len(RowEncoder(self.recipe, trained.tokenizer).begin)

    @property
    def labels(self) -> tuple[str, ...]:
        """Their names; none of a regression."""
        return self.objective.labels if isinstance(self.objective, Labelled) else ()

    @property
    def judges(self) -> Literal["texts", "pairs", "words"]:
        """What it has a label or a number for."""
        if isinstance(self.objective, TokenClassification):
            return "words"
        return "pairs" if self.fields.pair else "texts"

    def read(self, where: str, given: Any, truncate: bool = False) -> Reading:
        """The tokens of a text, of a pair of texts, or of a list of words, whichever the model learned.

        Raises DataError, beginning with `where`, if the entities of a relation are not marked or do not fit.
        """
        record = (where, self._example(given))
        row = self._encode_whole(record)
        if truncate and len(row.ids) > self.longest:
            row = self._encode_cut(record)
        targets = [place for place, label in enumerate(row.labels) if label != IGNORE]
        return Reading(row, targets, self._places(given) if self.judges == "words" else [])

    def scores(self, readings: list[Reading]) -> list[NDArray]:
        """Of each text probabilities [targets, labels], or its number [1, 1]."""
        found: list[NDArray] = [np.zeros((0, len(self.labels)))] * len(readings)
        asked = [number for number, reading in enumerate(readings) if reading.targets]
        if not asked:
            return found
        rows = ExampleRows(table_of([readings[number].row for number in asked]), self.recipe)
        collate = collate_examples(rows, self.recipe, self.trained.tokenizer)
        for group in batches([len(readings[number]) for number in asked], self.batch_tokens):
            number_N = np.array(group)
            batch = collate(rows.locate(np.zeros_like(number_N), number_N), number_N)
            for place, (score_NC, _) in zip(group, scored_rows(self.trained, [batch], self.device), strict=True):
                found[asked[place]] = softmax(score_NC) if self.labels else score_NC
        return found

    def _example(self, given: Any) -> dict[str, Any]:
        """An example of it with any label that is right anywhere: only its place matters."""
        labels = self.labels or ("0",)
        label = next((label for label in labels if not label.startswith("I-")), labels[0])
        if self.judges == "words":
            return {self.fields.label: [label] * len(given), self.fields.text: given}
        first, second = given if self.judges == "pairs" else (given, None)
        return {self.fields.label: label, self.fields.text: first, self.fields.pair: second}

    def _places(self, words: list[str]) -> list[tuple[str, int | None]]:
        _, spans = self.trained.tokenizer.encode_with_places(" ".join(words))
        places = first_tokens(words, spans)
        return [
            (word, None if place is None else self._begin + place) for word, place in zip(words, places, strict=True)
        ]


def classifies(trained: Trained) -> bool:
    """Whether it has labels, or predicts a number, and says how its examples were read."""
    return isinstance(trained.objective, HEADED) and trained.examples_recipe is not None


def _with_rows(recipe: RunConfig, length: int, truncate: bool) -> RunConfig:
    assert recipe.data.examples is not None
    examples = recipe.data.examples.model_copy(update={"truncate": truncate})
    return recipe.model_copy(
        update={"data": recipe.data.model_copy(update={"row_length": length, "examples": examples})}
    )
