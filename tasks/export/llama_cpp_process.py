"""llama.cpp in a process of its own: `python -m tasks.export.llama_cpp_process FILE CONTEXT`.

Reads a JSON list of [route, request] from standard input and writes the list of answers. What llama.cpp finds wrong in a
file may end its process.
"""

import json
import os
import sys
import urllib.request
from typing import Any

import xllamacpp


def main(path: str, context: int) -> None:
    server = serve(path, context)
    answers = [ask(server.listening_address, route, request) for route, request in json.load(sys.stdin)]
    json.dump(answers, sys.stdout)
    sys.stdout.flush()
    os._exit(0)  # there is nothing to save, and its threads need not be waited for


def serve(path: str, context: int) -> Any:
    """llama.cpp with the file, on the CPU, in fp32 wherever that is a choice, quiet, on a free port of this machine."""
    params = xllamacpp.CommonParams()
    params.model.path = path
    params.n_ctx, params.n_parallel, params.n_gpu_layers = context, 1, 0
    params.cache_type_k = params.cache_type_v = xllamacpp.ggml_type.GGML_TYPE_F32
    params.flash_attn_type = xllamacpp.llama_flash_attn_type.LLAMA_FLASH_ATTN_TYPE_DISABLED
    params.fit_params = params.warmup = False
    params.verbosity = 0
    return xllamacpp.Server(params)


def ask(address: str, route: str, request: dict[str, Any]) -> Any:
    data = json.dumps(request).encode()
    message = urllib.request.Request(f"{address}/{route}", data, {"Content-Type": "application/json"})
    with urllib.request.urlopen(message) as answer:
        return json.load(answer)


if __name__ == "__main__":
    main(sys.argv[1], int(sys.argv[2]))
