"""POST /classify, in vLLM's shape."""

import time
import uuid
from typing import Any

from numpy.typing import NDArray

from config import DataError
from tasks.serve.classifier import Classifier, Reading
from tasks.serve.errors import refuse
from tasks.serve.inputs import check_count, check_model, off_loop, too_long
from tasks.serve.reading_queue import ReadingQueue
from tasks.serve.requests import ClassifyRequest
from tasks.serve.served import Served


async def answer(served: Served, queue: ReadingQueue | None, request: ClassifyRequest) -> dict[str, Any]:
    check_model(served, request.model)
    classifier = served.classifier
    if classifier is None or queue is None:
        raise refuse(f"the model {served.name} has no labels: serve a run of `python -m tasks finetune`", "model")
    readings = await off_loop(request.input, read, classifier, request)
    found = await queue.read(readings)
    tokens = sum(map(len, readings))
    data = [
        {"index": index, **described(classifier, reading, scores_NC)}
        for index, (reading, scores_NC) in enumerate(zip(readings, found, strict=True))
    ]
    return {
        "id": f"classify-{uuid.uuid4().hex}", "object": "list", "created": int(time.time()), "model": served.name,
        "data": data, "usage": {"prompt_tokens": tokens, "completion_tokens": 0, "total_tokens": tokens},
    }  # fmt: skip


def read(classifier: Classifier, request: ClassifyRequest) -> list[Reading]:
    """Raises ApiError 400 for inputs that are not what the model learned, and for too long ones."""
    items: list[Any] = [request.input] if isinstance(request.input, str) else request.input
    check_count(items, "input")
    truncate = classifier.fields.truncate if request.truncate is None else request.truncate
    readings = []
    for number, item in enumerate(items):
        where = "input" if items is not request.input else f"input[{number}]"
        try:
            reading = classifier.read(where, _expected(classifier, where, item), truncate)
        except DataError as error:
            raise refuse(str(error), "input") from None
        if len(reading) > classifier.longest:
            raise too_long(classifier.longest, len(reading), where, "input", " (truncate=true cuts it off)")
        readings.append(reading)
    return readings


def _expected(classifier: Classifier, where: str, item: str | list[str]) -> str | list[str]:
    """A text, a pair or a list of words. Raises ApiError 400 for what the model does not judge."""
    if isinstance(item, str) and classifier.judges == "words":
        item = item.split()
    if not item or not all([item] if isinstance(item, str) else item):
        raise refuse(f"{where} has an empty text", "input")
    if classifier.judges == "pairs" and (isinstance(item, str) or len(item) != 2):
        shape = '[["first text", "second text"], …]'
        raise refuse(f"{where} is no pair, and this model judges pairs: send {shape}", "input")
    if classifier.judges == "texts" and not isinstance(item, str):
        raise refuse(f"{where} is a list, and this model judges single texts: send a text or a list of texts", "input")
    return item


def described(classifier: Classifier, reading: Reading, scores_NC: NDArray) -> dict[str, Any]:
    """What the scores say: the likeliest label, or that of each word, or a number."""
    labels = classifier.labels
    if not labels:
        return {"label": None, "score": float(scores_NC[0, 0]), "num_classes": 1}
    if classifier.judges != "words":
        return {**_likeliest(labels, scores_NC[0]), "num_classes": len(labels)}
    score_of = dict(zip(reading.targets, scores_NC, strict=True))
    unread = {"label": None, "probs": None}
    words = [
        {"word": word, **(_likeliest(labels, score_of[place]) if place in score_of else unread)}
        for word, place in reading.words
    ]
    return {"words": words, "num_classes": len(labels)}


def _likeliest(labels: tuple[str, ...], prob_C: NDArray) -> dict[str, Any]:
    return {"label": labels[int(prob_C.argmax())], "probs": prob_C.tolist()}
