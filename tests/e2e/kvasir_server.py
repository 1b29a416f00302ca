"""Starts the real binary for a test and talks to it with nothing but the standard library.

KVASIR_BIN is the binary (default build/release/kvasir); KVASIR_TEST_MODELS the folder with real models (default ../shared/models).
"""
import contextlib
import http.client
import json
import os
import pathlib
import signal
import socket
import subprocess
import sys
import threading
import time

ROOT = pathlib.Path(__file__).resolve().parents[2]
BIN = os.environ.get("KVASIR_BIN", str(ROOT / "build/release/kvasir"))
MODELS = pathlib.Path(os.environ.get("KVASIR_TEST_MODELS", str(ROOT / "../shared/models")))
DEMO = ROOT / "demo"
os.environ.setdefault("KVASIR_PACKED_CACHE", "off")  # tests leave nothing in the user's cache
# Sanitizer builds are several times slower: time limits stretch, correctness does not.
SLOW = float(os.environ.get("KVASIR_TEST_SLOWDOWN", "1"))


def free_port():
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        return s.getsockname()[1]


def real_models():
    """Folders with golden.json, or [] with a remark; then ctest shows e2e_golden_real_models as skipped."""
    folders = sorted(p.parent for p in MODELS.glob("*/golden.json")) if MODELS.is_dir() else []
    if not folders:
        print(f"no real models in {MODELS}: set KVASIR_TEST_MODELS", file=sys.stderr)
    return folders


class Server:
    def __init__(self, model, *flags, env=None, wait=True):
        self.port, self.grpc_port = free_port(), free_port()
        command = [BIN, "serve", "--model", str(model), "--port", str(self.port), "--grpc-port", str(self.grpc_port), *map(str, flags)]
        self.process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, errors="replace",
                                        env={**os.environ, **(env or {})})
        self.lines = []
        self.reader = threading.Thread(target=self._read, daemon=True)
        self.reader.start()
        if wait:
            self.wait_ready()

    def _read(self):
        for line in self.process.stdout:
            self.lines.append(line)

    @property
    def log(self):
        return "".join(self.lines)

    def wait_ready(self, timeout=60):
        deadline = time.time() + timeout * SLOW
        while time.time() < deadline:
            if self.process.poll() is not None:
                self.reader.join(5)
                raise RuntimeError(f"server exited with {self.process.returncode}:\n{self.log}")
            with contextlib.suppress(OSError, http.client.HTTPException):
                if self.get("/health")[0] == 200:
                    return
            time.sleep(0.02)
        raise RuntimeError(f"server not ready:\n{self.log}")

    def wait_for_log(self, text, timeout=60):
        """A server may have answered before what it wrote earlier has been read here."""
        deadline = time.time() + timeout * SLOW
        while text not in self.log and time.time() < deadline:
            time.sleep(0.02)
        assert text in self.log, self.log

    def request(self, method, path, body=None, headers=None, timeout=120):
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=timeout * SLOW)
        try:
            data = body if isinstance(body, (bytes, type(None))) else json.dumps(body).encode()
            connection.request(method, path, data, {"Content-Type": "application/json", **(headers or {})})
            response = connection.getresponse()
            raw = response.read()
            return response.status, raw, dict((k.lower(), v) for k, v in response.getheaders())
        finally:
            connection.close()

    def get(self, path, headers=None):
        return self.request("GET", path, headers=headers)

    def post(self, path, body, headers=None):
        """The parsed JSON answer; an HTTP error raises with its body."""
        status, raw, _ = self.request("POST", path, body, headers)
        if status != 200:
            raise AssertionError(f"{path} answered {status}: {raw.decode(errors='replace')}")
        return json.loads(raw)

    def metric(self, name):
        """Sum over labels of one metric."""
        total, found = 0.0, False
        for line in self.get("/metrics")[1].decode().splitlines():
            if line.startswith(name) and line[len(name):len(name) + 1] in ("{", " "):
                total, found = total + float(line.rsplit(" ", 1)[1]), True
        if not found:
            raise AssertionError(f"no metric {name}")
        return total

    def open_stream(self, path, body):
        """A socket on which the request was sent and nothing was read."""
        s = socket.create_connection(("127.0.0.1", self.port), timeout=60 * SLOW)
        data = json.dumps(body).encode()
        s.sendall(f"POST {path} HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\nContent-Length: {len(data)}\r\n\r\n".encode() + data)
        return s

    def stop(self, sig=signal.SIGTERM, timeout=60):
        if self.process.poll() is None:
            self.process.send_signal(sig)
        try:
            code = self.process.wait(timeout * SLOW)
        except subprocess.TimeoutExpired:
            self.process.kill()
            raise AssertionError(f"the server did not stop:\n{self.log[-4000:]}") from None
        self.reader.join(5)
        if code != 0:
            print(self.log[-8000:])  # shown by pytest when the test fails
        return code

    def __enter__(self):
        return self

    def __exit__(self, *_):
        if self.process.poll() is None:
            code = self.stop()
            assert code == 0, f"exit code {code}:\n{self.log[-4000:]}"


def sse_events(response):
    """The parsed data of each event of an http.client response; ends at [DONE] or the end of the stream."""
    for line in response:
        line = line.decode().strip()
        if line.startswith("data: "):
            if line == "data: [DONE]":
                return
            yield json.loads(line[6:])
