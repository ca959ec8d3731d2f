"""Floor 0: settings and arithmetic. Imports neither torch nor deepspeed."""

from config.bert_schema import BertConfig
from config.changes import Difference, compare
from config.choice import Choice
from config.derive import Derived, derive
from config.errors import CheckpointError, CommunicationError, ConfigError, DataError, GroundworkError
from config.gpt_schema import GPTConfig
from config.load import dump_recipe, load_recipe
from config.schema import RunConfig
from config.t5_schema import T5Config
from config.transformer_schema import Recompute, TransformerConfig

__all__ = [
    "BertConfig",
    "CheckpointError",
    "Choice",
    "CommunicationError",
    "ConfigError",
    "DataError",
    "Derived",
    "Difference",
    "GPTConfig",
    "GroundworkError",
    "Recompute",
    "RunConfig",
    "T5Config",
    "TransformerConfig",
    "compare",
    "derive",
    "dump_recipe",
    "load_recipe",
]
