"""One worker of a search: asks the study for trials, trains them, watches them, and continues those of dead workers.

A loop without threads. Any number of workers, on any hosts, share a study.
"""

import json
import os
import signal
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from types import FrameType
from typing import TYPE_CHECKING

from config import ConfigError, load_recipe
from tasks.search.process import Metrics, Training, free_port, share_of_machine
from tasks.search.question import TRAIN, Question
from tasks.search.results import forget_checkpoints
from tasks.search.running import Running, settle
from tasks.search.space import overrides
from tasks.search.study import HEARTBEAT_SECONDS, attempts, identity, interrupt, known_trials, origin, recover, sampler

if TYPE_CHECKING:
    from optuna import Study
    from optuna.trial import FrozenTrial, Trial

POLL_SECONDS = 0.25
IMPATIENT_AFTER_SECONDS = 1.0
HOPELESS = 3
"""A search ends when so many trials have failed and none has trained."""


@dataclass
class Worker:
    question: Question
    study: "Study"
    jobs: int
    launcher: list[str]
    """What stands before train.py."""
    keep_checkpoints: bool
    say: Callable[[str], None]
    running: list[Running] = field(default_factory=list)
    code: int = 0
    """What the search stops with: 128 + a signal; 0 while it goes on."""
    _heard: float = 0.0

    def work(self) -> int:
        """Until there are enough trials, or a signal comes; then returns `code`. Raises ConfigError if no trial can train."""
        share_of_machine(0, self.jobs, os.environ)
        try:
            with self._signals():
                while True:
                    self._heartbeat()
                    if self.code:
                        self._stop_trainings()
                    for running in list(self.running):
                        self._watch(running)
                    while not self.code and len(self.running) < self.jobs and self._begin():
                        continue
                    if not self.running:
                        return self.code
                    time.sleep(POLL_SECONDS)
        finally:
            for running in self.running:
                running.training.kill()
                interrupt(self.study, self._entry(running.trial))

    @contextmanager
    def _signals(self) -> Iterator[None]:
        """Ctrl-C and the signals of a cluster stop the search; a second Ctrl-C does not wait for trials to save."""
        since = 0.0

        def receive(number: int, frame: FrameType | None) -> None:
            nonlocal since
            if self.code and number == signal.SIGINT and time.monotonic() - since > IMPATIENT_AFTER_SECONDS:
                raise KeyboardInterrupt
            since = since or time.monotonic()
            self.code = self.code or 128 + number

        numbers = (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1)
        before = {number: signal.signal(number, receive) for number in numbers}
        try:
            yield
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)

    def _stop_trainings(self) -> None:
        """Let what trains save and leave."""
        asked = [running for running in self.running if not running.asked_to]
        for running in asked:
            running.stop("stop")
        if asked:
            self.say(f"stopping, once {', '.join(f'trial {running.number}' for running in asked)} has saved")

    def _heartbeat(self) -> None:
        now = time.monotonic()
        if not self._heard or now - self._heard > HEARTBEAT_SECONDS:
            self._heard = now
            for running in self.running:
                self._record(running.trial)
            recover(self.study)

    def _record(self, trial: "Trial") -> None:
        self.study._storage.record_heartbeat(trial._trial_id)  # type: ignore[attr-defined]

    def _entry(self, trial: "Trial") -> "FrozenTrial":
        return self.study.get_trials(deepcopy=False)[trial.number]

    def _begin(self) -> bool:
        """Start another trial. Returns whether there was one to start."""
        from optuna.trial import TrialState

        known = known_trials(self.study)
        if len(known) >= self.question.trials and all(trial.state != TrialState.WAITING for trial in known):
            return False
        self.study.sampler = sampler(self.question, len(known))
        trial = self.study.ask({axis.setting: axis.distribution for axis in self.question.axes})
        self._record(trial)
        trial.set_user_attr("worker", identity(os.getpid()))
        entry = self._entry(trial)
        number = origin(entry)
        if not attempts(entry) and sum(origin(t) <= number for t in known_trials(self.study)) > self.question.trials:
            trial.set_user_attr("surplus", True)  # two workers asked at the same time
            self.study.tell(trial, state=TrialState.FAIL)
            return False
        chosen = overrides(self.question.axes, trial.params)
        self.say(f"trial {number}{' goes on' if attempts(entry) else ''}: {' '.join(chosen)}")
        try:
            steps = load_recipe(str(self.question.recipe), chosen).schedule.steps
        except ConfigError as error:
            trial.set_user_attr("message", str(error))
            trial.set_user_attr("outcome", "refused")
            self.study.tell(trial, state=TrialState.PRUNED)  # the worst to samplers, which ignore what has failed
            self.say(f"trial {number} is refused: {error}")
            return True
        self._train(trial, number, chosen, steps, dict(entry.intermediate_values))
        return True

    def _train(self, trial: "Trial", number: int, chosen: list[str], steps: int, values: dict[int, float]) -> None:
        folder, name = self.question.folder, f"trial_{number:04d}"
        place = min(set(range(self.jobs)) - {running.place for running in self.running})
        words = [word.replace("{port}", str(free_port())) for word in self.launcher]
        own = [f"run.folder={json.dumps(str(folder))}", f"run.name={name}", "run.resume=auto"]
        training = Training(
            [*words, str(TRAIN), str(self.question.recipe), *chosen, *own],
            folder / f"{name}.log",
            share_of_machine(place, self.jobs, os.environ),
        )
        metrics = Metrics(folder / name / "metrics.jsonl")
        self.running.append(Running(trial, number, place, steps, training, metrics, values))
        trial.set_user_attr("training", identity(training.pid))

    def _watch(self, running: Running) -> None:
        from optuna.exceptions import UpdateFinishedTrialError

        try:
            code = running.training.ended()
            running.read(self.question.metric)
            if code is None:
                return
            self.running.remove(running)
            what, stop = settle(running, code, self.question, self.study)
        except UpdateFinishedTrialError:  # this process has slept for so long that another one took the trial over
            running.training.kill()
            self.running = [other for other in self.running if other is not running]
            self.say(f"trial {running.number} is continued by another worker")
            return
        self.say(f"trial {running.number} {what}")
        self.code = self.code or stop
        if not self.keep_checkpoints:
            forget_checkpoints(self.question, self.study)
        self._check_hope()

    def _check_hope(self) -> None:
        """Raise ConfigError if trials fail whatever their settings are."""
        known = known_trials(self.study)
        failed = [trial for trial in known if trial.user_attrs.get("outcome") == "failed"]
        if len(failed) >= HOPELESS and not any(trial.intermediate_values for trial in known):
            raise ConfigError(
                f"{len(failed)} trials have failed and none has trained, so the search stops; the last message:\n"
                f"{failed[-1].user_attrs['message']}\nMend it, remove {self.question.folder}, and start again"
            )
