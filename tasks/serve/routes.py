"""The routes: what a browser, a load balancer and Prometheus ask for, and what the model does."""

from pathlib import Path
from typing import Any

from fastapi import APIRouter, Request
from fastapi.responses import FileResponse, JSONResponse, Response

from tasks.serve import classify, completions, embeddings
from tasks.serve.inputs import check_model
from tasks.serve.requests import ChatRequest, ClassifyRequest, CompletionRequest, EmbeddingRequest
from tasks.serve.responses import answered, written
from tasks.serve.service import Shared

PAGE = Path(__file__).with_name("page.html")
about, work = APIRouter(), APIRouter()


@about.get("/")
async def page() -> FileResponse:
    return FileResponse(PAGE, media_type="text/html")


@about.get("/health")
async def health(request: Request, service: Shared) -> JSONResponse:
    draining = request.app.state.guard.draining
    state = {"status": "draining" if draining else "ok", "model": service.served.name}
    return JSONResponse(state, 503 if draining else 200)


@about.get("/metrics")
async def metrics(service: Shared) -> Response:
    return Response(service.measure(), media_type="text/plain; version=0.0.4")


@about.get("/v1/models")
async def models(service: Shared) -> dict[str, Any]:
    return {"object": "list", "data": [service.card]}


@about.get("/v1/models/{name:path}")
async def model(name: str, service: Shared) -> dict[str, Any]:
    check_model(service.served, name)
    return service.card


@work.post("/v1/embeddings")
async def embed(body: EmbeddingRequest, request: Request, service: Shared) -> Response:
    return await answered(service, embeddings.answer(service.served, service.embedding, body), request)


@work.post("/classify")
async def label(body: ClassifyRequest, request: Request, service: Shared) -> Response:
    return await answered(service, classify.answer(service.served, service.labelling, body), request)


@work.post("/v1/completions")
async def complete(body: CompletionRequest, request: Request, service: Shared) -> Response:
    return await written(service, await completions.complete(service.served, service.writing, body), body, request)


@work.post("/v1/chat/completions")
async def chat(body: ChatRequest, request: Request, service: Shared) -> Response:
    answer = await completions.chat(service.served, service.writing, service.template, body)
    return await written(service, answer, body, request)
