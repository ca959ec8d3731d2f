"""The blend gives each dataset its exact share after every prefix, without looking at the samples before."""

import math
from fractions import Fraction

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from config import ConfigError
from data.blend import TOTAL_WEIGHT, Blend, Mixture, Phase, _share, quantise

WEIGHTS = {
    2: [0.3, 0.7],
    3: [5, 0, 1],
    8: [1, 2, 3, 4, 5, 6, 7, 8],
    100: np.random.default_rng(0).lognormal(0, 2, 100).tolist(),
}


@pytest.mark.parametrize("datasets", [2, 8, 100])
def test_each_prefix_has_the_exact_shares(datasets):
    samples = 100_000
    blend = Blend(WEIGHTS[datasets])
    dataset_N, _ = blend.pick(np.arange(samples))
    bound = math.ceil(math.log2(datasets)) / 2
    for dataset, weight in enumerate(blend.weights.tolist()):
        given_N = np.cumsum(dataset_N == dataset)
        error = np.abs(given_N - np.arange(1, samples + 1) * (weight / TOTAL_WEIGHT)).max()
        assert error <= bound, f"dataset {dataset} of {datasets} is {error:.2f} samples off, more than {bound}"


@pytest.mark.parametrize("datasets", list(WEIGHTS))
def test_index_counts_the_dataset_s_own_samples(datasets):
    blend = Blend(WEIGHTS[datasets])
    given = [0] * datasets
    for sample, (dataset, index) in enumerate(zip(*map(np.ndarray.tolist, blend.pick(np.arange(3000))), strict=True)):
        assert index == given[dataset], f"sample {sample}"
        given[dataset] += 1
    assert blend.counts(3000).tolist() == given


def test_nearly_equal_weights_stay_apart():
    """1 : 1.009 is not 1 : 1."""
    given = Blend([1, 1.009]).counts(10**6).tolist()
    assert given == [round(10**6 / 2.009), round(1.009 * 10**6 / 2.009)]


def test_weight_zero_is_never_picked():
    dataset_N, _ = Blend([0, 1, 0, 2, 0]).pick(np.arange(10_000))
    assert np.unique(dataset_N).tolist() == [1, 3]


def test_one_dataset_is_read_as_it_is():
    dataset_N, index_N = Blend([0.1]).pick(np.arange(100))
    assert not dataset_N.any()
    assert index_N.tolist() == list(range(100))


@given(start=st.integers(0, 2**61), datasets=st.sampled_from(list(WEIGHTS)))
def test_far_into_the_run_pick_and_counts_still_agree(start, datasets):
    """No sum overflows: the counts before and after a few samples differ by exactly these samples."""
    blend = Blend(WEIGHTS[datasets])
    dataset_N, index_N = blend.pick(start + np.arange(64))
    before, after = blend.counts(start), blend.counts(start + 64)
    assert before.sum() == start
    np.testing.assert_array_equal(after - before, np.bincount(dataset_N, minlength=datasets))
    for dataset in np.unique(dataset_N):
        np.testing.assert_array_equal(index_N[dataset_N == dataset], np.arange(before[dataset], after[dataset]))


@given(count=st.integers(0, 2**62), whole=st.integers(1, 2**31), data=st.data())
def test_share_is_exact_integer_arithmetic(count, whole, data):
    part = data.draw(st.integers(0, whole))
    result = int(_share(np.array([count]), np.array([part]), np.array([whole]))[0])
    assert result == (2 * count * part + whole - whole % 2) // (2 * whole)
    assert abs(result - Fraction(count * part, whole)) <= Fraction(1, 2)


@given(st.lists(st.floats(0.001, 1000), min_size=1, max_size=40))
def test_quantised_weights_are_within_one_unit_of_their_share(weights):
    whole = quantise(weights)
    assert whole.sum() == TOTAL_WEIGHT
    assert np.abs(whole - np.array(weights) / sum(weights) * TOTAL_WEIGHT).max() <= 1


@pytest.mark.parametrize("weights", [[0, 0], [-1, 2], [math.nan, 1], [math.inf, 1]])
def test_weights_that_cannot_be_blended(weights):
    with pytest.raises(ConfigError, match="at least one above 0"):
        Blend(weights)


def test_weight_too_small_to_be_kept():
    with pytest.raises(ConfigError, match=r"1e-12 .* raise it, or set it to 0"):
        Blend([1, 1e-12])


PHASES = [Phase(0, [1, 1, 1]), Phase(1000, [3, 0, 1]), Phase(1777, [0, 0, 1]), Phase(2500, [1, 9, 0.5])]


def test_datasets_go_on_across_phases():
    mixture = Mixture(PHASES)
    given = [0, 0, 0]
    history = []
    for dataset, index in zip(*map(np.ndarray.tolist, mixture.pick(np.arange(4000))), strict=True):
        history.append(list(given))
        assert index == given[dataset]
        given[dataset] += 1
    for samples in (0, 1, 999, 1000, 1001, 1777, 2499, 2500, 3999):
        assert mixture.counts(samples).tolist() == history[samples]


def test_phase_has_its_own_shares():
    dataset_N, _ = Mixture(PHASES).pick(np.arange(1000, 1776))
    assert np.bincount(dataset_N, minlength=3).tolist() == [582, 0, 194]


def test_samples_can_be_asked_for_in_any_order():
    mixture = Mixture(PHASES)
    some = np.random.default_rng(0).permutation(4000)
    for whole, part in zip(mixture.pick(np.arange(4000)), mixture.pick(some), strict=True):
        np.testing.assert_array_equal(whole[some], part)


@pytest.mark.parametrize("start", [999, 1000])
def test_phases_out_of_order(start):
    with pytest.raises(ConfigError, match=f"row {start:,} follows one that starts at row 1,000"):
        Mixture([Phase(0, [1]), Phase(1000, [1]), Phase(start, [1])])
