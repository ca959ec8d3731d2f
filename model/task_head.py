"""Heads that tell labels apart, or predict a number, in place of the language model's.

Letters: N tokens, D width, C labels (1 for a number).
"""

from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from config import TransformerConfig
from config.objective_schema import ObjectiveConfig
from config.supervised_schema import HEADED, Labelled, Regression, TokenClassification
from model.block import activate
from model.head import IGNORE
from model.norm import make_norm


class TaskLoss(NamedTuple):
    """A loss, and what it was computed from. Only targets other than IGNORE count."""

    total: Tensor
    """Sum over all targets: of cross-entropies in nats, times their classes' weights, or of squared errors; float32."""
    count: Tensor  # type: ignore[assignment]  # hides tuple.count
    """Number of targets, int64 scalar."""
    predicted_N: Tensor
    """The likeliest label, or the number."""
    labels_N: Tensor


class TaskHead(nn.Module):
    """Scores of the labels, or a number, from a token's hidden state; what Hugging Face's classes of the same task compute.

    | model      | a token speaks for a whole text      | each token has a label               |
    |------------|--------------------------------------|--------------------------------------|
    | BERT       | pooler: tanh(dense) (1810.04805), output | output                           |
    | ModernBERT | norm(activation(transform)), output  | norm(activation(transform)), output  |
    | decoders   | output without bias                  | output                               |
    """

    def __init__(self, config: TransformerConfig, objective: Labelled | Regression):
        super().__init__()
        self.objective, self.activation = objective, config.activation
        width, alone = config.hidden_size, not isinstance(objective, TokenClassification)
        encoder, rotary = config.family == "bert", config.position == "rotary"
        self.dropout = nn.Dropout(objective.head_dropout)
        self.dense = nn.Linear(width, width) if encoder and not rotary and alone else None
        self.transform = nn.Linear(width, width, bias=config.bias) if encoder and rotary else None
        self.norm = make_norm(config) if encoder and rotary else nn.Identity()
        outputs = len(objective.labels) if isinstance(objective, Labelled) else 1
        self.output = nn.Linear(width, outputs, bias=encoder or not alone)

    def forward(self, hidden_ND: Tensor, labels_N: Tensor | None = None) -> TaskLoss | Tensor:
        """Loss if there are labels, else scores [N, C]. Tokens may as well come in rows: [B, T, D] and [B, T]."""
        if self.dense is not None:
            hidden_ND = torch.tanh(self.dense(self.dropout(hidden_ND)))
        elif self.transform is not None:
            hidden_ND = self.norm(activate(self.transform(self.dropout(hidden_ND)), self.activation))
        scores_NC = self.output(self.dropout(hidden_ND)).float()
        if isinstance(self.objective, Regression):
            scores_NC = self.objective.mean + self.objective.scale * scores_NC
        return scores_NC if labels_N is None else self.loss(scores_NC.flatten(0, -2), labels_N.flatten())

    @torch.no_grad()
    def absorb_scale(self) -> None:
        """Let the output layer alone give numbers in the examples' unit. Only a layer with a bias can have their mean."""
        objective = self.objective
        if isinstance(objective, Regression):
            self.output.weight *= objective.scale
            if self.output.bias is not None:
                self.output.bias.mul_(objective.scale).add_(objective.mean)
            self.objective = objective.model_copy(update={"mean": 0.0, "scale": 1.0})

    def loss(self, scores_NC: Tensor, labels_N: Tensor) -> TaskLoss:
        counts_N = labels_N != IGNORE
        if isinstance(self.objective, Regression):
            predicted_N = scores_NC.squeeze(1)
            errors_N = ((predicted_N - labels_N) / self.objective.scale).masked_fill(~counts_N, 0)
            return TaskLoss(errors_N.square().sum(), counts_N.sum(), predicted_N.detach(), labels_N)
        weights = self.objective.class_weights
        weight_C = torch.tensor(weights, device=scores_NC.device, dtype=torch.float32) if weights else None
        total = F.cross_entropy(scores_NC, labels_N, weight_C, ignore_index=IGNORE, reduction="sum")
        return TaskLoss(total, counts_N.sum(), scores_NC.detach().argmax(1), labels_N)


def set_task_head(model: nn.Module, objective: ObjectiveConfig) -> None:
    """Replace the language model's head if the objective has one of its own. Its weights still have to be filled."""
    if isinstance(objective, HEADED):
        model.lm_head = TaskHead(model.config, objective)  # type: ignore[arg-type]  # nn.Module types no attributes
