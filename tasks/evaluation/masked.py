"""Pseudo-perplexity of a masked language model (Salazar et al. 2020, arXiv:1910.14659): each token is hidden in turn and
predicted from all others of its window.

Letters: M hidden tokens, T row length.
"""

from collections.abc import Iterable, Sequence

import torch

from data.tokenizer import Tokenizer
from model import Bert
from model.generation import inference
from tasks.evaluation.language import BATCH_TOKENS
from tasks.metrics import likelihood


def pseudo_perplexity(
    model: Bert,
    documents: Iterable[tuple[Sequence[int], int]],
    tokenizer: Tokenizer,
    *,
    window: int,
    device: torch.device,
) -> dict[str, float]:
    """Of documents, each its tokens and the UTF-8 bytes of its text, in disjoint windows with [CLS] and [SEP].

    A window of n tokens takes n rows. Raises DataError if there is no token.
    """
    cls_id, sep_id, mask_id = tokenizer.ids_of(["[CLS]", "[SEP]", "[MASK]"])
    nats, total, text_bytes = 0.0, 0, 0
    with inference(model):
        for tokens, size in documents:
            for begin in range(0, len(tokens), window - 2):
                row = torch.tensor([cls_id, *tokens[begin : begin + window - 2], sep_id], device=device)
                nats += _hidden_in_turn(model, row, mask_id)
            total, text_bytes = total + len(tokens), text_bytes + size
    values = likelihood(nats, total, text_bytes)
    return {
        "pseudo_loss": values["loss"],
        "pseudo_perplexity": values["perplexity"],
        "tokens": total,
        "text_bytes": text_bytes,
    }


def _hidden_in_turn(model: Bert, row_T: torch.Tensor, mask_id: int) -> float:
    """Sum of the cross-entropies, in nats, of all tokens of a row but its first and last."""
    nats = 0.0
    for places_M in torch.arange(1, len(row_T) - 1, device=row_T.device).split(max(1, BATCH_TOKENS // len(row_T))):
        rows_M = torch.arange(len(places_M), device=row_T.device)
        tokens_MT = row_T.repeat(len(places_M), 1)
        tokens_MT[rows_M, places_M] = mask_id
        hidden_MTD = model(tokens_MT)
        assert isinstance(hidden_MTD, torch.Tensor)
        logits_MV = model.logits(hidden_MTD[rows_M, places_M]).float()
        nats += torch.nn.functional.cross_entropy(logits_MV, row_T[places_M], reduction="sum").item()
    return nats
