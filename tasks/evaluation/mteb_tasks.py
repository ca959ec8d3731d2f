"""Our vectors in MTEB (arXiv:2210.07316): its tasks, on data from a folder or from the local cache of `datasets`."""

from pathlib import Path
from typing import Any

import mteb
import numpy as np
from mteb.abstasks import AbsTask
from mteb.models import ModelMeta

from config import DataError
from tasks.embedding import Embedder
from tasks.evaluation.result import Result


class MtebModel:
    """What MTEB asks of an encoder. Texts are read as they are: no prompt is put before them."""

    def __init__(self, embedder: Embedder):
        self.embedder = embedder
        self.mteb_model_meta = ModelMeta.create_empty({"name": "groundwork/model", "revision": "local"})

    def encode(self, inputs: Any, **kwargs: Any) -> np.ndarray:
        """Vectors [N, D] of the texts in batches of MTEB's."""
        return self.embedder.encode([text for batch in inputs for text in batch["text"]]).numpy()

    def similarity(self, first_ND: Any, second_MD: Any) -> np.ndarray:
        """Cosines [N, M]."""
        return _unit(first_ND) @ _unit(second_MD).T

    def similarity_pairwise(self, first_ND: Any, second_ND: Any) -> np.ndarray:
        """Cosines [N]."""
        return (_unit(first_ND) * _unit(second_ND)).sum(-1)


def _unit(vector_ND: Any) -> np.ndarray:
    vector_ND = np.atleast_2d(np.asarray(vector_ND))
    return vector_ND / np.maximum(np.linalg.norm(vector_ND, axis=-1, keepdims=True), np.finfo(np.float32).tiny)


def run_tasks(embedder: Embedder, tasks: list[str], folder: Path | None = None) -> list[Result]:
    """One result for each task and subset, named as MTEB names it. `folder` has the data of each task in a folder of the
    task's name, laid out as on the hub.

    Raises DataError if there is no such task or its data cannot be loaded.
    """
    results = []
    for task in [_find(name, folder) for name in tasks]:
        try:
            found = mteb.evaluate(MtebModel(embedder), task, cache=None, show_progress_bar=False, co2_tracker=False)
        except (OSError, ConnectionError) as error:
            raise DataError(
                f"the data of MTEB's {task.metadata.name} is not in the local cache and could not be fetched ({error}): "
                "download it on a machine with a connection, and give --mteb-data FOLDER"
            ) from error
        except KeyError as error:
            raise DataError(
                f"the data of MTEB's {task.metadata.name} has no {error}: it needs the splits and fields that the hub has"
            ) from error
        results += [_result(name, split, row) for one in found.task_results for name, split, row in _rows(one)]
    return results


def _find(name: str, folder: Path | None) -> AbsTask:
    try:
        task = mteb.get_task(name)
    except KeyError as error:
        raise DataError(f"MTEB has no such task: {error.args[0]}") from None
    if folder:
        path = folder / task.metadata.name
        if not path.is_dir():
            raise DataError(
                f"{path}: no such folder; download {task.metadata.dataset['path']} into it: "
                f"hf download --repo-type dataset {task.metadata.dataset['path']} --local-dir {path}"
            )
        task.metadata = task.metadata.model_copy(update={"dataset": task.metadata.dataset | {"path": str(path)}})
    return task


def _rows(found: Any) -> list[tuple[str, str, dict[str, Any]]]:
    return [(found.task_name, split, row) for split, rows in found.scores.items() for row in rows]


def _result(task: str, split: str, row: dict[str, Any]) -> Result:
    values = {name: float(value) for name, value in row.items() if isinstance(value, int | float)}
    return Result("mteb", task, "main_score", values, {"split": split, "subset": row["hf_subset"]})
