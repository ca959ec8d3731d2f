"""Back-pressure, time limits, clients that go away, and closing; with a model that waits when told to."""

import itertools
import signal
import socket
import subprocess
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor

import httpx
import openai
import pytest
import torch
import uvicorn

from config import ConfigError
from model.decoder import Decoder
from tasks.serve.app import create_app
from tasks.serve.limits import KEYS_VARIABLE, Limits, accepted_keys, read_keys
from tasks.serve.server import DrainingServer
from tests.conftest import ROOT, environment, train
from tests.tasks.serving import decoder, encoder, serving


class Held:
    """An encoder's `encode_tokens` that waits for `go` and remembers what it was asked."""

    def __init__(self):
        self.go, self.entered, self.batches = threading.Event(), threading.Event(), []

    def __call__(self, rows):
        self.batches.append(rows)
        self.entered.set()
        assert self.go.wait(20)
        return torch.ones(len(rows), 32)


@pytest.fixture
def held(monkeypatch):
    served, held = encoder(), Held()
    monkeypatch.setattr(served.embedder, "encode_tokens", held)
    yield served, held
    held.go.set()


def post(url: str, text: str, timeout: float = 20) -> httpx.Response:
    return httpx.post(f"{url}/v1/embeddings", json={"model": "tiny-bert", "input": text}, timeout=timeout)


def wait_for(condition) -> None:
    end = time.monotonic() + 20
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.01)


def waiting_tokens(url: str, work: str = "embed") -> float:
    return float(metrics(url).split(f'groundwork_waiting_tokens{{work="{work}"}} ')[1].split()[0])


def metrics(url: str) -> str:
    return httpx.get(f"{url}/metrics").text


def test_what_waits_is_batched_and_what_is_too_much_is_turned_away(held):
    served, model = held
    with serving(served, Limits(max_batch_tokens=40, max_waiting_tokens=50)) as url, ThreadPoolExecutor(9) as pool:
        first = pool.submit(post, url, "x")
        assert model.entered.wait(20)
        others = [pool.submit(post, url, "y" * 8) for _ in range(5)]  # 10 tokens each
        wait_for(lambda: waiting_tokens(url) == 50)
        refused = post(url, "z")
        assert refused.status_code == 429 and int(refused.headers["retry-after"]) >= 1
        assert refused.json()["error"]["type"] == "rate_limit_error"
        model.go.set()
        assert [answer.result().status_code for answer in (first, *others)] == [200] * 6
        assert [len(batch) for batch in model.batches] == [1, 4, 1]


def test_a_client_that_went_away_is_neither_computed_nor_counted_as_waiting(held):
    served, model = held
    with serving(served) as url, ThreadPoolExecutor(9) as pool:
        first = pool.submit(post, url, "x")
        assert model.entered.wait(20)
        with pytest.raises(httpx.ReadTimeout):
            post(url, "gone", timeout=0.3)
        wait_for(lambda: "groundwork_dropped_requests_total 1.0" in metrics(url))
        assert waiting_tokens(url) == 0
        last = pool.submit(post, url, "stays")
        wait_for(lambda: waiting_tokens(url) == 7)
        model.go.set()
        assert first.result().status_code == last.result().status_code == 200
        assert [len(row) for batch in model.batches[1:] for row in batch] == [7]


def test_a_request_that_takes_too_long_gets_504(held):
    served, model = held
    with serving(served, Limits(timeout=0.3)) as url:
        late = post(url, "x")
        assert late.status_code == 504 and "longer than 0.3 s" in late.json()["error"]["message"]
        model.go.set()


def test_a_body_that_comes_too_slowly_gets_408():
    with serving(encoder(), Limits(timeout=0.3)) as url:
        host, port = url.removeprefix("http://").split(":")
        with socket.create_connection((host, int(port)), timeout=20) as connection:
            head = b"POST /v1/embeddings HTTP/1.1\r\nHost: a\r\nContent-Type: application/json\r\nContent-Length: 99\r\n\r\n"
            connection.sendall(head + b'{"model"')
            assert connection.recv(1000).startswith(b"HTTP/1.1 408 ")
        assert httpx.get(f"{url}/health").json() == {"status": "ok", "model": "tiny-bert"}


def test_a_failing_model_is_500_and_the_next_request_works(monkeypatch):
    served = encoder()
    fine = served.embedder.encode_tokens

    def fail_once(rows):
        if len(rows[0]) == 3:
            raise RuntimeError("out of memory")
        return fine(rows)

    monkeypatch.setattr(served.embedder, "encode_tokens", fail_once)
    with serving(served) as url:
        broken = post(url, "x")
        assert broken.status_code == 500 and broken.json()["error"]["type"] == "server_error"
        assert post(url, "xy").status_code == 200


def test_a_stream_whose_model_fails_ends_with_the_error_and_the_next_one_works(monkeypatch):
    step, count = Decoder.step, itertools.count()

    def fail_once(decoder):
        if next(count) == 3:
            raise RuntimeError("out of memory")
        return step(decoder)

    monkeypatch.setattr(Decoder, "step", fail_once)
    with serving(decoder()) as url:
        client = openai.OpenAI(base_url=f"{url}/v1", api_key="none", max_retries=0)
        options = {"model": "tiny-gpt", "prompt": "a", "max_tokens": 8, "temperature": 0, "stream": True}
        with pytest.raises(openai.APIError, match="the server failed on this request"):
            list(client.completions.create(**options))
        assert list(client.completions.create(**options))[-1].choices[0].finish_reason == "length"


