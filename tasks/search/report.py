"""The report of a search: table on the screen; search.json, best.yaml, importance.png and search.html in its folder."""

import os
from typing import TYPE_CHECKING

from config.load import display_path
from data.files import write_atomically
from tasks.search.page import search_page
from tasks.search.question import Question
from tasks.search.results import best, comparable, importance, rows, table, write_best, write_json
from tasks.search.study import origin

if TYPE_CHECKING:
    from optuna import Study


def report(question: Question, study: "Study") -> str:
    """Write everything, also in the middle of a search. Returns what the screen shows."""
    found, winner = rows(study), best(study)
    basis, judged = comparable(study)
    shares = importance(judged)
    number = None if winner is None else origin(winner)
    write_json(question, found, number, shares)
    page = question.folder / "search.html"
    write_atomically(page, search_page(question, found, number, shares, basis))
    lines = [f"\n{table(question, found)}\n"]
    if judged is not None:
        _plot_importance(question, judged)
        words = ", ".join(f"{name} {share:.0%}" for name, share in shares.items())
        lines.append(f"importance    {words} (of {basis})")
    if winner is not None:
        lines.append(write_best(question, winner, len(found)))
    return "\n".join([*lines, f"report        {display_path(page)}"])


def _plot_importance(question: Question, judged: "Study") -> None:
    """importance.png, as Optuna draws it."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot
    from optuna.importance import FanovaImportanceEvaluator
    from optuna.visualization.matplotlib import plot_param_importances

    plot_param_importances(judged, evaluator=FanovaImportanceEvaluator(seed=0))
    temporary = question.folder / f".importance.{os.getpid()}.png"
    pyplot.savefig(temporary, dpi=150, bbox_inches="tight")
    pyplot.close()
    temporary.replace(question.folder / "importance.png")
