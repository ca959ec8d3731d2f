"""Fine-tuned models on labelled examples: the full report of what validation sums up while training.

Letters: B rows, T row length, D width, N targets, C labels.
"""

from collections.abc import Iterator
from dataclasses import replace

import numpy as np
import torch
from numpy.typing import NDArray

from config import ConfigError, RunConfig
from config.load import new_recipe
from config.objective_schema import ObjectiveConfig
from config.supervised_schema import Instruction, Labelled, Regression, SequenceToSequence, TokenClassification
from data.batch import IGNORE, Batch
from data.example_table import encode_table
from data.examples import batches_in_order
from engine.objective import layout_of, to_device
from model import GPT, T5, generate
from tasks import metrics
from tasks.checkpoints import Trained
from tasks.evaluation.result import Result, about
from tasks.evaluation.vectors import classified

ROWS = 32
MOST_NEW_TOKENS = 128
"""Of an answer to a prompt."""
READING = ("data.row_length", "data.examples.")
"""Settings of a recipe that say how examples are read, and how these begin."""


def on_examples(trained: Trained, path: str, device: torch.device, settings: list[str] | None = None) -> Result:
    """Report on a file in the format and with the fields of the model's training examples, or with other `settings`
    (`data.examples.text=review`).

    Raises ConfigError if the model was not trained on examples; DataError for a bad line, a label that was not seen in
    training, or a text that is too long.
    """
    if trained.examples_recipe is None:
        raise ConfigError(
            "--examples needs a run that was fine-tuned on examples (data.examples in its recipe), or its export"
        )
    recipe = with_settings(trained.examples_recipe, settings) if settings else trained.examples_recipe
    objective = recipe.objective
    if isinstance(objective, Instruction):
        recipe = recipe.model_copy(update={"objective": objective.model_copy(update={"packing": False})})
    table = encode_table(path, recipe, trained.tokenizer)
    batches = batches_in_order(table, recipe, trained.tokenizer, ROWS)
    if isinstance(objective, SequenceToSequence | Instruction):
        references, written = written_texts(trained, batches, device)
        values = metrics.generation(references, written)
        decoding = {"new_tokens": most_new_tokens(objective), **metrics.signatures(references)}
        return Result(objective.name, path, "chrf", values | {"examples": len(written)}, decoding)
    rows = list(scored_rows(trained, batches, device))
    score_NC, label_N = (np.concatenate(parts) for parts in zip(*rows, strict=True))
    if isinstance(objective, Regression):
        with about(path):
            values = metrics.regression(label_N, score_NC[:, 0])
        return Result(objective.name, path, "spearman", values | {"examples": len(rows)})
    assert isinstance(objective, Labelled)
    result = classified(objective.name, path, label_N, softmax(score_NC), objective.labels, {})
    if isinstance(objective, TokenClassification):
        result = replace(result, metrics=result.metrics | {"examples": len(rows), "words": len(label_N)})
        return entities(result, objective.labels, rows) if objective.has_entities else result
    return result


def with_settings(recipe: RunConfig, settings: list[str]) -> RunConfig:
    """The recipe with other ways to read examples. Raises ConfigError for a setting that changes anything else."""
    if other := [setting for setting in settings if not setting.startswith(READING)]:
        raise ConfigError(
            f"--set {other[0]}: the model is trained; set only how examples are read ({', '.join(READING)}…)"
        )
    return new_recipe(recipe.model_dump(mode="json"), "the run's recipe", settings)[0]


def scored_rows(
    trained: Trained, batches: list[Batch], device: torch.device
) -> Iterator[tuple[NDArray[np.float32], NDArray]]:
    """Scores [N, C] and labels [N] of each example's targets; fillers have none."""
    with torch.no_grad():
        for batch in batches:
            assert batch.labels_BT is not None
            types = {} if batch.token_types_BT is None else {"token_types_BT": to_device(batch.token_types_BT, device)}
            hidden_BTD = trained.model(to_device(batch.tokens_BT, device), layout=layout_of(batch, device), **types)
            for row, labels_T in enumerate(batch.labels_BT):
                if (targets := np.flatnonzero(labels_T != IGNORE)).size:
                    score_NC = trained.model.lm_head(hidden_BTD[row, torch.as_tensor(targets, device=device)])
                    yield score_NC.float().cpu().numpy(), labels_T[targets]


def written_texts(trained: Trained, batches: list[Batch], device: torch.device) -> tuple[list[str], list[str]]:
    """References, and what the model writes greedily in their place: of a conversation its last answer."""
    tokenizer, model, most = trained.tokenizer, trained.model, most_new_tokens(trained.objective)
    assert isinstance(model, GPT | T5)
    references, written = [], []
    for batch in batches:
        assert batch.labels_BT is not None
        rows = [row for row, labels_T in enumerate(batch.labels_BT) if (labels_T != IGNORE).any()]
        spans = [last_answer(batch.labels_BT[row]) for row in rows]
        for row, (first, end) in zip(rows, spans, strict=True):
            references.append(tokenizer.decode(up_to(tokenizer.eod_id, batch.labels_BT[row, first:end].tolist())))
        # A prompt ends where the first label is predicted: in a decoder of its own after the start token.
        prompts = [batch.tokens_BT[row, : first + 1].tolist() for row, (first, _) in zip(rows, spans, strict=True)]
        sources = None
        if batch.source_BS is not None:
            lengths_B = batch.source_lengths_B
            assert lengths_B is not None
            sources = [batch.source_BS[row, : lengths_B[row]].tolist() for row in rows]
        made = generate(
            model, prompts, sources=sources, max_new_tokens=most, stop_ids=(tokenizer.eod_id,), temperature=0.0
        )
        written += [tokenizer.decode(tokens) for tokens in made.new_tokens]
    return references, written


def most_new_tokens(objective: ObjectiveConfig) -> int:
    """Of an answer: as many as it was trained for, where the objective says."""
    return objective.target_length if isinstance(objective, SequenceToSequence) else MOST_NEW_TOKENS


def last_answer(labels_T: NDArray) -> tuple[int, int]:
    """Where the labels of a row's only answer, or of a conversation's last one, begin and end."""
    place_N = np.flatnonzero(labels_T != IGNORE)
    gap_N = np.flatnonzero(np.diff(place_N) > 1)
    return int(place_N[gap_N[-1] + 1 if gap_N.size else 0]), int(place_N[-1]) + 1


def entities(result: Result, labels: tuple[str, ...], rows: list[tuple[NDArray[np.float32], NDArray]]) -> Result:
    """The result of a tagger with the scores of its entities."""
    true = [[labels[number] for number in label_N] for _, label_N in rows]
    predicted = [[labels[number] for number in score_NC.argmax(1)] for score_NC, _ in rows]
    whole = metrics.sequence(true, predicted)
    values = {f"entity_{name}": whole[name] for name in ("precision", "recall", "f1")}
    return replace(
        result, headline="entity_f1", metrics=values | result.metrics, entities=metrics.entity_report(true, predicted)
    )


def softmax(score_NC: NDArray[np.float32]) -> NDArray[np.float64]:
    exponential_NC = np.exp(score_NC.astype(np.float64) - score_NC.max(1, keepdims=True))
    return exponential_NC / exponential_NC.sum(1, keepdims=True)


def up_to(end_id: int, tokens: list[int]) -> list[int]:
    """The tokens before the first end token: some chat templates write more behind it."""
    return tokens[: tokens.index(end_id)] if end_id in tokens else tokens
