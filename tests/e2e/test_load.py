"""Many clients on two cores: 256 streams, 2,000 idle connections, disconnects, slow readers, floods; and /metrics as promtool wants it."""
import asyncio
import json
import resource
import shutil
import socket
import subprocess
import time

import pytest

from kvasir_server import DEMO, SLOW, Server

resource.setrlimit(resource.RLIMIT_NOFILE, (min(8192, resource.getrlimit(resource.RLIMIT_NOFILE)[1]), resource.getrlimit(resource.RLIMIT_NOFILE)[1]))


def used_blocks(server):
    return server.metric("kvasir_kv_blocks_used")


def wait_until(condition, seconds, what):
    deadline = time.time() + seconds * SLOW
    while not condition():
        assert time.time() < deadline, what
        time.sleep(0.01)


async def one_stream(port, i):
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    body = json.dumps({"prompt": [1 + i % 100, 5, 9], "max_tokens": 24, "stream": True, "ignore_eos": True, "seed": i, "temperature": 1,
                       "return_token_ids": True, "stream_options": {"include_usage": True}}).encode()
    writer.write(b"POST /v1/completions HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\nConnection: close\r\n"
                 b"Content-Length: %d\r\n\r\n" % len(body) + body)
    answer = await reader.read(-1)
    writer.close()
    assert b" 200 " in answer.split(b"\r\n", 1)[0], answer[:300]
    assert answer.count(b"data: [DONE]") == 1, answer[-300:]
    usage = [json.loads(line[6:]) for line in answer.split(b"\n") if line.startswith(b'data: {')][-1]["usage"]
    assert usage["completion_tokens"] == 24


def test_256_streams_and_2000_idle_connections():
    with Server(DEMO, "--max-num-seqs", 256) as server:
        idle = [socket.create_connection(("127.0.0.1", server.port)) for _ in range(2000)]

        async def everybody():
            await asyncio.gather(*(one_stream(server.port, i) for i in range(256)))

        asyncio.run(everybody())
        assert server.metric("vllm:request_success_total") >= 256
        # The idle ones still work.
        for s in (idle[0], idle[999], idle[1999]):
            s.sendall(b"GET /health HTTP/1.1\r\nHost: x\r\n\r\n")
            assert b"200" in s.recv(100)
        for s in idle:
            s.close()
        wait_until(lambda: used_blocks(server) == 0, 10, "blocks are still in use")


@pytest.mark.parametrize("how", ["close", "reset"])
def test_a_client_that_leaves_frees_its_blocks(how):
    # Two tokens a step and many choices: the demo model would else be done before the test has looked.
    with Server(DEMO, "--max-num-batched-tokens", 2) as server:
        s = server.open_stream("/v1/completions", {"prompt": [1, 2, 3], "max_tokens": 900, "stream": True, "ignore_eos": True, "n": 32})
        wait_until(lambda: used_blocks(server) > 0, 20, "the request does not run")
        if how == "reset":
            s.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\1\0\0\0\0\0\0\0")
        s.close()
        wait_until(lambda: server.metric("vllm:num_requests_running") == 0, 5, "the request of a client that left still runs")
        assert used_blocks(server) == 0


def test_clients_that_leave_while_queued_and_without_streaming():
    with Server(DEMO, "--max-num-seqs", 2) as server:
        sockets = [server.open_stream("/v1/completions", {"prompt": [1, i], "max_tokens": 900, "stream": i % 2 == 0, "ignore_eos": True})
                   for i in range(1, 80)]
        wait_until(lambda: server.metric("vllm:num_requests_waiting") >= 9, 20, "they are not queued")
        for s in sockets:
            s.close()
        wait_until(lambda: server.metric("vllm:num_requests_running") + server.metric("vllm:num_requests_waiting") == 0, 10, "they are still there")
        assert used_blocks(server) == 0


