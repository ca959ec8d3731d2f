"""Losses and gradients of fine-tuning, on the batches that a run reads, against transformers' models of the same weights."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
import transformers
from torch import Tensor

from config import RunConfig
from data.batch import IGNORE, Batch
from data.training import open_training
from engine.objective import choose_objective, count_targets
from model.convert import to_hf_names
from tests.tasks.hugging_face import BERT, GPT2, T5, save
from tests.tasks.starting import started, write_recipe

Theirs = transformers.PreTrainedModel


def classifier_loss(theirs: Theirs, batch: Batch) -> Tensor:
    """Of a model whose label is at the first token."""
    return theirs(**inputs(batch), labels=torch.from_numpy(batch.labels_BT[:, 0])).loss


def tagger_loss(theirs: Theirs, batch: Batch) -> Tensor:
    return theirs(**inputs(batch), labels=torch.from_numpy(batch.labels_BT)).loss


def writer_loss(theirs: Theirs, batch: Batch) -> Tensor:
    mask_BS = np.arange(batch.source_BS.shape[1]) < batch.source_lengths_B[:, None]
    read = {"input_ids": torch.from_numpy(batch.source_BS), "attention_mask": torch.from_numpy(mask_BS)}
    return theirs(
        **read, decoder_input_ids=torch.from_numpy(batch.tokens_BT), labels=torch.from_numpy(batch.labels_BT)
    ).loss


def answer_loss(theirs: Theirs, batch: Batch) -> Tensor:
    """Each example of the packed rows read by itself, with what is not learned before the answer marked as -100."""
    tokens_N, labels_N = batch.tokens_BT.reshape(-1), batch.labels_BT.reshape(-1)
    total, count = torch.zeros(()), 0
    for begin, end in zip(batch.cu_seqlens, batch.cu_seqlens[1:], strict=False):
        if (labels_N[begin:end] == IGNORE).all():
            continue  # padding at the end of a row
        last = labels_N[begin:end][labels_N[begin:end] != IGNORE][-1:]
        tokens = torch.from_numpy(np.concatenate([tokens_N[begin:end], last]))[None]
        labels = torch.from_numpy(np.concatenate([[IGNORE], labels_N[begin:end]]))[None]
        found = int((labels != IGNORE).sum())
        total, count = total + theirs(input_ids=tokens, labels=labels).loss * found, count + found
    return total / count


def inputs(batch: Batch) -> dict[str, Tensor]:
    mask_BT = np.arange(batch.tokens_BT.shape[1]) < batch.lengths_B[:, None]
    types = {} if batch.token_types_BT is None else {"token_type_ids": torch.from_numpy(batch.token_types_BT)}
    return {"input_ids": torch.from_numpy(batch.tokens_BT), "attention_mask": torch.from_numpy(mask_BT), **types}


def without_dropout(config: Any, **changes: Any) -> Any:
    off = {"hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0, "resid_pdrop": 0.0, "embd_pdrop": 0.0}
    return type(config)(**{**config.to_dict(), **off, "attn_pdrop": 0.0, **changes})


PLAIN = ("objective.head_dropout=0",)
CLASSES = (transformers.BertForSequenceClassification, without_dropout(BERT, num_labels=2))
NUMBERS = (transformers.BertForSequenceClassification, without_dropout(BERT, num_labels=1, problem_type="regression"))
TAGS = (transformers.BertForTokenClassification, without_dropout(BERT, num_labels=5))
T5_WRITER = (transformers.T5ForConditionalGeneration, T5)
GPT_WRITER = (transformers.GPT2LMHeadModel, without_dropout(GPT2))
CASES: dict[str, tuple[tuple[type, Any], Callable[[Theirs, Batch], Tensor], tuple[str, ...]]] = {
    "classification": (CLASSES, classifier_loss, PLAIN),
    "pair": (CLASSES, classifier_loss, PLAIN),
    "regression": (NUMBERS, classifier_loss, (*PLAIN, "objective.mean=0", "objective.scale=1")),
    "token_classification": (TAGS, tagger_loss, PLAIN),
    "seq2seq": (T5_WRITER, writer_loss, ()),
    "instruction": (GPT_WRITER, answer_loss, ()),
}


def first_batch(kind: str, folder: Path, *options: str) -> tuple[RunConfig, Batch]:
    config = write_recipe(folder / "model", kind, folder, *options)
    stream, _ = open_training(config, 0, 1)
    return config, stream.step(0)[0][0]


@pytest.mark.parametrize("kind", CASES)
def test_losses_and_gradients_are_those_of_transformers(tmp_path, kind):
    (make, settings), their_loss, options = CASES[kind]
    theirs = save(tmp_path / "model", make, settings)
    config, batch = first_batch(kind, tmp_path, *options)
    model, _ = started(tmp_path / "model", config)
    if hasattr(theirs, "classifier"):
        model.lm_head.output.load_state_dict(theirs.classifier.state_dict())
    (loss,) = choose_objective(config.objective)(model, batch, torch.device("cpu")).values()
    ours = loss.total / sum(count_targets([batch]).values())
    expected = their_loss(theirs, batch)
    assert abs(ours.item() - expected.item()) <= 1e-5
    ours.backward()
    expected.backward()
    gradients = {n: p.grad for n, p in model.named_parameters() if p.grad is not None and not n.startswith("lm_head.")}
    wanted = dict(theirs.named_parameters())
    prefix = "bert." if hasattr(theirs, "bert") else ""
    compared = to_hf_names(config.model, gradients)
    assert len(compared) > 20
    for name, gradient in compared.items():
        difference = (gradient - wanted[name.removeprefix("" if name in wanted else prefix)].grad).abs().max().item()
        assert difference <= 1e-5, f"{name}: {difference:.1e}"
    if hasattr(theirs, "classifier"):
        torch.testing.assert_close(model.lm_head.output.weight.grad, theirs.classifier.weight.grad, atol=1e-5, rtol=0)
    if kind in ("classification", "pair", "regression"):
        pooler = theirs.bert.pooler.dense.weight.grad
        torch.testing.assert_close(model.lm_head.dense.weight.grad, pooler, atol=1e-5, rtol=0)


def test_class_weights_multiply_losses_as_torch_has_it(tmp_path):
    """The sum of torch's weighted losses, over the number of examples."""
    save(tmp_path / "model", *CLASSES)
    config, batch = first_batch(
        "classification", tmp_path, "objective.class_weights=[0.5, 3]", "objective.head_dropout=0"
    )
    model, _ = started(tmp_path / "model", config)
    (loss,) = choose_objective(config.objective)(model, batch, torch.device("cpu")).values()
    hidden_BTD = torch.stack(
        [
            model(torch.from_numpy(tokens_T[:length])[None])[0, 0]
            for tokens_T, length in zip(batch.tokens_BT, batch.lengths_B, strict=True)
        ]
    )
    scores_BC, labels_B = model.lm_head(hidden_BTD), torch.from_numpy(batch.labels_BT[:, 0])
    expected = torch.nn.CrossEntropyLoss(torch.tensor([0.5, 3.0]), reduction="sum")(scores_BC, labels_B)
    assert loss.total.item() == pytest.approx(expected.item(), abs=1e-4)
    assert loss.total.item() != pytest.approx(F.cross_entropy(scores_BC, labels_B, reduction="sum").item(), abs=0.1)
