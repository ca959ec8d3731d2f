"""Whether a Hugging Face folder computes what our model computes.

Letters: B rows, T row length, V vocabulary.
"""

import importlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from config import CheckpointError, ConfigError, TransformerConfig
from config.supervised_schema import TokenClassification
from data.chat import compile_template
from model import T5, Bert, Layout, Model, TaskHead
from model.hf import architecture
from tasks.checkpoints import Trained
from tasks.export.tokenizer import row_kind, special_tokens

ROWS, LENGTH = 2, 192
"""Of the random tokens; longer than ModernBERT's windows."""
TEXTS = (
    "The quick brown fox jumps over the lazy dog. It isn't tired, is it?",
    "def f(x):\n\treturn x ** 2  # two  spaces\n\n\n",
    "Naïve café, Größe 1 234,5 €; 日本語の文、Привет, 🙂🙃!",
    " leading and trailing spaces ",
)


def import_transformers() -> Any:
    return require("transformers", "export is checked with transformers")


def require(name: str, why: str) -> Any:
    """A module of the extra `export`. Raises ConfigError if it is not installed."""
    try:
        return importlib.import_module(name)
    except ImportError:
        raise ConfigError(f"{why}, but {name} is not installed: pip install -e '.[export]'") from None


def check_tokenizer(folder: Path, trained: Trained) -> None:
    """Raises CheckpointError if AutoTokenizer reads other ids, other text or other special tokens out of the folder."""
    theirs, ours = import_transformers().AutoTokenizer.from_pretrained(folder), trained.tokenizer
    kind = row_kind(trained)
    tokens = special_tokens(ours, kind)
    ids = dict(zip(tokens, ours.ids_of(tuple(tokens.values())), strict=True))
    for role, token in tokens.items():
        _same(role, (getattr(theirs, role), getattr(theirs, f"{role}_id")), (token, ids[role]))
    begin, end = {"bert": ("cls_token", "sep_token"), "gpt": ("", "")}.get(kind, ("", "eos_token"))
    before, after = ([ids[role]] if role else [] for role in (begin, end))
    for text, second in zip(TEXTS, reversed(TEXTS), strict=True):
        plain = ours.encode(text)
        _same(f"tokens of {text!r}", theirs.encode(text, add_special_tokens=False), plain)
        _same(f"text of the tokens of {text!r}", theirs.decode(plain), ours.decode(plain))
        _same(f"input_ids of {text!r}", theirs(text)["input_ids"], [*before, *plain, *after])
        pair, rest = theirs(text, second), [*ours.encode(second), *after]
        _same(f"input_ids of {text!r} and {second!r}", pair["input_ids"], [*before, *plain, *after, *rest])
        if "token_type_ids" in pair:
            types = [0] * (len(before) + len(plain) + len(after)) + [1] * len(rest)
            _same(f"token_type_ids of {text!r} and {second!r}", pair["token_type_ids"], types)
        if trained.chat_template:
            messages = [{"role": "user", "content": text}, {"role": "assistant", "content": second}]
            chat = compile_template(trained.chat_template, ours.eod_token)(messages=messages)
            _same(f"the chat of {text!r}", theirs.apply_chat_template(messages, tokenize=False), chat)


def _same(what: str, theirs: Any, ours: Any) -> None:
    if theirs != ours:
        raise CheckpointError(f"the export is refused: {what} are {theirs!r} in transformers and {ours!r} here")


@torch.no_grad()
def check_model(folder: Path, ours: Model, dtype: str, tolerance: float, *, heads: bool = True) -> float:
    """Largest difference between the logits of the two models in `dtype`, as a share of the largest logit. Without
    `heads` hidden states are compared.

    Raises CheckpointError if it is above `tolerance`, or if weights are missing or left over.
    """
    ours = ours.to(getattr(torch, dtype)).eval()
    objective = ours.lm_head.objective if isinstance(ours.lm_head, TaskHead) else None
    auto_class = getattr(
        import_transformers(), architecture(ours.config, objective).auto_class if heads else "AutoModel"
    )
    theirs, report = auto_class.from_pretrained(folder, dtype=getattr(torch, dtype), output_loading_info=True)
    for problem in ("missing_keys", "unexpected_keys", "mismatched_keys"):
        # BertModel has a pooler, which our models without pairs have not, and which embeddings do not read.
        if named := sorted(name for name in report[problem] if heads or not str(name).startswith("pooler.")):
            raise CheckpointError(f"the export is refused: {problem} in transformers: {named[:5]}")
    words = import_transformers().AutoTokenizer.from_pretrained(folder) if heads and objective else None
    largest = 0.0
    for what, expected, actual in _outputs(ours, theirs.eval(), heads, words):
        scale = max(1.0, expected.abs().max().item())
        difference = (actual.float() - expected.float()).abs().max().item() / scale
        if not difference <= tolerance:
            raise CheckpointError(
                f"the export is refused: {what} differ by {difference:.1e} of the largest in {dtype}, "
                f"more than {tolerance:g}"
            )
        largest = max(largest, difference)
    return largest


