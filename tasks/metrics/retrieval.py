"""Ranked lists: recall, nDCG and reciprocal rank, each as the mean over queries.

Letters: Q queries, K places of a ranking.
"""

from collections.abc import Mapping, Sequence

import numpy as np

from config import DataError

DEPTHS = (1, 3, 5, 10, 100)


def retrieval(
    relevance: Mapping[str, Mapping[str, float]],
    rankings: Mapping[str, Sequence[str]],
    depths: Sequence[int] = DEPTHS,
) -> dict[str, float]:
    """`recall@k`, `ndcg@k` for each depth k, and `mrr@k` for the largest.

    `relevance` grades the documents of each query; a grade above 0 is relevant. `rankings` are the documents found, best
    first, without repetition. nDCG discounts the grade at place i, from 1, by log2(i + 1) and divides by the best order's
    (Järvelin and Kekäläinen 2002, as trec_eval does). Queries without a relevant document do not count.
    Raises DataError if no query has one, or a query was not ranked.
    """
    counted = {query: grades for query, grades in relevance.items() if any(grade > 0 for grade in grades.values())}
    if not counted:
        raise DataError(f"none of {len(relevance):,} queries has a relevant document (a grade above 0)")
    if missing := [query for query in counted if query not in rankings]:
        raise DataError(f"{len(missing):,} of {len(counted):,} queries were not ranked, the first is {missing[0]!r}")
    rows = [_of_query(grades, rankings[query], depths) for query, grades in counted.items()]
    names = [f"recall@{k}" for k in depths] + [f"ndcg@{k}" for k in depths] + [f"mrr@{max(depths)}"]
    return dict(zip(names, np.mean(rows, axis=0).tolist(), strict=True))


def _of_query(grades: Mapping[str, float], ranking: Sequence[str], depths: Sequence[int]) -> list[float]:
    deepest = max(depths)
    gain_K = np.array([max(grades.get(document, 0.0), 0.0) for document in ranking[:deepest]])
    gain_K = np.pad(gain_K, (0, deepest - len(gain_K)))
    best_K = np.sort([grade for grade in grades.values() if grade > 0])[::-1][:deepest]
    relevant = sum(grade > 0 for grade in grades.values())
    found_K = np.cumsum(gain_K > 0)
    discount_K = 1 / np.log2(np.arange(deepest) + 2)
    dcg_K, ideal_K = np.cumsum(gain_K * discount_K), np.cumsum(np.pad(best_K, (0, deepest - len(best_K))) * discount_K)
    first = np.flatnonzero(gain_K)
    recall = [found_K[k - 1] / relevant for k in depths]
    ndcg = [dcg_K[k - 1] / ideal_K[k - 1] for k in depths]
    return [*recall, *ndcg, 1 / (first[0] + 1) if first.size else 0.0]
