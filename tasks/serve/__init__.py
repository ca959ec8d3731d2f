"""Serve a trained model over HTTP in OpenAI's shape: embeddings, labels, completions; a page at / to try it."""

import argparse
from pathlib import Path

from config import ConfigError
from tasks.dtype import add_dtype


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("model", type=Path, help="folder of a run, of a checkpoint, or in Hugging Face's layout")
    parser.add_argument("--name", help="what requests call the model (default: the folder's name)")
    parser.add_argument("--host", default="127.0.0.1", help="address to listen on; 0.0.0.0 for all (127.0.0.1)")
    parser.add_argument("--port", type=int, default=8000, help="0 takes a free one (default 8000)")
    keys = parser.add_mutually_exclusive_group()
    keys.add_argument("--api-key", help="the key that requests must bring; other users of this machine see it")
    keys.add_argument(
        "--api-keys",
        type=Path,
        metavar="FILE",
        help="file with one accepted key on each line (default: those in GROUNDWORK_API_KEYS)",
    )
    parser.add_argument(
        "--max-batch-tokens",
        type=int,
        default=8192,
        help="most tokens that are embedded, or read as prompts, at once (8192)",
    )
    parser.add_argument("--max-batch-rows", type=int, default=32, help="most completions written at once (default 32)")
    parser.add_argument(
        "--max-waiting-tokens", type=int, default=1 << 20, help="beyond this many waiting, requests get 429 (1048576)"
    )
    parser.add_argument("--max-body-bytes", type=int, default=32 << 20, help="largest request (default 33554432)")
    parser.add_argument("--timeout", type=float, default=120, help="longest that a request may take, seconds (120)")
    add_dtype(parser)
    parser.add_argument("--device", help="cpu, cuda, cuda:1, … (default: a GPU if there is one)")


def run(options: argparse.Namespace) -> int:
    try:
        import fastapi  # noqa: F401
        import jinja2  # noqa: F401
        import prometheus_client  # noqa: F401
        import uvicorn  # noqa: F401
    except ImportError as error:
        raise ConfigError(f"serving needs {error.name}, which is not installed: pip install -e '.[serve]'") from None
    import torch

    from tasks.serve.app import create_app
    from tasks.serve.limits import Limits, accepted_keys
    from tasks.serve.served import load
    from tasks.serve.server import serve

    if not 0 <= options.port < 65536:
        raise ConfigError(f"--port {options.port}: ports are 0 to 65535")
    limits = Limits(
        max_batch_tokens=options.max_batch_tokens,
        max_batch_rows=options.max_batch_rows,
        max_waiting_tokens=options.max_waiting_tokens,
        max_body_bytes=options.max_body_bytes,
        timeout=options.timeout,
    )
    keys = accepted_keys(options.api_key, options.api_keys)
    device = torch.device(options.device or ("cuda" if torch.cuda.is_available() else "cpu"))
    app = create_app(load(options.model, device, options.name, getattr(torch, options.dtype)), limits, keys)
    return serve(app, options.host, options.port)
