"""Written text against references: BLEU and chrF by sacrebleu (Post 2018, arXiv:1804.08771)."""

from collections.abc import Sequence
from typing import Any

from tasks.metrics.check import same_length


def generation(
    references: Sequence[str] | Sequence[Sequence[str]], hypotheses: Sequence[str], *, tokenize: str = "13a"
) -> dict[str, float]:
    """Corpus BLEU and chrF2, 0 to 100, and the share of hypotheses that are exactly a reference.

    Each hypothesis has one reference or several. `tokenize` is sacrebleu's for BLEU: 13a, intl, zh, ja-mecab, char.
    Raises DataError if there are not as many hypotheses as references.
    """
    import sacrebleu

    same_length(references, hypotheses)
    several = [[given] if isinstance(given, str) else list(given) for given in references]
    most = max(map(len, several))
    # sacrebleu wants the nth reference of all sentences together; where a sentence has fewer, None.
    columns: list[Any] = [[given[n] if n < len(given) else None for given in several] for n in range(most)]
    exact = sum(text in given for text, given in zip(hypotheses, several, strict=True))
    return {
        "bleu": sacrebleu.corpus_bleu(list(hypotheses), columns, tokenize=tokenize).score,
        "chrf": sacrebleu.corpus_chrf(list(hypotheses), columns).score,
        "exact_match": exact / len(hypotheses),
    }
