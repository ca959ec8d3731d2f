"""POST /v1/embeddings."""

import base64
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from tasks.embedding import Embedder
from tasks.serve.errors import refuse
from tasks.serve.inputs import check_length, check_model, off_loop, read_items
from tasks.serve.reading_queue import ReadingQueue
from tasks.serve.requests import EmbeddingRequest
from tasks.serve.served import Served


async def answer(served: Served, queue: ReadingQueue | None, request: EmbeddingRequest) -> dict[str, Any]:
    check_model(served, request.model)
    embedder = served.embedder
    if embedder is None or queue is None:
        raise refuse(f"the model {served.name} has no embeddings: it writes, at /v1/completions", "model")
    rows = await off_loop(request.input, read, served, embedder, request)
    vectors_ND = torch.stack(await queue.read(rows))
    if request.dimensions is not None:
        vectors_ND = F.normalize(vectors_ND[:, : request.dimensions], dim=1)
    count = sum(map(len, rows))
    return {
        "object": "list",
        "data": [
            {"object": "embedding", "index": index, "embedding": vector}
            for index, vector in enumerate(spell(vectors_ND, request.encoding_format))
        ],
        "model": served.name,
        "usage": {"prompt_tokens": count, "total_tokens": count},
    }


def read(served: Served, embedder: Embedder, request: EmbeddingRequest) -> list[list[int]]:
    """The tokens of each input, special tokens included."""
    if request.dimensions is not None and request.dimensions > embedder.dimensions:
        raise refuse(f"dimensions {request.dimensions} is more than the model's {embedder.dimensions}", "dimensions")
    rows = []
    for where, item in read_items(served, request.input, "input"):
        row = embedder.framed(served.tokenizer.encode(item) if isinstance(item, str) else item)
        check_length(served.longest, len(row), where, "input")
        rows.append(row)
    return rows


def spell(vectors_ND: Tensor, encoding: str) -> list[Any]:
    """Vectors as lists of numbers, or as base64 of little-endian float32."""
    if encoding == "float":
        return vectors_ND.tolist()
    return [base64.b64encode(vector_D.numpy().astype("<f4").tobytes()).decode() for vector_D in vectors_ND]
