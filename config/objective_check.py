"""What an objective asks of the other sections of a recipe."""

from typing import TYPE_CHECKING, Any

from config.contrastive_schema import ContrastivePairs, PairsSection, Similarity
from config.objective_schema import OBJECTIVES, CausalLM, MaskedLM, row_shape
from config.supervised_schema import ExamplesSection, Instruction, Regression, Supervised, TokenClassification

if TYPE_CHECKING:
    from config.schema import RunConfig


METRICS = {
    "classification": ("loss", "accuracy", "f1"),
    "relation": ("loss", "accuracy", "f1"),
    "token_classification": ("loss", "accuracy", "f1"),
    "regression": ("loss", "pearson", "spearman"),
}
"""What validation can be judged by; the other objectives have a loss alone. See engine/scores.py."""


def fill_objective(values: Any) -> Any:
    """A recipe's values with what it leaves out: the objective that the model's family is for, the pooler that pairs need."""
    if not isinstance(values, dict):
        return values
    model, objective = values.get("model"), values.get("objective") or {}
    family = model.get("family", "gpt") if isinstance(model, dict) else getattr(model, "family", "gpt")
    if isinstance(objective, dict) and isinstance(family, str) and family in OBJECTIVES:
        values = {**values, "objective": {"name": OBJECTIVES[family][0], **objective}}
    if isinstance(model, dict) and family == "bert":
        pairs = objective.get("pairs") if isinstance(objective, dict) else getattr(objective, "pairs", None)
        values = {**values, "model": {"pooler": pairs in ("nsp", "sop"), **model}}
    return values


def check_objective(config: "RunConfig") -> None:
    """Raise ValueError if the model cannot learn the objective or the rows cannot serve it."""
    objective, family = config.objective, config.model.family
    if objective.name not in OBJECTIVES[family]:
        raise ValueError(
            f"objective.name {objective.name} is not for model.family {family}: set it to "
            f"{' or '.join(OBJECTIVES[family])}, or give a model of family "
            f"{' or '.join(name for name, names in OBJECTIVES.items() if objective.name in names)}"
        )
    if isinstance(objective, Similarity):
        _check_vectors(config, objective)
    pairs = objective.pairs if isinstance(objective, MaskedLM) else "none"
    if getattr(config.model, "pooler", False) != (pairs != "none"):
        raise ValueError(
            f"model.pooler {str(pairs == 'none').lower()} does not go with objective.pairs {pairs}: a pooler learns from "
            "pairs alone, and they are told from what it makes; leave model.pooler out"
        )
    _check_rows(config, pairs)
    _check_source(config)
    _check_examples(config)


def _check_vectors(config: "RunConfig", objective: Similarity) -> None:
    if objective.pooling == "cls" and config.model.family == "gpt":
        raise ValueError(
            "objective.pooling cls is the first token's state, which under model.family gpt has seen nothing else: "
            "set it to last or mean"
        )
    if objective.dimensions and max(objective.dimensions) > config.model.hidden_size:
        raise ValueError(
            f"objective.dimensions has {max(objective.dimensions)}, but vectors are model.hidden_size "
            f"{config.model.hidden_size} wide: name smaller ones"
        )


def _check_source(config: "RunConfig") -> None:
    """Labelled examples or pairs for the objectives that learn from them, prepared corpora for the others."""
    objective, data = config.objective, config.data
    wanted = "pairs" if isinstance(objective, ContrastivePairs) else "datasets"
    wanted = "examples" if isinstance(objective, Supervised) else wanted
    others = [name for name in ("datasets", "examples", "pairs") if name != wanted and getattr(data, name)]
    if others or not getattr(data, wanted):
        leave = f", and leave data.{others[0]} out" if others else ""
        raise ValueError(f"data.{wanted} is what objective.name {objective.name} learns from: give it{leave}")
    if labelled := data.examples or data.pairs:
        _check_labelled(config, wanted, labelled)


def _check_labelled(config: "RunConfig", name: str, labelled: ExamplesSection | PairsSection) -> None:
    if not (labelled.tokenizer or config.run.start_from):
        raise ValueError(
            f"data.{name}.tokenizer is needed: name a tokenizer.json, or a model in run.start_from that brings its own"
        )
    if config.validation.every_steps and not labelled.valid:
        raise ValueError(f"data.{name}.valid is needed to validate: give a file, or set validation.every_steps to 0")


def _check_examples(config: "RunConfig") -> None:
    objective, data = config.objective, config.data
    if data.examples is None:
        if config.validation.metric != "loss":
            raise ValueError(
                f"validation.metric {config.validation.metric}: objective.name {objective.name} reports loss alone: leave it out"
            )
        return
    if data.examples.pair and not isinstance(objective, Regression) and objective.name != "classification":
        raise ValueError(f"data.examples.pair: objective.name {objective.name} reads one text: leave it out")
    if data.examples.messages and objective.name != "instruction":
        raise ValueError(
            f"data.examples.messages: objective.name {objective.name} learns no conversations: leave it out"
        )
    if data.examples.chat_template and not data.examples.messages:
        raise ValueError("data.examples.chat_template is for conversations: name their field in data.examples.messages")
    if data.examples.tags != "iob2" and objective.name != "token_classification":
        raise ValueError(f"data.examples.tags: objective.name {objective.name} learns no tags of words: leave it out")
    if isinstance(objective, TokenClassification) and objective.has_entities:
        _check_entities(objective.labels)
    if config.validation.metric not in (known := METRICS.get(objective.name, ("loss",))):
        raise ValueError(
            f"validation.metric {config.validation.metric} is none of {', '.join(known)}, which objective.name "
            f"{objective.name} reports: name one of these"
        )
    if config.engine.sequence_parallel > 1:
        raise ValueError("engine.sequence_parallel cuts rows, and labelled examples are rows of their own: set it to 1")


def _check_entities(labels: tuple[str, ...]) -> None:
    for name in labels:
        if name != "O" and not (name[:2] in ("B-", "I-") and name[2:]):
            raise ValueError(
                f"objective.labels has {name} beside tags that begin with B-, but entities are learned in IOB2, from O, B-TYPE "
                "and I-TYPE alone: mend the examples; of BIOES, E- becomes I- and S- becomes B-"
            )


def _check_rows(config: "RunConfig", pairs: str) -> None:
    objective, row_length = config.objective, config.data.row_length
    shape = row_shape(objective, row_length)
    if shape.decoder > config.model.max_positions and isinstance(objective, Supervised):
        raise ValueError(
            f"objective.target_length {shape.decoder} is more than model.max_positions {config.model.max_positions}: lower it"
        )
    if shape.decoder > config.model.max_positions:
        raise ValueError(
            f"objective.noise_density cuts {shape.decoder} tokens for the decoder out of a row of data.row_length "
            f"{row_length}, more than model.max_positions {config.model.max_positions}: lower it or row_length"
        )
    packs = isinstance(objective, CausalLM) or (isinstance(objective, MaskedLM) and pairs == "none")
    if config.data.document_masking and isinstance(objective, Instruction):
        raise ValueError(
            "data.document_masking: objective.name instruction keeps the examples of a row apart by itself: leave it out"
        )
    if config.data.document_masking and not packs:
        kind = objective.name if pairs == "none" else f"{objective.name} with pairs {pairs}"
        raise ValueError(
            f"data.document_masking separates documents packed into a row, and objective {kind} packs none that could be "
            "separated: set it to false"
        )
