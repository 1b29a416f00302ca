#!/usr/bin/env python3
"""Kvasir's server and llama.cpp's under the same load (id c4), with nothing but the standard library.

  python3 bench/compare/poisson.py --model FOLDER --gguf FILE --llama-server BINARY [--json]

FOLDER and FILE are the same weights (compare.py makes both under build/compare/models). llama-server is built from the source package of
llama-cpp-python:

  pip download --no-deps --no-binary :all: --no-build-isolation llama-cpp-python && tar xzf llama_cpp_python-*.tar.gz
  cd llama_cpp_python-*/vendor/llama.cpp && cmake -B build -DGGML_NATIVE=ON -DLLAMA_OPENSSL=OFF && cmake --build build --target llama-server

Each server's best rate is what it completes with as many clients as serve it best, each sending its next request when the last one is
answered. Then both get requests at random moments (a Poisson process), at 0.8 of llama-server's best rate, in turn, the same moments and
prompts for both. One client, on the same machine, measures both. Prompts share nothing, so no cache helps.
"""
import argparse
import asyncio
import json
import os
import pathlib
import statistics
import sys

from load import Prompts, Server, arrivals, closed_loop, completed_rate, open_loop, percentile

ROOT = pathlib.Path(__file__).resolve().parents[2]
PART = 0.8  # of the peer's best rate


def commands(args):
    most = max(args.clients)
    context = args.prompt_tokens + args.decode_tokens + 16
    return {
        "kvasir": [args.kvasir, "serve", "--model", args.model, "--served-model-name", "m", "--threads", args.threads, "--grpc-port", -1, "--packed-cache", "off",
                   "--disable-log-stats"],
        "llama-server": [args.llama_server, "-m", args.gguf, "-t", args.threads, "-tb", args.threads, "-np", most, "-c", most * context, "-fa", "on", "-b", 2048, "-ub", 512,
                         "--host", "127.0.0.1", "--no-webui"],
    }


def emit(args, name, value, unit, ceiling, ratio, goal, **more):
    if args.json:
        print(json.dumps({"id": "c4", "case": name, "value": value, "unit": unit, "ceiling": ceiling, "ratio": ratio, "goal": goal, **more}), flush=True)
    else:
        print(f"c4   {name:52} kvasir {value:9.4g}  llama-server {ceiling:9.4g} {unit:6} ratio {ratio:6.3f}  (goal {goal})", flush=True)


def best_rates(args):
    """The best rate of each, and the number of clients it was reached with. One server at a time is up."""
    best = {}
    for name, command in commands(args).items():
        with Server(command) as server:
            for clients in args.clients:
                answers = asyncio.run(closed_loop(server.port, Prompts(clients, args.prompt_tokens, args.vocabulary), clients, args.decode_tokens, args.seconds))
                rate = completed_rate(answers)
                print(f"{name}: {clients} clients, {rate:.2f} requests/s", file=sys.stderr)
                best[name] = max(best.get(name, (0, 0)), (rate, clients))
    return best


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", required=True)
    parser.add_argument("--gguf", required=True)
    parser.add_argument("--llama-server", required=True)
    parser.add_argument("--kvasir", default=ROOT / "build/release/kvasir")
    parser.add_argument("--prompt-tokens", type=int, default=128)
    parser.add_argument("--decode-tokens", type=int, default=64)
    parser.add_argument("--vocabulary", type=int, default=30000)
    parser.add_argument("--threads", type=int, default=len(os.sched_getaffinity(0)))
    parser.add_argument("--clients", type=lambda text: [int(n) for n in text.split(",")], default=[4, 8, 16, 32])
    parser.add_argument("--seconds", type=float, default=10, help="of each number of clients, and of each Poisson run")
    parser.add_argument("--repetitions", type=int, default=3)
    parser.add_argument("--json", action="store_true")
    args = parser.parse_args()
    best = best_rates(args)
    (ours, our_clients), (theirs, their_clients) = best["kvasir"], best["llama-server"]
    emit(args, f"best rate ({our_clients} and {their_clients} clients)", ours, "req/s", theirs, ours / theirs, ">= 3")
    rate, first, gaps = PART * theirs, {}, {}
    for repetition in range(args.repetitions):
        times = arrivals(rate, max(8, int(rate * args.seconds)), repetition)
        for name in sorted(commands(args), reverse=repetition % 2 == 1):
            with Server(commands(args)[name]) as server:
                warm = Prompts(-1, args.prompt_tokens, args.vocabulary)
                asyncio.run(closed_loop(server.port, warm, 2, args.decode_tokens, 0.5))
                prompts = Prompts(1000 + repetition, args.prompt_tokens, args.vocabulary).take(len(times))
                answers = asyncio.run(open_loop(server.port, prompts, times, args.decode_tokens))
            first.setdefault(name, []).append([a.first() for a in answers])
            gaps.setdefault(name, []).append([gap for a in answers for gap in a.gaps()])
    for what, runs, part, goal in (("first token, p50", first, 0.5, "<= 0.3"), ("first token, p99", first, 0.99, "<= 0.15"), ("between tokens, p50", gaps, 0.5, ""),
                                   ("between tokens, p99", gaps, 0.99, "<= 0.5")):
        values = {name: [1000 * percentile(run, part) for run in runs[name]] for name in runs}
        mine, peer = statistics.median(values["kvasir"]), statistics.median(values["llama-server"])
        emit(args, f"{what}, at {rate:.1f} req/s", mine, "ms", peer, mine / peer, goal, ours=values["kvasir"], peer=values["llama-server"])


if __name__ == "__main__":
    main()
