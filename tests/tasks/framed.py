"""A tokenizer that surrounds texts as BERT's do."""

import tokenizers
from tokenizers.processors import TemplateProcessing

from data.specials import BERT
from data.tokenizer import Tokenizer, byte_tokenizer


def framed_bytes() -> Tokenizer:
    """Bytes between [CLS] and [SEP]."""
    tokenizer = byte_tokenizer().with_special_tokens(BERT)
    model = tokenizers.Tokenizer.from_str(tokenizer.spec)
    numbers = list(zip(BERT, tokenizer.ids_of(BERT), strict=True))
    model.post_processor = TemplateProcessing(single="[CLS] $A [SEP]", special_tokens=numbers)
    return Tokenizer(model.to_str())