def test_a_stream_that_is_left_before_its_first_token_is_neither_written_nor_counted_as_waiting(monkeypatch):
    step, go, entered = Decoder.step, threading.Event(), threading.Event()

    def held_step(decoder):
        entered.set()
        assert go.wait(20)
        return step(decoder)

    monkeypatch.setattr(Decoder, "step", held_step)
    with serving(decoder(), Limits(max_batch_rows=1)) as url, ThreadPoolExecutor(1) as pool:
        body = {"model": "tiny-gpt", "max_tokens": 5, "temperature": 0}
        first = pool.submit(httpx.post, f"{url}/v1/completions", json={**body, "prompt": "a"}, timeout=20)
        assert entered.wait(20)
        chat = {**body, "messages": [{"role": "user", "content": "a"}], "stream": True, "n": 2}
        with httpx.stream("POST", f"{url}/v1/chat/completions", json=chat) as answer:
            lines = answer.iter_lines()
            assert '"role": "assistant"' in next(lines)
            assert waiting_tokens(url, "write") > 0
        wait_for(lambda: "groundwork_dropped_requests_total 1.0" in metrics(url))
        assert waiting_tokens(url, "write") == 0
        go.set()
        assert first.result().status_code == 200
        time.sleep(0.1)
        assert 'groundwork_tokens_total{work="write"} 5.0' in metrics(url)


@pytest.mark.parametrize("stream", [True, False])
def test_a_completion_whose_client_leaves_stops_being_written(stream):
    served = decoder(max_positions=4096)
    with serving(served) as url:
        body = {"model": "tiny-gpt", "prompt": "a", "max_tokens": 4000, "n": 3, "stream": stream}
        if stream:
            with httpx.stream("POST", f"{url}/v1/completions", json=body) as answer:
                assert answer.headers["x-accel-buffering"] == "no"
                next(answer.iter_lines())
        else:
            with pytest.raises(httpx.ReadTimeout):
                httpx.post(f"{url}/v1/completions", json=body, timeout=0.3)

        def active() -> str:
            return httpx.get(f"{url}/metrics").text.split("\ngroundwork_active_requests ")[1].split()[0]

        wait_for(lambda: active() == "1.0")  # the request for the metrics itself

        def written() -> str:
            return httpx.get(f"{url}/metrics").text.split('groundwork_tokens_total{work="write"} ')[1].split()[0]

        before = written()
        time.sleep(0.3)
        assert float(written()) - float(before) <= 3 and float(before) < 3 * 3500


@pytest.mark.slow
def test_the_command_serves_a_run_and_drains_on_sigterm(recipe, tmp_path):
    assert train(recipe).returncode == 0
    keys = tmp_path / "keys"
    keys.write_text("secret\n")
    command = [
        sys.executable,
        "-m",
        "tasks",
        "serve",
        str(tmp_path / "runs/tiny"),
        "--port",
        "0",
        "--api-keys",
        str(keys),
    ]
    server = subprocess.Popen(command, cwd=ROOT, env=environment(), stderr=subprocess.PIPE, text=True)
    lines = []
    for line in server.stderr:
        lines.append(line)
        if "running on" in line:
            break
    url = line.split("running on ")[1].split()[0]
    headers = {"Authorization": "Bearer secret"}
    body = {"model": "tiny", "prompt": "the", "max_tokens": 50, "stream": True, "temperature": 0}
    with httpx.Client(base_url=url, headers=headers, timeout=30) as client:
        assert client.post("/v1/embeddings", json={"model": "tiny", "input": "the model"}).status_code == 200
        with client.stream("POST", "/v1/completions", json={**body, "n": 64}) as stream:
            events = stream.iter_lines()
            next(events)
            server.send_signal(signal.SIGTERM)
            wait_for(lambda: httpx.get(f"{url}/health").status_code == 503)
            refused = httpx.post(f"{url}/v1/completions", json=body, headers=headers)
            assert refused.status_code == 503 and refused.headers["retry-after"]
            assert [line for line in events if line][-1] == "data: [DONE]"
    assert server.wait(20) == 0
    server.stderr.close()


def test_draining_ends_though_a_client_never_reads_its_stream():
    app = create_app(encoder(), Limits(timeout=0.3))
    server = DrainingServer(uvicorn.Config(app.state.guard, port=0, log_level="error", lifespan="on"), app.state.guard)
    thread = threading.Thread(target=server.run, daemon=True)
    thread.start()
    wait_for(lambda: server.started)
    server.guard.active += 1  # as long as nobody reads it
    server.handle_exit(signal.SIGTERM, None)
    thread.join(10)
    assert not thread.is_alive() and not server.force_exit


def test_keys_come_from_the_command_line_a_file_or_the_environment(tmp_path, monkeypatch):
    monkeypatch.setenv(KEYS_VARIABLE, "one, two")
    (tmp_path / "keys").write_text("three\nfour\n")
    assert accepted_keys(None, None) == ("one", "two")
    assert accepted_keys(None, tmp_path / "keys") == ("three", "four")
    assert accepted_keys("five", None) == ("five",)
    with pytest.raises(ConfigError, match="--api-key is empty"):
        accepted_keys("", None)
    monkeypatch.delenv(KEYS_VARIABLE)
    assert accepted_keys(None, None) == ()


def test_settings_that_cannot_work_are_refused(tmp_path):
    with pytest.raises(ConfigError, match="--max-batch-tokens 0 is not above 0"):
        Limits(max_batch_tokens=0)
    (tmp_path / "keys").write_text("\n")
    with pytest.raises(ConfigError, match="has no key"):
        read_keys(tmp_path / "keys")
    with pytest.raises(ConfigError, match="cannot be read"):
        read_keys(tmp_path / "none")
