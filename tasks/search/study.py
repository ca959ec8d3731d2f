"""The study that Optuna keeps: what was asked and tried, shared by all workers of a search.

A trial that was interrupted ends as failed, and waits as a new entry with the same parameters, values and run: Optuna's own way
(RetryHeartbeatStaleTrialCallback), which several workers on several hosts may use at once. People are shown one trial.
"""

import fcntl
import os
import socket
import warnings
from contextlib import suppress
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

import psutil

from config import ConfigError
from tasks.search.process import end_group
from tasks.search.question import Question, check_unchanged, write_recipe

if TYPE_CHECKING:
    from optuna import Study
    from optuna.pruners import BasePruner
    from optuna.samplers import BaseSampler
    from optuna.storages import RDBStorage
    from optuna.trial import FrozenTrial

HEARTBEAT_SECONDS = 20
STALE_SECONDS = 120
"""Without a heartbeat for so long, a trial's worker is taken for dead."""
BUSY_SECONDS = 60
"""How long SQLite waits for another worker."""
DRIVERS = {"psycopg": "'psycopg[binary]'", "psycopg2": "psycopg2-binary"}
"""Packages of modules that SQLAlchemy looks for, where the names differ."""
FIXED = "fixed"
"""Attribute of a study: Question.fixed."""


