"""KV that moves to the host's memory when the device's is full, on a real server: what comes back from there answers as if it had never
left, and settings that make no sense are refused."""
import concurrent.futures
import json
import random
import subprocess

import pytest

from kvasir_server import BIN, DEMO, SLOW, Server

BLOCKS = 40  # of 16 tokens: two of the prompts below


def bodies():
    rng = random.Random(5)
    return [{"prompt": [rng.randrange(3, 1000) for _ in range(250)], "max_tokens": 10, "temperature": t, "seed": 3, "ignore_eos": True,
             "logprobs": 1, "return_token_ids": True} for t in (0, 1) for _ in range(4)]


def answer(server, body):
    reply = server.post("/v1/completions", body)
    choice = reply["choices"][0]
    return json.dumps([choice["token_ids"], choice["logprobs"]]), reply["usage"]["prompt_tokens_details"]["cached_tokens"]


@pytest.fixture(scope="module")
def expected():
    with Server(DEMO, "--no-enable-prefix-caching", "--kv-cache-memory-bytes", "64m") as server:
        return [answer(server, body)[0] for body in bodies()]


def test_second_turn_comes_from_the_host(expected):
    flags = ("--num-gpu-blocks-override", BLOCKS, "--kv-host-memory", "64m", "--check-invariants")
    with Server(DEMO, *flags) as server:
        server.wait_for_log("64.0 MiB")
        for turn in range(3):
            for body, wanted in zip(bodies(), expected):
                got, cached = answer(server, body)
                assert got == wanted
                assert cached == (0 if turn == 0 else 240)
        assert server.metric("kvasir_kv_moved_in_blocks_total") > 100
        assert server.metric("kvasir_kv_host_hit_tokens_total") > 1600
        assert server.metric("kvasir_kv_evicted_blocks_total") == 0
        with concurrent.futures.ThreadPoolExecutor(8) as pool:
            together = list(pool.map(lambda body: answer(server, body)[0], bodies()))
        assert together == expected
        assert server.metric("kvasir_kv_blocks_used") == 0


def test_a_small_host_forgets(expected):
    with Server(DEMO, "--num-gpu-blocks-override", BLOCKS, "--kv-host-memory", "300k", "--check-invariants") as server:
        for _ in range(2):
            assert [answer(server, body)[0] for body in bodies()] == expected
        assert server.metric("kvasir_kv_evicted_blocks_total") > 0
        assert server.metric("kvasir_kv_host_blocks_used") <= server.metric("kvasir_kv_host_blocks")


@pytest.mark.parametrize("flags, says", [
    (("--kv-host-memory", "100"), "does not hold one KV block"),
    (("--kv-host-memory", "1m", "--no-enable-prefix-caching"), "use one of the two"),
    (("--kv-host-memory", "900000g"), "kv-host-memory"),
    (("--kv-host-memory", "5000g"), "ask for less"),
    (("--kv-host-memory", "much"), "much"),
])
def test_refused(flags, says):
    done = subprocess.run([BIN, "serve", "--model", DEMO, *flags], capture_output=True, text=True, timeout=60 * SLOW)
    assert done.returncode == 2
    assert says in done.stderr
