"""How well a language model predicts text."""

import math

from config import DataError


def likelihood(nats: float, tokens: int, text_bytes: int) -> dict[str, float]:
    """Mean loss in nats a token, its exponential, and the loss in bits for each UTF-8 byte of the text, which alone
    compares models with different tokenizers. `nats` is the sum over all `tokens`, `text_bytes` the size of their text."""
    if not tokens or not text_bytes:
        raise DataError(f"{tokens:,} tokens of {text_bytes:,} bytes: there is no text to predict")
    loss = nats / tokens
    return {
        "loss": loss,
        "perplexity": math.exp(min(loss, 700.0)),
        "bits_per_byte": nats / math.log(2) / text_bytes,
        "tokens": tokens,
        "text_bytes": text_bytes,
    }
