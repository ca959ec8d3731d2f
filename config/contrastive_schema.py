"""Learning vectors of texts: random crops of documents, or labelled pairs."""

from typing import Annotated, Literal

from pydantic import Field, model_validator

from config.section import NonNegativeInt, PositiveFloat, PositiveInt, Section, Share


class Similarity(Section):
    """What both contrastive objectives share: texts that belong together get similar vectors, others different ones, by
    InfoNCE (arXiv:1807.03748)."""

    pooling: Literal["cls", "mean", "last"] = "mean"
    """Vector of a row: the hidden state of its first or its last token, or the mean over its tokens."""
    temperature: Annotated[float, Field(ge=0.01)] = 0.05
    """Divides the cosine similarities; where the learnable temperature starts, unless `run.start_from` has learned one."""
    learnable_temperature: bool = False
    """Train the temperature, as a logarithm and never below 0.01 (CLIP, arXiv:2103.00020)."""
    negatives_from: Literal["micro_batch", "global_batch"] = "micro_batch"
    """Whose texts an anchor's positive is told from, on all ranks. micro_batch: of one forward pass. global_batch: of the
    whole step, in the memory of a micro-batch, for one more forward pass (GradCache, arXiv:2101.06983)."""
    mask_duplicates: bool = False
    """An anchor's negatives leave out texts equal to its positive, and positives of equal anchors."""
    dimensions: Annotated[tuple[PositiveInt, ...], Field(strict=False)] = ()
    """Vectors are good at these widths: the loss is the weighted mean over their first so many elements (Matryoshka
    representations, arXiv:2205.13147). Default: the whole vector alone."""
    dimension_weights: Annotated[tuple[PositiveFloat, ...], Field(strict=False)] = ()
    """One weight for each of the `dimensions`. Default: equal ones."""

    @model_validator(mode="after")
    def _check_dimensions(self) -> "Similarity":
        widths, weights = self.dimensions, self.dimension_weights
        if len(set(widths)) < len(widths):
            raise ValueError(f"dimensions {', '.join(map(str, widths))} name a width twice: name each once")
        if weights and len(weights) != len(widths):
            raise ValueError(
                f"dimension_weights has {len(weights)} weights for {len(widths)} dimensions: give one for each, or none"
            )
        return self


class PairsSection(Section):
    """Labelled pairs of texts: each line has an anchor, a positive and any hard negatives.

    .jsonl and .parquet name them `anchor`, `positive` and anything that begins with `negative` (a text or a list of
    texts); .tsv has them in columns of that order, with or without a header.
    """

    train: str
    """File of pairs to learn from: .jsonl, .tsv or .parquet."""
    valid: str = ""
    """The same of those to validate on; needed unless validation.every_steps is 0."""
    tokenizer: str = ""
    """tokenizer.json, or a folder that has one. Default: that of run.start_from."""


class Contrastive(Similarity):
    """Two random crops of one document belong together (Contriever, arXiv:2112.09118)."""

    name: Literal["contrastive"] = "contrastive"
    """Objective."""
    min_crop: Share = 0.1
    """Shortest crop, as a share of its document, or of the part of a long document that is read at a time."""
    max_crop: Share = 0.5
    """Longest crop, likewise. A row holds it: data.row_length - 2 tokens are read of it at most."""

    @model_validator(mode="after")
    def _check_crops(self) -> "Contrastive":
        if self.min_crop > self.max_crop:
            raise ValueError(f"min_crop {self.min_crop:g} is more than max_crop {self.max_crop:g}: lower min_crop")
        return self


class ContrastivePairs(Similarity):
    """Anchor and positive of each line of `data.pairs` belong together (Sentence-BERT, arXiv:1908.10084)."""

    name: Literal["contrastive_pairs"] = "contrastive_pairs"
    """Objective."""
    hard_negatives: NonNegativeInt = 0
    """Hard negatives read of each line, drawn anew each time from a line that has more. Those of all anchors are
    negatives of each."""


def micro_batch_matters(objective: Section) -> bool:
    """Whether the micro-batch decides what is learned: its rows are each other's negatives."""
    return isinstance(objective, Similarity) and objective.negatives_from == "micro_batch"
