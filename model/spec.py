"""What an attention layer computes, apart from its weights."""

from dataclasses import dataclass

from config import BertConfig, GPTConfig, T5Config, TransformerConfig


@dataclass(frozen=True)
class AttentionSpec:
    """Which keys a query sees and how scores become weights: softmax(cap(scale q k^T + bias)) v."""

    causal: bool = True
    """No key after the query."""
    window: int | None = None
    """Causal: a query at i sees keys j with i - window < j <= i. Else: keys with |i - j| <= window."""
    softcap: float | None = None
    """Scores become c * tanh(scores / c) (Gemma 2, arXiv:2408.00118)."""
    scale: float | None = None
    """Factor of q k^T. Default: 1 / sqrt(E)."""

    def reach(self, keys: int) -> tuple[int | None, int | None]:
        """Keys that a query sees before and after its own position, of `keys` in all; None: every one."""
        if self.window is None or self.window >= keys:
            return None, 0 if self.causal else None
        return (self.window - 1, 0) if self.causal else (self.window, self.window)


def needed_features(config: TransformerConfig) -> dict[str, str]:
    """What this model's attention asks of a kernel beyond causal rows and documents, and the setting behind each."""
    needs = {}
    if config.dropout:
        needs["dropout"] = f"model.dropout is {config.dropout:g}"
    if config.attention_softcap is not None:
        needs["softcap"] = f"model.attention_softcap is {config.attention_softcap:g}"
    match config:
        case GPTConfig(sliding_window=int(window)) if window < config.max_positions:
            needs["window"] = f"model.sliding_window is {window}"
        case BertConfig():
            needs["bidirectional"] = "model.family is bert"
            if config.local_window is not None:
                needs["window"] = f"model.local_window is {config.local_window}"
        case T5Config():
            needs |= dict.fromkeys(("bidirectional", "scale", "cross"), "model.family is t5")
            needs["bias"] = "model.position is relative"
    return needs
