"""The end of every peer's script: requests come in as JSON lines, answers go out as JSON lines, until there are no more."""
import json
import sys


def serve(peer):
    for line in sys.stdin:
        request = json.loads(line)
        try:
            answer = getattr(peer, request.pop("op"))(**request) or {}
        except Exception as error:  # told to whoever asked
            answer = {"error": f"{type(error).__name__}: {error}"}
        print(json.dumps(answer), flush=True)
