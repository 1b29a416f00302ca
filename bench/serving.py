#!/usr/bin/env python3
"""A running server under conversations, idle connections (ids c5 and c6) and long texts, with nothing but the standard library.

  python3 bench/serving.py --model build/models/110m [--json]

c5: decoding of 4 streams with 1,000 idle connections open, over the same without them, and what an idle connection costs in memory.
    Also: the same 4 streams while a client has texts of 350 KB tokenized one after another.
c6: 64 users with 8 turns each and a shared system prompt of 512 tokens: prefix hits over those of a cache without limit, with room
for all and with half of it; and the time to a first token of a prompt of 2,048 tokens met before, over the first time.
"""
import argparse
import concurrent.futures
import functools
import http.client
import json
import os
import pathlib
import random
import re
import socket
import statistics
import subprocess
import threading
import time

ROOT = pathlib.Path(__file__).resolve().parents[1]
BLOCK = 16


class Server:
    def __init__(self, args, *flags):
        with socket.socket() as s:
            s.bind(("127.0.0.1", 0))
            self.port = s.getsockname()[1]
        command = [args.kvasir, "serve", "--model", args.model, "--served-model-name", "m", "--port", self.port, "--grpc-port", -1, "--disable-log-stats", *flags]
        self.process = subprocess.Popen(list(map(str, command)), stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        deadline = time.time() + 120
        while True:
            try:
                if self.request("GET", "/health")[0] == 200:
                    return
            except OSError:
                pass
            if self.process.poll() is not None or time.time() > deadline:
                raise SystemExit("the server did not start")
            time.sleep(0.01)

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.process.terminate()
        self.process.wait(60)

    def request(self, verb, path, body=None):
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=300)
        connection.request(verb, path, json.dumps(body) if body else None, {"Content-Type": "application/json"})
        response = connection.getresponse()
        return response.status, response.read()

    def complete(self, prompt, tokens):
        """Ids of the answer."""
        status, raw = self.request("POST", "/v1/completions", {"model": "m", "prompt": prompt, "max_tokens": tokens, "ignore_eos": True, "temperature": 0,
                                                               "return_token_ids": True})
        if status != 200:
            raise SystemExit(f"{status}: {raw.decode()}")
        return json.loads(raw)["choices"][0]["token_ids"]

    def first_token_seconds(self, prompt):
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=300)
        start = time.perf_counter()
        connection.request("POST", "/v1/completions", json.dumps({"model": "m", "prompt": prompt, "max_tokens": 2, "stream": True, "ignore_eos": True}),
                           {"Content-Type": "application/json"})
        response = connection.getresponse()
        response.readline()
        seconds = time.perf_counter() - start
        response.read()
        return seconds

    def metric(self, name):
        text = self.request("GET", "/metrics")[1].decode()
        return sum(float(m) for m in re.findall(rf"^{re.escape(name)}(?:{{[^}}]*}})? (\S+)$", text, re.M))

    def resident_bytes(self):
        return int(re.search(r"VmRSS:\s+(\d+)", pathlib.Path(f"/proc/{self.process.pid}/status").read_text()).group(1)) * 1024


class EndlessCache:
    """What a cache that forgets nothing could reuse: every full block of every text so far. The last token is always computed."""

    def __init__(self):
        self.known, self.queried, self.hits = set(), 0, 0

    def ask(self, prompt):
        blocks = 0
        while (blocks + 1) * BLOCK < len(prompt) and hash(tuple(prompt[:(blocks + 1) * BLOCK])) in self.known:
            blocks += 1
        self.queried += len(prompt)
        self.hits += blocks * BLOCK

    def learn(self, text):
        for end in range(BLOCK, len(text), BLOCK):  # the last token of a text is never computed
            self.known.add(hash(tuple(text[:end])))


def conversations(args, server):
    rng, vocabulary = random.Random(7), 30000
    words = lambda count: [rng.randrange(300, vocabulary) for _ in range(count)]
    system, best = words(512), EndlessCache()
    histories = [system + words(3) for _ in range(args.users)]
    for turn in range(args.turns):
        order = list(range(args.users))
        rng.shuffle(order)
        for user in order:
            prompt = histories[user] + words(rng.randrange(8, 40))
            best.ask(prompt)
            histories[user] = prompt + server.complete(prompt, 16)
            best.learn(histories[user])
    hits, queried = server.metric("vllm:prefix_cache_hits_total"), server.metric("vllm:prefix_cache_queries_total")
    return hits / queried, best.hits / best.queried, max(len(h) for h in histories)


