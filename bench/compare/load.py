"""Requests to a server, one after another or at random moments, and when each piece of every answer came: what the comparisons of servers share.

With nothing but the standard library. A closed loop has so many clients, each sending its next request when the last one is answered; an open one
sends requests at given moments, however many are under way. Times are time.perf_counter(), which all processes of a machine share, so that a load can
be split over processes (spread) where one would be slower than the server it measures.
"""
import asyncio
import concurrent.futures
import contextlib
import json
import multiprocessing
import os
import random
import re
import socket
import subprocess
import tempfile
import time

# Sampled, so that random weights do not repeat one token, which may have no text to stream: pieces are counted.
SAMPLED = {"temperature": 1, "top_k": 40, "top_p": 0.95}
# A server that tells ids sends tokens without text, too, and a piece with two of them counts as two.
GREEDY_IDS = {"temperature": 0, "return_token_ids": True}


def arrivals(rate, count, seed):
    """Seconds from the start at which each of `count` requests is sent: gaps are exponential, so nobody waits for anybody."""
    rng, now, times = random.Random(seed), 0.0, []
    for _ in range(count):
        now += rng.expovariate(rate)
        times.append(now)
    return times


def percentile(values, part):
    """The least value that `part` of all do not exceed."""
    ordered = sorted(values)
    return ordered[max(0, min(len(ordered) - 1, int(-(-part * len(ordered) // 1)) - 1))]


class Prompts:
    """Token ids that no prompt before had in this order."""

    def __init__(self, seed, tokens, vocabulary):
        self.rng, self.tokens, self.ids = random.Random(seed), tokens, range(300, vocabulary)

    def next(self):
        return self.rng.choices(self.ids, k=self.tokens)

    def take(self, count):
        return [self.next() for _ in range(count)]


class Answer:
    """When a request was sent, and when each piece of its answer came."""

    def __init__(self, sent=None, pieces=()):
        self.sent, self.pieces = time.perf_counter() if sent is None else sent, list(pieces)

    def first(self):
        return self.pieces[0] - self.sent

    def gaps(self):
        return [b - a for a, b in zip(self.pieces, self.pieces[1:])]


def completed_rate(answers):
    """Requests per second from the first one sent to the last one answered."""
    return len(answers) / (max(a.pieces[-1] for a in answers) - min(a.sent for a in answers))


def output_rate(answers, begin=None, end=None):
    """Pieces per second between two moments: those of the first and the last one, unless said."""
    times = [t for a in answers for t in a.pieces]
    begin, end = min(a.sent for a in answers) if begin is None else begin, max(times) if end is None else end
    return sum(begin < t <= end for t in times) / (end - begin)


class Stream(asyncio.Protocol):
    """One request. What comes is searched as it lies: a thousand streams leave no time for parsing it."""
    PIECE = re.compile(rb'"choices": ?\[\{')
    IDS = re.compile(rb'"token_ids": ?\[([\d, ]+)\]')

    def __init__(self, request, ids, loop):
        self.request, self.ids, self.answer, self.ended = request, ids, Answer(), loop.create_future()
        self.head, self.rest = b"", b""

    def connection_made(self, transport):
        transport.write(self.request)

    def data_received(self, data):
        now = time.perf_counter()
        if len(self.head) < 2000:
            self.head += data[:2000]
        data = self.rest + data
        whole = data.rfind(b"\n") + 1
        self.rest = data[whole:]
        if self.ids:
            count = sum(ids.count(b",") + 1 for ids in self.IDS.findall(data, 0, whole))
        else:
            count = len(self.PIECE.findall(data, 0, whole))
        self.answer.pieces += [now] * count

    def connection_lost(self, error):
        if not self.ended.done():
            self.ended.set_result(error)


async def complete(port, prompt, tokens, fields=SAMPLED):
    body = json.dumps({"model": "m", "prompt": prompt, "max_tokens": tokens, **fields, "seed": sum(prompt), "ignore_eos": True, "stream": True}).encode()
    request = b"POST /v1/completions HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\nConnection: close\r\nContent-Length: %d\r\n\r\n" % len(body) + body
    loop, ids = asyncio.get_running_loop(), "return_token_ids" in fields
    transport, stream = await loop.create_connection(lambda: Stream(request, ids, loop), "127.0.0.1", port)
    try:
        await stream.ended
    finally:
        transport.close()
    if b" 200 " not in stream.head.partition(b"\r\n")[0]:
        raise RuntimeError(stream.head.decode(errors="replace") or "the connection was closed without an answer")
    if len(stream.answer.pieces) < (tokens if ids else tokens // 2):
        raise RuntimeError(f"only {len(stream.answer.pieces)} pieces came for {tokens} tokens")
    return stream.answer


async def closed_loop(port, prompts, clients, tokens, seconds, fields=SAMPLED):
    """Answers to what so many clients sent in that time."""
    end, answers = time.perf_counter() + seconds, []

    async def client():
        while time.perf_counter() < end:
            answers.append(await complete(port, prompts.next(), tokens, fields))

    await asyncio.gather(*(client() for _ in range(clients)))
    return answers


async def open_loop(port, prompts, times, tokens, fields=SAMPLED, start=None):
    """Answers to the prompts, each sent at its time after the start (now)."""
    start = time.perf_counter() if start is None else start

    async def request(at, prompt):
        await asyncio.sleep(max(0.0, start + at - time.perf_counter()))
        return await complete(port, prompt, tokens, fields)

    return await asyncio.gather(*(request(at, prompt) for at, prompt in zip(times, prompts)))


def _run(work, arguments):
    return [(a.sent, a.pieces) for a in asyncio.run(work(*arguments))]


def spread(work, parts):
    """The answers of work(*part) for each part, a process for each."""
    if len(parts) == 1:
        return asyncio.run(work(*parts[0]))
    with concurrent.futures.ProcessPoolExecutor(len(parts), multiprocessing.get_context("fork")) as pool:
        futures = [pool.submit(_run, work, part) for part in parts]
        return [Answer(*plain) for future in futures for plain in future.result()]


def free_port():
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        return s.getsockname()[1]


class Server:
    """A server process that answers /health; `seconds` is how long it took to say 200, from exec on, and `log` what it has told."""

    def __init__(self, command, limit=120, **more):
        self.port, self.output = free_port(), tempfile.TemporaryFile()
        start = time.perf_counter()
        self.process = subprocess.Popen([*map(str, command), "--port", str(self.port)], stdout=self.output, stderr=self.output, **more)
        while not self.healthy():
            if self.process.poll() is not None or time.perf_counter() > start + limit:
                said = self.log().strip()[-500:]
                self.process.kill()
                self.process.wait()
                self.output.close()
                raise RuntimeError(f"{command[0]} did not start: {said}")
            time.sleep(0.002)
        self.seconds = time.perf_counter() - start

    def healthy(self):
        with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", self.port), timeout=5) as s:
            s.sendall(b"GET /health HTTP/1.0\r\n\r\n")
            return b" 200 " in s.recv(100)
        return False

    def log(self):
        size = os.fstat(self.output.fileno()).st_size
        return os.pread(self.output.fileno(), size, 0).decode(errors="replace")  # reading must not move where the server writes

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.process.terminate()
        try:
            self.process.wait(60)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()
        self.output.close()
