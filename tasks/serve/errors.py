"""Errors as OpenAI's clients know them: {"error": {message, type, param, code}}."""

import logging

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
ANY_OF = {"input": INPUT, "prompt": INPUT, "stop": f"a text or a list of at most {MAX_STOPS} texts"}
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
    path = [str(part) for part in first["loc"] if part != "body"]
    if first["type"] == "json_invalid" or not path:
        return refuse(f"the body is not a JSON object of type application/json: {first['msg']}")
    param = path[0].encode("utf-8", "replace").decode()
    if first["type"] == "extra_forbidden":
        return refuse(f"Unrecognized request argument supplied: {param}", param, "unknown_parameter")
    if first["type"] == "missing":
        return refuse(f"you must provide the parameter {'.'.join(path)}", param, "missing_required_parameter")
    if param == "input" and path_called == "/classify":
        return refuse(f"{param} must be {TO_CLASSIFY}", param)
    if param in ANY_OF:
        return refuse(f"{param} must be {ANY_OF[param]}", param)
    return refuse(f"{'.'.join(path)}: {first['msg']}", param)


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
