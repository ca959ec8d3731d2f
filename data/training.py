"""What a recipe trains on and validates on: corpora, labelled examples or labelled pairs."""

from config import ConfigError, RunConfig
from data.batch import Batch
from data.examples import examples_tokenizer, open_example_stream, open_held_out_examples
from data.pair_examples import open_held_out_pairs, open_pair_stream, pairs_tokenizer
from data.source import check_vocabulary
from data.specials import training_tokenizer
from data.stream import Stream, open_stream
from data.tokenizer import Tokenizer
from data.validation import open_validation


def open_training(config: RunConfig, rank: int, world_size: int) -> tuple[Stream, Tokenizer]:
    """One reader's stream, and the tokenizer with the objective's special tokens.

    Raises DataError, or ConfigError if the model's vocabulary is too small.
    """
    data, where = config.data, {"rank": rank, "world_size": world_size}
    tokenizer = _tokenizer(config)
    _check_size(config, tokenizer)
    if data.examples:
        return open_example_stream(config, tokenizer, **where), tokenizer
    if data.pairs:
        return open_pair_stream(config, tokenizer, **where), tokenizer
    if config.run.start_from:
        check_vocabulary(tokenizer, config.run.start_from)
    seed, vocab_size = config.run.seed, config.model.vocab_size
    return open_stream(data, config.batch, config.objective, seed=seed, vocab_size=vocab_size, **where), tokenizer


def open_held_out(config: RunConfig, rank: int, world_size: int) -> list[Batch]:
    """One reader's batches of the fixed validation rows; none if validation is off. Raises DataError."""
    where = {"rank": rank, "world_size": world_size}
    if not config.validation.every_steps:
        return []
    if config.data.examples:
        return open_held_out_examples(config, **where)
    if config.data.pairs:
        return open_held_out_pairs(config, **where)
    return open_validation(
        config.data,
        config.objective,
        rows=config.validation.rows,
        micro_batch_size=config.batch.micro_batch_size,
        vocab_size=config.model.vocab_size,
        rank=rank,
        world_size=world_size,
    )


def _tokenizer(config: RunConfig) -> Tokenizer:
    if config.data.examples:
        return examples_tokenizer(config)
    return pairs_tokenizer(config) if config.data.pairs else training_tokenizer(config.data, config.objective)


def _check_size(config: RunConfig, tokenizer: Tokenizer) -> None:
    if tokenizer.vocab_size <= config.model.vocab_size:
        return
    labelled = config.data.examples or config.data.pairs
    source = (labelled.tokenizer or config.run.start_from) if labelled else config.data.datasets[0].path
    raise ConfigError(
        f"model.vocab_size {config.model.vocab_size:,} is smaller than the {tokenizer.vocab_size:,} tokens of {source} and "
        f"objective {config.objective.name}: set it to at least that many, best to a multiple of 64"
    )
