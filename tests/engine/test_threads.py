"""Ranks that share cores divide them, unless somebody said how many threads a rank has."""

from config import Choice
from tests.ranks import run_ranks
from tests.workers.threads import choices


def test_ranks_divide_the_cores_they_share():
    for told, shared, apart in run_ranks(2, choices):
        assert told == Choice(4, "OMP_NUM_THREADS")
        assert shared == Choice(2, "2 ranks share 4 cores")
        assert apart == Choice(4, "this rank has its 1 core(s) to itself")
