"""The application: one model behind its routes, its errors and its guard."""

from collections.abc import Sequence

from fastapi import FastAPI

from tasks.serve.errors import add_handlers
from tasks.serve.guard import Guard
from tasks.serve.limits import Limits
from tasks.serve.metrics import Metrics
from tasks.serve.routes import about, work
from tasks.serve.served import Served
from tasks.serve.service import Service


def create_app(served: Served, limits: Limits = Limits(), keys: Sequence[str] = ()) -> FastAPI:  # noqa: B008
    """The application; `state.guard` is what uvicorn serves."""
    metrics = Metrics()
    service = Service(served, limits, metrics)
    app = FastAPI(title="Groundwork", lifespan=service.running, docs_url=None, redoc_url=None)
    app.state.service, app.state.guard = service, Guard(app, limits, keys, metrics)
    add_handlers(app)
    app.include_router(about)
    app.include_router(work)
    return app
