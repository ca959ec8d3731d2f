"""The report of a search: table, JSON, best recipe."""

from typing import TYPE_CHECKING

from tasks.search.question import Question
from tasks.search.results import rows, table, write_best, write_json

if TYPE_CHECKING:
    from optuna import Study


def report(question: Question, study: "Study") -> str:
    found = rows(study)
    write_json(question, study, found)
    return f"\n{table(question, found)}\n\n{write_best(question, study)}"