def emit(args, case_id, name, value, unit, ceiling, ratio):
    if args.json:
        print(json.dumps({"id": case_id, "case": name, "value": value, "unit": unit, "ceiling": ceiling, "ratio": ratio}), flush=True)
    else:
        print(f"{case_id:4} {name:64} {value:10.4g} {unit:8} of {ceiling:8.4g}  ratio {ratio:.3f}", flush=True)


def stream_rate(args, server):
    """Tokens per second of 4 streams."""
    start = time.perf_counter()
    with concurrent.futures.ThreadPoolExecutor(4) as pool:
        tokens = sum(len(ids) for ids in pool.map(lambda i: server.complete([1000 + i] * 24, args.stream_tokens), range(4)))
    return tokens / (time.perf_counter() - start)


def long_texts(args, server):
    body = {"prompt": "The quick brown fox jumps over the lazy dog, and then some 12345 more things happened. " * 4000}
    wanted, ended, texts = threading.Event(), threading.Event(), []

    def tokenize():
        while not ended.is_set():
            if wanted.wait(0.05):
                texts.append(server.request("POST", "/tokenize", body)[0])

    client = threading.Thread(target=tokenize)
    client.start()
    alone, beside, rates = [], [], []
    stream_rate(args, server)
    for _ in range(args.repetitions):
        alone.append(stream_rate(args, server))
        wanted.set()
        start, count = time.perf_counter(), len(texts)
        beside.append(stream_rate(args, server))
        rates.append((len(texts) - count) / (time.perf_counter() - start))
        wanted.clear()
        time.sleep(0.2)
    ended.set()
    client.join()
    ratio = statistics.median(b / a for a, b in zip(alone, beside))
    name = f"4 streams beside {statistics.median(rates):.0f} texts of 350 KB tokenized per second"
    emit(args, "", name, statistics.median(beside), "tok/s", statistics.median(alone), ratio)


def idle_connections(args, server):
    streams = functools.partial(stream_rate, args, server)
    streams()
    alone, beside, before = [], [], server.resident_bytes()
    cost = 0
    for _ in range(args.repetitions):
        alone.append(streams())
        idle = [socket.create_connection(("127.0.0.1", server.port)) for _ in range(1000)]
        time.sleep(0.5)
        cost = max(cost, server.resident_bytes() - before)
        beside.append(streams())
        for connection in idle:
            connection.close()
        time.sleep(0.5)
    ratio = statistics.median(b / a for a, b in zip(alone, beside))
    emit(args, "c5", "4 streams beside 1,000 idle connections", statistics.median(beside), "tok/s", statistics.median(alone), ratio)
    emit(args, "c5", "resident memory of an idle connection", cost / 1000, "bytes", 8192, 8192 / max(cost / 1000, 1))


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", required=True, type=pathlib.Path)
    parser.add_argument("--users", type=int, default=64)
    parser.add_argument("--turns", type=int, default=8)
    parser.add_argument("--stream-tokens", type=int, default=200)
    parser.add_argument("--repetitions", type=int, default=5)
    parser.add_argument("--kvasir", type=pathlib.Path, default=ROOT / "build/release/kvasir")
    parser.add_argument("--only-long-texts", action="store_true")
    parser.add_argument("--json", action="store_true")
    args = parser.parse_args()
    with Server(args, "--kv-cache-memory-bytes", "1g") as server:
        long_texts(args, server)
        if args.only_long_texts:
            return
        idle_connections(args, server)
        cold, warm = [], []
        for i in range(args.repetitions):
            prompt = [random.Random(i).randrange(300, 30000) for _ in range(2048)]
            cold.append(server.first_token_seconds(prompt))
            warm.append(server.first_token_seconds(prompt + [400, 401, 402]))
        emit(args, "c6", "first token of 2,048 tokens met before, over the first time", 1000 * statistics.median(warm), "ms",
             1000 * statistics.median(cold), statistics.median(warm) / statistics.median(cold))
    with Server(args, "--num-gpu-blocks-override", 1 << 15) as server:
        rate, best, longest = conversations(args, server)
        emit(args, "c6", "prefix hit rate over an endless cache's, room for all", rate, "", best, rate / best)
    # Half of what all texts take at the end: their own blocks and the shared ones.
    blocks = (args.users * (longest - 512) + 512) // BLOCK // 2
    with Server(args, "--num-gpu-blocks-override", blocks) as server:
        rate, best, _ = conversations(args, server)
        emit(args, "c6", "the same with room for half", rate, "", best, rate / best)


if __name__ == "__main__":
    main()
