"""Settings of what a model reads: corpora in a mixture, or labelled texts."""

from itertools import pairwise
from typing import Annotated, Literal

from pydantic import Field, model_validator

from config.contrastive_schema import PairsSection
from config.section import NonNegativeFloat, NonNegativeInt, PositiveFloat, PositiveInt, Section
from config.supervised_schema import ExamplesSection


class DatasetSection(Section):
    """One prepared corpus of the mixture."""

    path: str
    """Folder written by `python -m data prepare`."""
    weight: PositiveFloat = 1.0
    """Share of this corpus in the mixture, relative to the others."""


class MixturePhase(Section):
    """New mixture weights from a point of the run on."""

    from_tokens: PositiveInt
    """First training token of the phase, rounded up to a whole row."""
    weights: Annotated[tuple[NonNegativeFloat, ...], Field(strict=False)]
    """One weight for each dataset, in the order of `datasets`."""

    @model_validator(mode="after")
    def _check_weights(self) -> "MixturePhase":
        if not any(self.weights):
            raise ValueError("weights are all 0, so that there is nothing to read: give a dataset a share")
        return self


class DataSection(Section):
    """What the model reads."""

    datasets: Annotated[tuple[DatasetSection, ...], Field(strict=False)] = ()
    """Prepared corpora to mix."""
    examples: ExamplesSection | None = None
    """Labelled examples, in place of `datasets`, for the objectives that learn from them."""
    pairs: PairsSection | None = None
    """Labelled pairs of texts, in place of `datasets`, for objective contrastive_pairs."""
    mixture_schedule: Annotated[tuple[MixturePhase, ...], Field(strict=False)] = ()
    """Later phases with other weights."""
    row_length: PositiveInt = 1024
    """Tokens T in one row (sequence)."""
    shuffle: Literal["full", "blocks", "none"] = "full"
    """full: every row of an epoch in random order. blocks: random blocks of `shuffle_block_rows`, then random rows
    within a window of blocks, for slow storage. none: as written."""
    shuffle_block_rows: PositiveInt = 512
    """Rows read in sequence under `shuffle: blocks`."""
    shuffle_window_blocks: PositiveInt = 64
    """Blocks mixed with each other under `shuffle: blocks`."""
    document_masking: bool = False
    """Keep attention and positions inside each document of a row; the first token of a document is not predicted from
    the one before it."""
    prefetch_steps: NonNegativeInt = 4
    """Global batches prepared ahead by a background thread; 0 reads in the foreground."""

    @model_validator(mode="after")
    def _check_schedule(self) -> "DataSection":
        for before, after in pairwise(self.mixture_schedule):
            if before.from_tokens >= after.from_tokens:
                raise ValueError(
                    f"mixture_schedule follows the run, but its from_tokens {before.from_tokens:,} is followed by "
                    f"{after.from_tokens:,}: order them"
                )
        return self
