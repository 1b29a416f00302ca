"""A peer in a process of its own: requests go in as JSON lines, answers come out as JSON lines, until there are no more."""
import contextlib
import json
import os
import selectors
import subprocess
import sys


def serve(peer):
    """The end in the peer's process. What libraries print goes to stderr: it is no answer."""
    with os.fdopen(os.dup(1), "w") as answers:
        os.dup2(2, 1)
        for line in sys.stdin:
            request = json.loads(line)
            try:
                answer = getattr(peer, request.pop("op"))(**request) or {}
            except Exception as error:  # told to whoever asked
                answer = {"error": f"{type(error).__name__}: {error}"}
            print(json.dumps(answer), file=answers, flush=True)


class Process:
    """The end that asks."""

    def __init__(self, title, command, stderr=subprocess.DEVNULL):
        self.title = title
        self.process = subprocess.Popen(list(map(str, command)), stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=stderr, text=True)
        self.readable = selectors.DefaultSelector()
        self.readable.register(self.process.stdout, selectors.EVENT_READ)

    def ask(self, op, limit=None, **arguments):
        """Its answer; RuntimeError when it tells an error, ends, or is silent for `limit` seconds."""
        try:
            self.process.stdin.write(json.dumps({"op": op, **arguments}) + "\n")
            self.process.stdin.flush()
        except OSError as error:
            raise RuntimeError(f"{self.title}'s process ended before '{op}'") from error
        if not self.readable.select(limit):  # there is one line for each request, so nothing waits in the file's buffer
            raise RuntimeError(f"{self.title} took longer than {limit:.0f} s for '{op}'")
        line = self.process.stdout.readline()
        if not line:
            raise RuntimeError(f"{self.title}'s process ended during '{op}'")
        answer = json.loads(line)
        if "error" in answer:
            raise RuntimeError(f"{self.title}, {op}: {answer['error']}")
        return answer

    def close(self, limit=30):
        with contextlib.suppress(OSError):
            self.process.stdin.close()
        try:
            self.process.wait(limit)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()
        self.readable.close()
        self.process.stdout.close()