def open_study(question: Question) -> "Study":
    """The study of this name; a new one with the trials that it begins with, if there is none.

    Raises ConfigError if the storage cannot be opened or holds another search of that name.
    """
    import optuna

    optuna.logging.set_verbosity(optuna.logging.WARNING)
    warnings.filterwarnings("ignore", category=optuna.exceptions.ExperimentalWarning)
    warnings.filterwarnings("ignore", message="Heartbeat of storage is supposed to be used")
    question.folder.mkdir(parents=True, exist_ok=True)
    with (question.folder / ".lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)  # workers that start together make one study
        return _find_or_make(question, _open_storage(question))


def _find_or_make(question: Question, storage: "RDBStorage") -> "Study":
    import optuna

    pruner, name = _pruner(question), question.name
    if name in optuna.get_all_study_names(storage):
        study = optuna.load_study(study_name=name, storage=storage, pruner=pruner)
        check_unchanged(question, study.user_attrs[FIXED])
        write_recipe(question)
        return study
    left = next(question.folder.glob("trial_*"), None)
    if left:
        raise ConfigError(
            f"{left} belongs to a search that {question.storage_shown} does not know: give this one another --name, or remove "
            f"{question.folder}"
        )
    write_recipe(question)
    study = optuna.create_study(study_name=name, storage=storage, direction=question.direction, pruner=pruner)
    study.set_user_attr(FIXED, question.fixed)
    _enqueue_first(question, study)
    return study


def _open_storage(question: Question) -> "RDBStorage":
    import sqlalchemy
    from optuna.storages import RDBStorage, RetryHeartbeatStaleTrialCallback

    url, where = question.storage, f"--storage {question.storage_shown}"
    options: dict[str, Any] = {"connect_args": {"timeout": BUSY_SECONDS}} if url.startswith("sqlite") else {}
    try:
        return RDBStorage(
            url,
            engine_kwargs=options,
            heartbeat_interval=HEARTBEAT_SECONDS,
            grace_period=STALE_SECONDS,
            heartbeat_stale_trial_callback=RetryHeartbeatStaleTrialCallback(inherit_intermediate_values=True),
        )
    except ImportError as error:
        module = getattr(error.__cause__, "name", None) or "its driver"
        raise ConfigError(
            f"{where}: needs {module}, which is not installed: pip install {DRIVERS.get(module, module)}"
        ) from None
    except sqlalchemy.exc.ArgumentError:
        raise ConfigError(f"{where}: expected sqlite:///FILE or postgresql://USER:PASSWORD@HOST/DATABASE") from None
    except (sqlalchemy.exc.SQLAlchemyError, RuntimeError) as error:
        reason = str(getattr(error, "orig", None) or error).strip().partition("\n")[0]
        raise ConfigError(f"{where}: {reason}") from None


def _enqueue_first(question: Question, study: "Study") -> None:
    """The whole grid; else the recipe's own values, to see what the search is worth."""
    from itertools import product

    names = [axis.setting for axis in question.axes]
    if question.sampler == "grid":
        for values in product(*(axis.grid() for axis in question.axes)):
            study.enqueue_trial(dict(zip(names, values, strict=True)))
        return
    own = {axis.setting: axis.of(question.config) for axis in question.axes}
    if None not in own.values():
        study.enqueue_trial(own, user_attrs={"own": True})


def sampler(question: Question, trials: int) -> "BaseSampler":
    """Seeded anew for each trial by how many there are, so that a search which was interrupted draws what it would have drawn,
    and by the element of a job array, so that workers which start together differ."""
    import numpy as np
    from optuna.samplers import RandomSampler, TPESampler

    worker = int(os.environ.get("SLURM_ARRAY_TASK_ID", "0"))
    seed = int(np.random.SeedSequence([question.seed, trials, worker]).generate_state(1)[0])
    return TPESampler(seed=seed) if question.sampler == "tpe" else RandomSampler(seed=seed)


def _pruner(question: Question) -> "BasePruner":
    from optuna.pruners import MedianPruner, NopPruner, SuccessiveHalvingPruner

    class Halving(SuccessiveHalvingPruner):
        """Among trials, not their attempts, all of which have the values of those before."""

        def prune(self, study: Any, trial: "FrozenTrial") -> bool:
            once = SimpleNamespace(
                get_trials=lambda deepcopy: known_trials(study), _storage=study._storage, direction=study.direction
            )
            return super().prune(once, trial)  # type: ignore[arg-type]

    if question.pruner == "asha":
        return Halving(min_resource=question.min_steps, reduction_factor=question.reduction)
    return MedianPruner(n_warmup_steps=question.min_steps - 1) if question.pruner == "median" else NopPruner()


def origin(trial: "FrozenTrial") -> int:
    """Number of a trial as people see it: of its first attempt. Its run is named by it."""
    return trial.system_attrs.get("failed_trial", trial.number)


def attempts(trial: "FrozenTrial") -> list[int]:
    """Numbers of the earlier entries of the same trial."""
    return trial.system_attrs.get("retry_history", [])


def known_trials(study: "Study") -> "list[FrozenTrial]":
    """Each trial once, as its latest attempt, ordered by number."""
    trials = study.get_trials(deepcopy=False)
    earlier = {number for trial in trials for number in attempts(trial)}
    newest = [t for t in trials if t.number not in earlier and "surplus" not in t.user_attrs]
    return sorted(newest, key=origin)


def interrupt(study: "Study", trial: "FrozenTrial") -> None:
    """Let a running trial wait to be continued by whoever comes first."""
    from optuna.exceptions import UpdateFinishedTrialError
    from optuna.trial import TrialState

    with suppress(UpdateFinishedTrialError, ValueError):  # another worker was faster
        study.tell(trial.number, state=TrialState.FAIL)
        callback = study._storage.get_heartbeat_stale_trial_callback()  # type: ignore[attr-defined]
        callback(study, study.get_trials(deepcopy=False)[trial.number])


def recover(study: "Study") -> None:
    """Take back the trials of workers that are dead: at once if they were on this host, else by their heartbeat. What is left
    of their training on this host saves and ends."""
    from optuna.storages import fail_stale_trials
    from optuna.trial import TrialState

    fail_stale_trials(study)
    for trial in study.get_trials(deepcopy=False, states=(TrialState.RUNNING,)):
        worker = trial.user_attrs.get("worker")
        if worker and worker["host"] == socket.gethostname() and not is_alive(worker):
            training = trial.user_attrs.get("training")
            if training and is_alive(training):
                end_group(training["pid"])
            interrupt(study, trial)


def identity(pid: int) -> dict[str, Any]:
    """A process, not to be taken for a later one of the same number."""
    return {"host": socket.gethostname(), "pid": pid, "started": psutil.Process(pid).create_time()}


def is_alive(process: dict[str, Any]) -> bool:
    try:
        found = psutil.Process(process["pid"])
        return found.create_time() == process["started"] and found.status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False
