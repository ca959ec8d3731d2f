"""Written text against references: BLEU and chrF by sacrebleu (Post 2018, arXiv:1804.08771)."""

from collections.abc import Sequence
from typing import Any

from tasks.metrics.check import same_length

References = Sequence[str] | Sequence[Sequence[str]]
"""One for each text, or several."""


def generation(references: References, hypotheses: Sequence[str], *, tokenize: str = "13a") -> dict[str, float]:
    """Corpus BLEU and chrF2, 0 to 100, and the share of hypotheses that are exactly a reference.

    `tokenize` is sacrebleu's for BLEU: 13a, intl, zh, ja-mecab, char. Raises DataError if there are not as many hypotheses
    as references.
    """
    same_length(references, hypotheses)
    exact = sum(text in given for text, given in zip(hypotheses, _lists(references), strict=True))
    scorers = _scorers(references, tokenize)
    scores = {name: scorer.corpus_score(list(hypotheses), None).score for name, scorer in scorers.items()}
    return {**scores, "exact_match": exact / len(hypotheses)}


def signatures(references: References, *, tokenize: str = "13a") -> dict[str, str]:
    """What sacrebleu says of each score, so that others can compute the same."""
    return {name: str(scorer.get_signature()) for name, scorer in _scorers(references, tokenize).items()}


def _scorers(references: References, tokenize: str) -> dict[str, Any]:
    from sacrebleu.metrics import BLEU, CHRF

    several = _lists(references)
    # sacrebleu wants the nth reference of all sentences together; where a sentence has fewer, None.
    columns: list[Any] = [
        [given[n] if n < len(given) else None for given in several] for n in range(max(map(len, several)))
    ]
    return {"bleu": BLEU(tokenize=tokenize, references=columns), "chrf": CHRF(references=columns)}


def _lists(references: References) -> list[list[str]]:
    return [[given] if isinstance(given, str) else list(given) for given in references]
