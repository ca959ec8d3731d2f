"""Heads that tell labels apart or predict a number: the classes of each architecture, and the names in them."""

from dataclasses import replace
from typing import Any

from config import ConfigError
from config.supervised_schema import Classification, Labelled, Regression, Relation, TokenClassification
from model.hf.architecture import Architecture

TEXT, TOKENS = "SequenceClassification", "TokenClassification"
SCORES = {
    "bert": {TEXT: "classifier", TOKENS: "classifier"},
    "modernbert": {TEXT: "classifier", TOKENS: "classifier"},
    "gpt2": {TEXT: "score", TOKENS: "classifier"},
    "llama": {TEXT: "score", TOKENS: "score"},
    "mistral": {TEXT: "score", TOKENS: "score"},
    "qwen3": {TEXT: "score", TOKENS: "score"},
}
"""By model_type, the name of the last layer in the classes of each task."""
POOLER = {"bert.pooler.dense": "lm_head.dense"}
PROBLEMS = (None, "regression", "single_label_classification")


def with_task_head(theirs: Architecture, objective: Labelled | Regression) -> Architecture:
    """The architecture's class for the task. Raises ConfigError if it has none that computes the same."""
    kind = TOKENS if isinstance(objective, TokenClassification) else TEXT
    if isinstance(objective, Relation):
        raise ConfigError(
            "objective relation has no equivalent in transformers, where no class reads a label at a marker inside a text; "
            "--pooling exports the model without its head"
        )
    if isinstance(objective, Regression) and objective.mean and theirs.auto_class == "AutoModelForCausalLM":
        raise ConfigError(
            f"objective.mean {objective.mean:g} has no equivalent in transformers: its decoders' head of a text has no bias. "
            "--pooling exports the model without its head; train with objective.mean=0 to export a decoder's regression"
        )
    return replace(
        theirs,
        class_name=f"{theirs.base_class.removesuffix('Model')}For{kind}",
        auto_class=f"AutoModelFor{kind}",
        names=theirs.names | POOLER | {SCORES[theirs.model_type][kind]: "lm_head.output"},
    )


def head_settings(objective: Labelled | Regression) -> dict[str, Any]:
    """What config.json says of the head."""
    labels = objective.labels if isinstance(objective, Labelled) else ("LABEL_0",)
    return {
        "id2label": {str(number): label for number, label in enumerate(labels)},
        "label2id": {label: number for number, label in enumerate(labels)},
        "num_labels": len(labels),  # readers other than transformers do not count them
        "problem_type": "single_label_classification" if isinstance(objective, Labelled) else "regression",
        "classifier_dropout": objective.head_dropout,
    }


def read_objective(hf: dict[str, Any]) -> Classification | TokenClassification | Regression | None:
    """The objective that the class of a parsed config.json has a head of, if we have one that computes the same."""
    name = (hf.get("architectures") or [""])[0]
    kind = name.rpartition("For")[2]
    alike = hf.get("problem_type") in PROBLEMS and hf.get("classifier_pooling", "cls") == "cls"
    if kind not in SCORES.get(hf.get("model_type", ""), {}) or not alike:
        return None
    named = hf.get("id2label") or {str(number): f"LABEL_{number}" for number in range(hf.get("num_labels", 2))}
    labels = tuple(label for _, label in sorted(named.items(), key=lambda item: int(item[0])))
    dropout = 0.1 if hf.get("classifier_dropout") is None else hf["classifier_dropout"]
    if len(labels) == 1:
        return Regression(head_dropout=dropout) if kind == TEXT else None
    if len(set(labels)) < len(labels):
        return None
    return (Classification if kind == TEXT else TokenClassification)(labels=labels, head_dropout=dropout)
