"""How well a language model predicts text."""

import math

from config import DataError


def likelihood(nats: float, tokens: int, text_bytes: int) -> dict[str, float]:
    """Mean loss in nats a token, its exponential, and the loss in bits for each UTF-8 byte of the text, which alone
    compares models with different tokenizers. `nats` is the sum over all `tokens`, `text_bytes` the size of their text.

    Raises DataError if there is no token, or the sum is not a finite number.
    """
    if not tokens or not text_bytes:
        raise DataError(f"{tokens:,} tokens of {text_bytes:,} bytes: there is no text to predict")
    if not math.isfinite(nats):
        raise DataError(f"the loss of {tokens:,} tokens is {nats}: the model's weights are not all finite numbers")
    loss = nats / tokens
    return {
        "loss": loss,
        "perplexity": math.exp(min(loss, 700.0)),
        "bits_per_byte": nats / math.log(2) / text_bytes,
        "tokens": tokens,
        "text_bytes": text_bytes,
    }
