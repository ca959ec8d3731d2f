"""A trial that trains: what its validations say while it runs, and what became of it."""

import math
import signal
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Literal

from tasks.search.process import Metrics, Training
from tasks.search.question import Question
from tasks.search.study import attempts, interrupt

if TYPE_CHECKING:
    from optuna import Study
    from optuna.trial import Trial

DIVERGED = 3
"""Exit code of a training whose loss is no longer a number."""
SAVED = tuple(128 + number for number in (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1))
"""Exit codes of a training that was told to stop and has saved."""
NO_ANSWER, STARTS = 75, 4
"""Exit code of a training whose ranks did not find each other, and how often it is started."""


@dataclass
class Running:
    """A trial and its training."""

    trial: "Trial"
    number: int
    place: int
    """Below --jobs: which part of the machine it has."""
    steps: int
    """Of the whole run."""
    training: Training
    metrics: Metrics
    values: dict[int, float]
    """Of its validations so far, by step."""
    step: int = field(default=0)
    asked_to: Literal["", "prune", "stop"] = ""

    def stop(self, why: Literal["prune", "stop"]) -> None:
        if not self.asked_to:
            self.asked_to = why
            self.training.stop()

    def read(self, metric: str) -> None:
        """Report new validations, and prune if they are worse than those of other trials were."""
        for record in self.metrics.new():
            self.step = record["step"]
            if metric not in record or self.step in self.values:
                continue
            self.values[self.step] = record[metric]
            self.trial.report(record[metric], self.step)
            if self.step < self.steps and not self.asked_to and self.trial.should_prune():
                self.stop("prune")


def settle(running: Running, code: int, question: Question, study: "Study") -> tuple[str, int]:
    """Tell the study what became of a trial whose training has exited with `code`. Returns it in words, and with what the
    search is to stop: 0, or 128 + the signal that somebody else has sent to the training."""
    from optuna.trial import TrialState

    trial, values = running.trial, [value for _, value in sorted(running.values.items())]
    trial.set_user_attr("steps", running.step)
    entry = study.get_trials(deepcopy=False)[trial.number]
    where = f"after {running.step:,} of {running.steps:,} steps"
    if code == 0 and values and math.isfinite(values[-1]):
        value = values[-1] if question.value == "last" else question.better([v for v in values if math.isfinite(v)])
        study.tell(trial, value)
        best = " (best so far)" if study.best_trial.number == trial.number else ""
        return f"is complete {where}: {words(question.metric, value)}{best}", 0
    if code != 0 and running.asked_to == "prune":
        study.tell(trial, state=TrialState.PRUNED)
        return f"is pruned {where}: {words(question.metric, values[-1])}", 0
    if code != 0 and running.asked_to == "stop":
        interrupt(study, entry)
        return f"is interrupted {where}", 0
    if code in SAVED:
        interrupt(study, entry)
        return f"was told to stop by {signal.Signals(code - 128).name} {where}, and the search stops with it", code
    if code == NO_ANSWER and len(attempts(entry)) + 1 < STARTS:
        interrupt(study, entry)
        return f"has lost a rank, a host or a link {where} and is started again", 0
    diverged = code == DIVERGED or (code == 0 and bool(values))
    if diverged:
        trial.report(
            math.nan, running.step + 1
        )  # worse to samplers than all of its length; they ignore what has failed
    message = (
        f"the last {words(question.metric, values[-1])}" if code == 0 and values else running.training.last_words()
    )
    trial.set_user_attr("message", message or f"it ended with code {code}")
    trial.set_user_attr("outcome", "diverged" if diverged else "failed")
    study.tell(trial, state=TrialState.PRUNED if diverged else TrialState.FAIL)
    return f"{'diverged' if diverged else 'failed'} {where} (see {running.training.log}): {message}", 0


def words(metric: str, value: float) -> str:
    return f"{metric.replace('_', ' ')} {value:.4f}"
