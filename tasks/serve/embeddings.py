"""POST /v1/embeddings."""

import base64
from typing import Any

import torch.nn.functional as F
from torch import Tensor

from tasks.serve.embedding_queue import EmbeddingQueue
from tasks.serve.errors import refuse
from tasks.serve.inputs import check_model, read_rows
from tasks.serve.requests import EmbeddingRequest
from tasks.serve.served import Served


async def answer(served: Served, queue: EmbeddingQueue, request: EmbeddingRequest) -> dict[str, Any]:
    check_model(served, request.model)
    rows = read_rows(
        served,
        request.input,
        "input",
        encode=lambda text: served.embedder.framed(served.tokenizer.encode(text)),
        surround=served.embedder.framed,
    )
    width = served.embedder.width
    if request.dimensions is not None and request.dimensions > width:
        raise refuse(f"dimensions {request.dimensions} is more than the model's {width}", "dimensions")
    vectors_ND = await queue.embed(rows)
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


def spell(vectors_ND: Tensor, encoding: str) -> list[Any]:
    """Vectors as lists of numbers, or as base64 of little-endian float32."""
    if encoding == "float":
        return vectors_ND.tolist()
    return [base64.b64encode(vector_D.numpy().astype("<f4").tobytes()).decode() for vector_D in vectors_ND]
