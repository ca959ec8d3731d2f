"""Floor 0: settings and arithmetic. Imports neither torch nor deepspeed."""

from config.changes import Difference, compare
from config.choice import Choice
from config.derive import Derived, derive
from config.errors import CheckpointError, ConfigError, DataError, GroundworkError
from config.load import dump_recipe, load_recipe
from config.schema import GPTConfig, RunConfig

__all__ = [
    "CheckpointError",
    "Choice",
    "ConfigError",
    "DataError",
    "Derived",
    "Difference",
    "GPTConfig",
    "GroundworkError",
    "RunConfig",
    "compare",
    "derive",
    "dump_recipe",
    "load_recipe",
]