def test_a_slow_reader_does_not_hold_up_others():
    with Server(DEMO) as server:
        slow = [server.open_stream("/v1/completions", {"prompt": [1, i], "max_tokens": 900, "stream": True, "ignore_eos": True}) for i in range(1, 9)]
        answer = server.post("/v1/completions", {"prompt": [1, 2], "max_tokens": 50, "ignore_eos": True})
        assert answer["usage"]["completion_tokens"] == 50
        wait_until(lambda: server.metric("vllm:num_requests_running") == 0, 60, "generation waits for a socket")
        for s in slow:
            s.close()


def test_a_full_queue_answers_429_with_retry_after():
    with Server(DEMO, "--max-num-seqs", 1, "--max-waiting-requests", 2) as server:
        sockets = [server.open_stream("/v1/completions", {"prompt": [1, i], "max_tokens": 900, "ignore_eos": True}) for i in range(1, 30)]
        answers = [s.recv(4096).decode() for s in sockets]
        refused = [a for a in answers if a.startswith("HTTP/1.1 429")]
        assert refused and any(a.startswith("HTTP/1.1 200") for a in answers), [a[:20] for a in answers]
        for answer in refused:
            retry = [line.split(":")[1] for line in answer.lower().split("\r\n") if line.startswith("retry-after:")]
            assert 1 <= int(retry[0]) <= 60, answer
        for s in sockets:
            s.close()


RAW = [
    (b"POST /v1/completions HTTP/1.1\r\nHost: x\r\nContent-Length: 4\r\n\r\n{{{{", 400),
    (b"POST /v1/completions HTTP/1.1\r\nHost: x\r\nContent-Length: 7\r\n\r\n\xff\xfe{}\xff\xff\xff", 400),
    (b"POST /v1/completions HTTP/1.1\r\nHost: x\r\nContent-Length: 20000\r\n\r\n" + b"[" * 20000, 400),
    (b"POST /v1/completions HTTP/1.1\r\nHost: x\r\nContent-Length: 99999999999\r\n\r\n", 413),
    (b"GET /nothing HTTP/1.1\r\nHost: x\r\n\r\n", 404),
    (b"DELETE /v1/completions HTTP/1.1\r\nHost: x\r\n\r\n", 405),
    (b"GET /" + b"a" * 100000 + b" HTTP/1.1\r\nHost: x\r\n\r\n", (414, 431)),
    (b"GET /health HTTP/1.1\r\nHost: x\r\nX: " + b"a" * 200000 + b"\r\n\r\n", 431),
    (b"nonsense\r\n\r\n", 400),
]


@pytest.mark.parametrize("data,status", RAW, ids=[str(i) for i in range(len(RAW))])
def test_raw_nonsense(data, status, demo_server):
    s = socket.create_connection(("127.0.0.1", demo_server.port), timeout=20 * SLOW)
    try:
        s.sendall(data)
    except OSError:
        pass  # the server may answer and close before all is sent
    answer = b""
    try:
        while b"\r\n" not in answer and (chunk := s.recv(4096)):
            answer += chunk
    except ConnectionResetError:
        pass
    s.close()
    allowed = status if isinstance(status, tuple) else (status,)
    assert int(answer.split()[1]) in allowed, answer[:200]
    assert demo_server.get("/health")[0] == 200


@pytest.fixture(scope="module")
def demo_server():
    with Server(DEMO) as s:
        yield s


def test_metrics_please_promtool(demo_server):
    demo_server.post("/v1/completions", {"prompt": "Once", "max_tokens": 5})
    text = demo_server.get("/metrics")[1]
    for name in ("vllm:num_requests_running", "vllm:time_to_first_token_seconds_bucket", "vllm:kv_cache_usage_perc", "vllm:cache_config_info",
                 "vllm:e2e_request_latency_seconds_count", "vllm:prompt_tokens_total"):
        assert name.encode() in text, name
    promtool = shutil.which("promtool")
    if promtool is None:
        pytest.skip("promtool is not installed (Debian package prometheus)")
    result = subprocess.run([promtool, "check", "metrics"], input=text, capture_output=True)
    # Lint about names other servers fixed (colons, an iteration counter ending in _total) is not ours to change; anything else is an error.
    complaints = [l for l in (result.stderr + result.stdout).decode().splitlines() if l and not l.startswith("vllm:")]
    assert not complaints, complaints
