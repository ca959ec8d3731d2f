"""A thousand malformed requests: each is refused, none is the server's fault, and it still works afterwards."""

import json
import random
import socket

import httpx
import pytest

from tasks.serve.limits import Limits
from tests.tasks.serving import decoder, serving
from tests.tasks.test_serve_classify import tuned

COUNT = 1000
VALID = {
    "/v1/embeddings": {"model": "tiny-gpt", "input": ["a", "b"], "encoding_format": "float", "dimensions": 4},
    "/v1/completions": {"model": "tiny-gpt", "prompt": "a", "max_tokens": 1, "temperature": 1, "stop": ["x"], "n": 1},
    "/v1/chat/completions": {
        "model": "tiny-gpt", "messages": [{"role": "user", "content": "a"}], "max_tokens": 1, "seed": 1, "top_p": 1,
    },
    "/classify": {"model": "tuned", "input": ["a", "b"], "truncate": True},
}  # fmt: skip
ODD = (
    None, True, False, -1, 0, 10**30, -(2**70), 1e308, 1e-300, "", "\ud800", "\x00", "x" * 5000, "𝕏🙂", [], [[]], [[[]]], {}, {"": None},
    [None], [True], ["a", 1], [1, "a"], [[1], "a"], [[-5]], [[10**20]], ["a"] * 2049, [[1]] * 2049, [{}], [""], {"$ref": "#"},
)  # fmt: skip
RAW = (
    b"", b"{", b"[]", b"null", b"NaN", b'"text"', b"\xff\xfe\x00", b"[" * 50_000, b'{"a":' * 20_000, b"1" * 5000,
    b'{"model": "tiny-gpt", "input": NaN}', b'{"model": "tiny-gpt", "input": "\\ud800"}', b'{"\\ud800": 1}',
    b'{"model": "tiny-gpt", "prompt": "a", "temperature": NaN}', b'{"model": "tiny-gpt", "prompt": "a", "top_p": Infinity}',
    b'{"model": "tiny-gpt", "prompt": "a", "\\ud800": 1}', b'{"model": "\\ud800", "input": "a"}', b'{"model": "tiny-gpt", "input": [1e400]}',
)  # fmt: skip


def malformed(draw: random.Random) -> tuple[str, bytes, dict]:
    """(path, body, headers) of a request with something wrong in most cases."""
    path = draw.choice(list(VALID))
    headers = {"Content-Type": "application/json"}
    if draw.random() < 0.2:
        body = draw.choice(RAW)
    else:
        fields = dict(VALID[path])
        for _ in range(draw.randint(1, 3)):
            name = draw.choice(
                [
                    *fields,
                    *VALID[draw.choice(list(VALID))],
                    "stream",
                    "stream_options",
                    "echo",
                    "logprobs",
                    "tools",
                    "\ud800",
                    "",
                ]
            )
            match draw.randrange(4):
                case 0:
                    fields.pop(name, None)
                case _:
                    fields[name] = draw.choice(ODD)
        body = json.dumps(fields).encode("utf-8", "surrogatepass")
        if draw.random() < 0.1:
            body = body[: draw.randrange(len(body))]
    if draw.random() < 0.1:
        headers["Content-Type"] = draw.choice(["text/plain", "", "multipart/form-data", "application/json; charset=x"])
    return path, body, headers


@pytest.fixture(scope="module")
def url():
    with serving(decoder(max_positions=32), Limits(max_body_bytes=1 << 16)) as url:
        yield url


@pytest.fixture(scope="module")
def labelling_url(tmp_path_factory):
    served, _ = tuned(tmp_path_factory.mktemp("tuned"), "classification")
    with serving(served, Limits(max_body_bytes=1 << 16)) as url:
        yield url


def test_malformed_requests_are_the_client_s_fault(url, labelling_url):
    draw, seen = random.Random(0), {}
    with httpx.Client(timeout=30) as client:
        for _ in range(COUNT):
            path, body, headers = malformed(draw)
            server = labelling_url if path == "/classify" else url
            answer = client.post(server + path, content=body, headers=headers)
            seen[answer.status_code] = seen.get(answer.status_code, 0) + 1
            assert answer.status_code < 500, (path, body[:300], answer.text)
            if answer.status_code >= 400:
                error = answer.json()["error"]
                assert error["message"] and error["type"] and set(error) == {"message", "type", "param", "code"}
        assert seen[400] > COUNT // 2 and seen.keys() <= {200, 400, 404, 413}, seen
        for path, body in VALID.items():
            server = labelling_url if path == "/classify" else url
            assert client.post(server + path, json=body).status_code == 200


@pytest.mark.parametrize(
    "sent",
    [b"\x00\x01\x02\r\n\r\n", b"GET\r\n\r\n", b"POST /v1/embeddings HTTP/1.1\r\nContent-Length: -5\r\n\r\n",
     b"POST /v1/embeddings HTTP/1.1\r\nHost: a\r\nContent-Length: 99999999999999999999999\r\n\r\n",
     b"POST /v1/embeddings HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\nzz\r\n", b"GET /" + b"a" * 100_000],
)  # fmt: skip
def test_what_is_not_http_does_not_stop_the_server(url, sent):
    host, port = url.removeprefix("http://").split(":")
    with socket.create_connection((host, int(port)), timeout=10) as connection:
        connection.sendall(sent)
        connection.shutdown(socket.SHUT_WR)
        answer = connection.recv(1000)
    assert not answer or answer.startswith((b"HTTP/1.1 4", b"HTTP/1.0 4"))
    assert httpx.get(f"{url}/health").status_code == 200