def _outputs(ours: Any, theirs: Any, heads: bool, words: Any) -> Iterator[tuple[str, Tensor, Tensor]]:
    """(what, ours, theirs) of what a folder is for; `words` is the tokenizer that the head of a task reads texts with."""
    if words is not None:
        return _scores(ours, theirs, words)
    return _logits(ours, theirs) if heads else _hidden(ours, theirs)


def _scores(ours: Any, theirs: Any, words: Any) -> Iterator[tuple[str, Tensor, Tensor]]:
    """(what, ours, theirs) on padded texts and pairs of texts: of every token, or of that which speaks for a text."""
    longest = ours.config.max_positions
    for what, texts in (("texts", (TEXTS,)), ("pairs of texts", (TEXTS, TEXTS[::-1]))):
        rows = words(*map(list, texts), padding=True, truncation=True, max_length=longest, return_tensors="pt")
        tokens_BT, text_BT = rows["input_ids"], rows["attention_mask"].bool()
        lengths_B = text_BT.sum(1)
        types = {"token_types_BT": rows["token_type_ids"]} if "token_type_ids" in rows else {}
        hidden_BTD = ours(tokens_BT, layout=Layout.padded(lengths_B, tokens_BT.shape[1]), **types)
        logits = theirs(**rows).logits
        if isinstance(ours.lm_head.objective, TokenClassification):
            yield f"scores of {what}", ours.lm_head(hidden_BTD[text_BT]), logits[text_BT]
        else:
            speaks_B = torch.zeros_like(lengths_B) if isinstance(ours, Bert) else lengths_B - 1
            yield f"scores of {what}", ours.lm_head(hidden_BTD[torch.arange(len(lengths_B)), speaks_B]), logits


def _hidden(ours: Any, theirs: Any) -> Iterator[tuple[str, Tensor, Tensor]]:
    """(what, ours, theirs) on random tokens of padded rows."""
    tokens_BT, layout, text_BT = padded_rows(ours.config)
    actual_BTD = theirs(tokens_BT, attention_mask=text_BT.long()).last_hidden_state
    yield "hidden states", ours(tokens_BT, layout=layout)[text_BT], actual_BTD[text_BT]


def padded_rows(config: TransformerConfig) -> tuple[Tensor, Layout, Tensor]:
    """Random tokens [B, T], their layout, and where they are text and not padding [B, T]."""
    length = min(LENGTH, config.max_positions)
    tokens_BT = torch.randint(config.vocab_size, (ROWS, length), generator=torch.Generator().manual_seed(0))
    lengths = [length, length // 2 + 1]
    return tokens_BT, Layout.padded(lengths, length), torch.arange(length) < torch.tensor(lengths).unsqueeze(1)


def _logits(ours: Any, theirs: Any) -> Iterator[tuple[str, Tensor, Tensor]]:
    """(what, ours, theirs) on random tokens, and on padded rows where the model reads both ways."""
    generator = torch.Generator().manual_seed(1)
    tokens_BT, layout, text_BT = padded_rows(ours.config)

    def draw(limit: int) -> Tensor:
        return torch.randint(limit, tokens_BT.shape, generator=generator)

    if isinstance(ours, T5):
        source_BS = draw(ours.config.vocab_size)
        output = theirs(input_ids=source_BS, attention_mask=text_BT.long(), decoder_input_ids=tokens_BT)
        yield "logits", ours.logits(ours(source_BS, tokens_BT, source_layout=layout)), output.logits
    elif isinstance(ours, Bert):
        types_BT = draw(ours.config.token_types) if ours.config.token_types else None
        types = {} if types_BT is None else {"token_type_ids": types_BT}
        output = theirs(tokens_BT, attention_mask=text_BT.long(), **types)
        hidden_BTD = ours(tokens_BT, layout=layout, token_types_BT=types_BT)
        yield "logits", ours.logits(hidden_BTD)[text_BT], output[0][text_BT]
        if ours.config.pooler:
            yield "logits of pairs", ours.lm_head.pair_logits(hidden_BTD), output.seq_relationship_logits
    else:
        yield "logits", ours.logits(ours(tokens_BT)), theirs(tokens_BT).logits
