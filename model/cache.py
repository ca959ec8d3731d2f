"""Keys and values of the tokens a generation has already seen.

Letters: B rows, T new tokens, K key-value heads, E head size.
"""

from torch import Tensor


class LayerCache:
    """Keys and values of one block in buffers of full size, allocated at the first append."""

    def __init__(self, capacity: int, source_length: int = 0):
        self.capacity = capacity
        self.source = LayerCache(source_length) if source_length else None
        self.length = 0
        self.keys: Tensor | None = None
        self.values: Tensor | None = None

    def append(self, k_BTKE: Tensor, v_BTKE: Tensor) -> tuple[Tensor, Tensor]:
        """Store T tokens; return views of all keys and values so far."""
        if self.keys is None or self.values is None:
            shape = (k_BTKE.shape[0], self.capacity, *k_BTKE.shape[2:])
            self.keys, self.values = k_BTKE.new_empty(shape), v_BTKE.new_empty(shape)
        end = self.length + k_BTKE.shape[1]
        assert end <= self.capacity, f"{end} tokens in a cache for {self.capacity}"
        self.keys[:, self.length : end] = k_BTKE
        self.values[:, self.length : end] = v_BTKE
        self.length = end
        return self.stored()

    def stored(self) -> tuple[Tensor, Tensor]:
        """Views of all keys and values so far."""
        assert self.keys is not None and self.values is not None
        return self.keys[:, : self.length], self.values[:, : self.length]


class KVCache:
    """One LayerCache for each block. The first forward pass takes the prompt, later ones a single token each.

    That of a decoder's block also keeps the keys and values of a source of `source_length` tokens.
    """

    def __init__(self, num_layers: int, capacity: int, source_length: int = 0):
        self.layers = [LayerCache(capacity, source_length) for _ in range(num_layers)]

    @property
    def length(self) -> int:
        """Tokens seen so far."""
        return self.layers[0].length
