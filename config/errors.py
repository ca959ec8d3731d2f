"""Errors meant for the person at the keyboard. Invariants of our own are `assert`s."""


class GroundworkError(Exception):
    """Base of every error that is printed as one message, without a traceback."""

    everywhere = False
    """Raised on every rank alike, so that one of them speaks for all."""
    alone = False
    """Raised before the ranks are connected, and perhaps on this rank only, so that it speaks itself."""
    exit_code = 2
    """Of train.py. 2: starting again would fail again."""


class ConfigError(GroundworkError):
    """A recipe, an override, a ds_config or a launcher's setting is wrong."""


class CommunicationError(GroundworkError):
    """A rank, a host or a link does not answer."""

    exit_code = 75
    """EX_TEMPFAIL of sysexits.h: starting again may help."""


class DataError(GroundworkError):
    """A source, a tokenizer, a shard or a manifest is missing or damaged."""


class CheckpointError(GroundworkError):
    """A checkpoint is missing, damaged or belongs to another model."""
