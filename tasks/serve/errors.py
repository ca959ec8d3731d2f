"""Errors as OpenAI's clients know them: {"error": {message, type, param, code}}."""

import logging
import re
from collections.abc import Sequence

from fastapi import FastAPI, HTTPException, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse
from starlette.exceptions import HTTPException as StarletteHTTPException

from tasks.serve.limits import MAX_STOPS

TYPES = {401: "invalid_request_error", 429: "rate_limit_error", 503: "server_error", 504: "server_error"}

INPUT = (
    "a text, a list of texts, a list of token ids, or a list of lists of token ids; "
    "lists must not be empty, and texts must be Unicode"
)
ANY_OF = {
    "input": INPUT, "prompt": INPUT, "stop": f"a text or a list of at most {MAX_STOPS} texts",
    "content": 'a text or a list of {"type": "text", "text": …}: pictures, sounds and files are not supported',
}  # fmt: skip
"""Parameters of several forms."""
TO_CLASSIFY = "a text, a list of texts, or a list of pairs or of words of each text; lists must not be empty"


class ApiError(HTTPException):
    """An answer that is an error."""

    def __init__(
        self, status: int, message: str, *, param: str | None = None, code: str | None = None, retry_after: int = 0
    ):
        super().__init__(status, message, {"Retry-After": str(retry_after)} if retry_after else None)
        self.param, self.code = param, code


def refuse(message: str, param: str | None = None, code: str | None = None) -> ApiError:
    """The client's mistake: 400."""
    return ApiError(400, message, param=param, code=code)


def failed(error: Exception) -> ApiError:
    """The server's own mistake: 500, and the reason in its log."""
    logging.getLogger("uvicorn.error").error("a request failed", exc_info=error)
    return ApiError(500, "the server failed on this request; its log says why")


def error_body(error: StarletteHTTPException) -> dict:
    kind = TYPES.get(error.status_code, "invalid_request_error" if error.status_code < 500 else "server_error")
    # A lone surrogate, which JSON can spell, has no UTF-8.
    message = str(error.detail).encode("utf-8", "replace").decode()
    return {
        "error": {
            "message": message,
            "type": kind,
            "param": getattr(error, "param", None),
            "code": getattr(error, "code", None),
        }
    }


def error_response(error: StarletteHTTPException) -> JSONResponse:
    return JSONResponse(error_body(error), error.status_code, headers=error.headers)


def explain(error: RequestValidationError, path_called: str) -> ApiError:
    """The first thing that is wrong with a request."""
    first = error.errors()[0]
    where = _place(first["loc"])
    if first["type"] == "json_invalid" or not where:
        return refuse(f"the body is not a JSON object of type application/json: {first['msg']}")
    last_name = max(place for place, part in enumerate(where) if isinstance(part, str))
    param, spelled, whole = str(where[0]), _spell(where), _spell(where[: last_name + 1])
    if first["type"] == "extra_forbidden":
        return refuse(f"Unrecognized request argument supplied: {spelled}", param, "unknown_parameter")
    if first["type"] == "missing":
        return refuse(f"you must provide the parameter {spelled}", param, "missing_required_parameter")
    if first["type"] == "none_required":
        return refuse(f"{spelled} is not supported by this server: leave it out", param, "unsupported_parameter")
    forms = TO_CLASSIFY if (path_called, whole) == ("/classify", "input") else ANY_OF.get(str(where[last_name]))
    return refuse(f"{whole} must be {forms}" if forms else f"{spelled}: {first['msg']}", param)


def _place(loc: Sequence[str | int]) -> list[str | int]:
    """Names and numbers on the way to a value, without the kinds that pydantic tried for it."""
    parts = [part if isinstance(part, int) else part.encode("utf-8", "replace").decode() for part in loc[1:]]
    return parts[:1] + [p for p in parts[1:] if isinstance(p, int) or re.fullmatch(r"\w+", p)]


def _spell(parts: Sequence[str | int]) -> str:
    return "".join(f"[{part}]" if isinstance(part, int) else f".{part}" for part in parts)[1:]


def add_handlers(app: FastAPI) -> None:
    async def on_http(request: Request, error: Exception) -> JSONResponse:
        assert isinstance(error, StarletteHTTPException)
        if not isinstance(error, ApiError):  # FastAPI's own, of a path or a method that there is not
            error.detail = f"{request.method} {request.url.path}: {error.detail}; /v1/models says what the model can do"
        return error_response(error)

    async def on_validation(request: Request, error: Exception) -> JSONResponse:
        assert isinstance(error, RequestValidationError)
        return error_response(explain(error, request.url.path))

    async def on_bug(request: Request, error: Exception) -> JSONResponse:
        return error_response(failed(error))

    app.add_exception_handler(StarletteHTTPException, on_http)
    app.add_exception_handler(RequestValidationError, on_validation)
    app.add_exception_handler(Exception, on_bug)
