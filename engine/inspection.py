"""Looks into the steps that the recipe's monitor section names, and into a step that fails."""

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

from config.parallel import data_rank_and_size
from data.stream import Stream
from engine.checkpoint import RunState
from engine.engine import Engine, TrainingError
from engine.localise import Finding, first_not_finite
from engine.memory import account_of_step, explain_out_of_memory
from engine.memory_errors import OutOfMemory, is_out_of_memory
from engine.profiling import Tracer
from engine.runs import Say
from engine.statistics import Statistics

ROWS_SHOWN = 3
MODULES_SHOWN = 60


class Inspector:
    """`with inspector.step(state)` around each step. Where nothing is to be looked at, it asks one set and no more."""

    def __init__(self, engine: Engine, stream: Stream, run_folder: Path, say: Say):
        self.engine, self.stream, self.folder = engine, stream, run_folder / "inspect"
        self.say = say if engine.world.is_main else print
        self.settings = engine.config.monitor
        self.writes = engine.world.rank in self.settings.inspect_ranks
        self.tracer = Tracer(frozenset(self.settings.profile_steps if self.writes else ()))
        self.steps = self.settings.inspected_steps | self.tracer.steps
        if self.steps and self.writes:
            self.folder.mkdir(exist_ok=True)

    @contextmanager
    def step(self, state: RunState) -> Iterator[None]:
        """Raises what the step raises; TrainingError and OutOfMemory with more words."""
        number = state.step + 1
        try:
            if number in self.steps:
                with ExitStack() as looking:
                    self._look(number, looking)
                    yield
            else:
                yield
        except TrainingError as error:
            raise TrainingError("\n  ".join([str(error), *self._places(state)])) from None
        except RuntimeError as error:
            if not is_out_of_memory(error):
                raise
            raise OutOfMemory(explain_out_of_memory(error, self.engine, number, self.folder)) from None

    def _look(self, number: int, looking: ExitStack) -> None:
        """Instruments leave in reverse order: the profiler sees none of the others."""
        rank = self.engine.world.rank
        if number in self.settings.memory_steps and self.writes:
            looking.enter_context(account_of_step(self.engine, self._path("memory", number), self.say))
        if number in self.settings.statistics_steps:
            looking.enter_context(self._statistics(number))
        if number in self.tracer.steps:
            looking.enter_context(self.tracer.step(number, self.folder, rank, self.say))

    def _path(self, what: str, number: int, rank: int | None = None) -> Path:
        return self.folder / f"{what}_step_{number:08d}.rank_{self.engine.world.rank if rank is None else rank}.txt"

    @contextmanager
    def _statistics(self, number: int) -> Iterator[None]:
        statistics = Statistics()
        with statistics.collected(self.engine):
            yield
        if self.writes:
            path, modules = self._path("statistics", number), statistics.modules_table()
            statistics.write(path)
            shown = modules if len(modules) <= MODULES_SHOWN else []
            self.say("\n".join([f"statistics of step {number:,}: {path}", *shown, f"  {statistics.summary()}"]))

    def _places(self, state: RunState) -> list[str]:
        """Where the failed step first went wrong, and on which rows, from computing it again."""
        micro_batches, _ = self.stream.step(state.cursor)
        statistics, number = Statistics(), state.step + 1
        findings = first_not_finite(self.engine, state.step, micro_batches, statistics.see)
        again = f"step {number:,} begins at cursor {state.cursor:,}; the same command comes to it again"
        if not findings:
            return [f"computed once more, uncompiled, every value is finite: suspect engine.compile; {again}"]
        first = findings[0]
        path = self._path("failed", number, first.rank)
        if self.engine.world.rank == first.rank:
            statistics.write(path)
        others = ", ".join(str(finding.rank) for finding in findings[1:])
        return [
            f"first not finite: {first.what}",
            f"on rank {first.rank}{f' (also {others})' if others else ''}, micro-batch {first.micro_batch + 1} of "
            f"{len(micro_batches)}; its modules: {path}",
            *self._rows(first, state.cursor),
            again,
        ]

    def _rows(self, finding: Finding, cursor: int) -> list[str]:
        """Where the rows of a finding come from."""
        world, batch = self.engine.world, self.engine.config.batch
        size = batch.micro_batch_size
        samples = sorted({finding.micro_batch * size + row % size for row in finding.rows})
        rank, ranks = data_rank_and_size(self.engine.config.engine, finding.rank, world.size)
        found = [self.stream.origin(cursor, rank, ranks, sample) for sample in samples[:ROWS_SHOWN]]
        more = [f"and {len(samples) - ROWS_SHOWN} more rows"] if len(samples) > ROWS_SHOWN else []
        return [f"row: {origin}" for origin in found] + more
