"""sentence-transformers behind a plain FastAPI route, as most people first write it (see serving.py).

python -m benchmarks.serving_peer FOLDER --port 8000
"""

import argparse
import base64
from typing import Any

import torch
import uvicorn
from fastapi import FastAPI
from pydantic import BaseModel
from sentence_transformers import SentenceTransformer

from tasks.dtype import add_dtype


class Request(BaseModel):
    model: str
    input: str | list[str]
    encoding_format: str = "float"


def create_app(folder: str, dtype: torch.dtype) -> FastAPI:
    app, model = FastAPI(), SentenceTransformer(folder, device="cpu", model_kwargs={"dtype": dtype})

    @app.post("/v1/embeddings")
    def embed(request: Request) -> dict[str, Any]:
        texts = [request.input] if isinstance(request.input, str) else request.input
        vectors = model.encode(texts, show_progress_bar=False)
        packed = request.encoding_format == "base64"
        spelled = [base64.b64encode(vector.tobytes()).decode() if packed else vector.tolist() for vector in vectors]
        data = [{"object": "embedding", "index": i, "embedding": vector} for i, vector in enumerate(spelled)]
        return {
            "object": "list", "data": data, "model": request.model, "usage": {"prompt_tokens": 0, "total_tokens": 0},
        }  # fmt: skip

    return app


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folder")
    parser.add_argument("--port", type=int, default=8000)
    add_dtype(parser)
    options = parser.parse_args()
    uvicorn.run(create_app(options.folder, getattr(torch, options.dtype)), port=options.port, access_log=False)
