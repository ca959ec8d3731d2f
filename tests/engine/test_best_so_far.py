"""Which validation of a run was the best so far."""

from dataclasses import replace

from engine.checkpoint import RunState
from engine.engine import Validation


def validated(state: RunState, step: int, loss: float, accuracy: float, metric: str) -> RunState:
    return replace(state, step=step).judged(Validation({"classification": loss}, {"accuracy": accuracy}), metric)


def test_the_lowest_loss_or_the_highest_score_is_the_best():
    state = validated(RunState(), 10, 0.5, 0.7, "accuracy")
    state = validated(state, 20, 0.2, 0.6, "accuracy")
    assert (state.best, state.best_step) == (-0.7, 10)
    state = validated(state, 30, 0.6, 0.8, "accuracy")
    assert (state.best, state.best_step) == (-0.8, 30)


def test_a_run_that_goes_on_by_another_metric_seeks_the_best_anew():
    """A loss of 0.4 is no better than an accuracy of 0.9, which counts as -0.9, nor worse."""
    state = validated(RunState(), 10, 0.2, 0.9, "accuracy")
    state = validated(state, 20, 0.4, 0.8, "loss")
    assert (state.best, state.best_step) == (0.4, 20)
    assert validated(state, 30, 0.5, 0.99, "loss").best_step == 20
