#!/usr/bin/env python3
"""`kvasir serve` and transformers' continuous batching under the same load, on a GPU or the CPU, with models whose weights are made up (ids c4 and c13).

  python3 bench/compare/serving_rates.py --shape 0.5b --device cuda [--kvasir BINARY] [--json]

Kvasir's best rate is what it completes with as many clients as serve it best, each sending its next request when the last one is answered. Then requests
come at random moments (a Poisson process) at 0.3, 0.6 and 0.9 of that rate, and the same requests at the same moments go to transformers; where that is
more than it can do, it gets that part of its own best rate, and the line says so. Prompts are random tokens and share nothing; answers have a fixed length.
The client of `kvasir serve` speaks HTTP from processes of its own; transformers' tokens are taken in its own process (batching_peer.py), without HTTP, which
is to its advantage. Without transformers, Kvasir's side is measured alone.

Ratios are transformers' times over Kvasir's, and Kvasir's rates over transformers'. "c13" is the start: from exec to 200 on /health, less making up and
packing weights.
"""
import argparse
import json
import os
import pathlib
import re
import subprocess
import sys
import tempfile
import time

import load
import peer_process

HERE = pathlib.Path(__file__).resolve().parent
ROOT = HERE.parents[1]
PARTS = (0.3, 0.6, 0.9)  # of the best rate
SATURATED = 0.9  # of its best rate is all that the peer can be asked for
PERCENTILES = (0.5, 0.9, 0.99)
START_GOAL = 2.0  # seconds beyond weights


def split(count, parts):
    """Sizes that differ by one at most, without empty ones."""
    return [size for size in (count // parts + (i < count % parts) for i in range(parts)) if size > 0]


def requests_at(rate, args):
    return max(args.least, min(args.most, int(rate * args.seconds)))


def weights_seconds(log):
    found = re.search(r"ready in [\d.]+ s \(([\d.]+) s for weights\)", log)
    return float(found.group(1)) if found else 0.0


class Kvasir:
    def __init__(self, args, folder):
        context = args.prompt_tokens + args.tokens + 16
        command = [args.kvasir, "serve", "--model", folder, "--served-model-name", "m", "--device", args.device, "--load-format", "dummy", "--grpc-port", -1,
                   "--max-num-seqs", max(args.clients), "--max-num-batched-tokens", args.step_tokens, "--max-model-len", context,
                   "--max-waiting-requests", 4096, "--disable-log-stats"]
        if args.threads > 0:
            command += ["--threads", args.threads]
        self.args, self.server = args, load.Server(command)

    def closed_loop(self, clients, seed):
        args = self.args
        return load.spread(load.closed_loop, [(self.server.port, load.Prompts(seed + i, args.prompt_tokens, args.vocabulary), share, args.tokens, args.seconds,
                                               load.GREEDY_IDS) for i, share in enumerate(split(clients, args.client_processes))])

    def open_loop(self, times, seed):
        args, prompts = self.args, load.Prompts(seed, self.args.prompt_tokens, self.args.vocabulary).take(len(times))
        parts, start = min(args.client_processes, len(times)), time.perf_counter() + 0.5
        return load.spread(load.open_loop, [(self.server.port, prompts[i::parts], times[i::parts], args.tokens, load.GREEDY_IDS, start) for i in range(parts)])


class Transformers:
    """As Kvasir. RuntimeError says what did not work, or that the time is over."""

    def __init__(self, args, folder, deadline):
        self.args, self.deadline = args, deadline
        self.process = peer_process.Process("transformers", [args.peer_python, HERE / "batching_peer.py"], stderr=None)
        try:
            self.about = self.ask("load", folder=str(folder), device=args.device, requests=max(args.clients), tokens=args.tokens, threads=args.threads)
        except RuntimeError:
            self.process.close(1)
            raise

    def ask(self, op, **arguments):
        return self.process.ask(op, limit=max(1.0, self.deadline - time.perf_counter()), **arguments)

    def run(self, op, **arguments):
        answers = self.ask(op, prompt_tokens=self.args.prompt_tokens, vocabulary=self.args.vocabulary, **arguments)["answers"]
        return [load.Answer(sent, pieces) for sent, pieces in answers]

    def closed_loop(self, clients, seed):
        return self.run("closed_loop", clients=clients, seconds=self.args.seconds, seed=seed)

    def open_loop(self, times, seed):
        return self.run("open_loop", times=times, seed=seed)


def best_rate(args, side):
    """Requests per second, and the number of clients it was reached with. The beginning, when all prompts come at once, and the end do not count."""
    best = (0.0, 0)
    for clients in args.clients:
        answers = side.closed_loop(clients, clients)
        start = min(a.sent for a in answers)
        rate = load.output_rate(answers, start + 0.25 * args.seconds, start + args.seconds) / args.tokens
        print(f"{type(side).__name__}: {clients} clients, {rate:.2f} requests/s", file=sys.stderr, flush=True)
        best = max(best, (rate, clients))
    if best[0] <= 0:
        raise RuntimeError(f"{type(side).__name__} made no token in {args.seconds} s")
    return best


def rate_for_peer(rate, part, best):
    """What the peer is asked for where Kvasir was asked for `rate`, and whether that is less because it cannot do as much."""
    return (rate, False) if rate <= SATURATED * best else (part * best, True)


def figures(answers):
    """{what: (value, unit)} of one run."""
    found = {"output": (load.output_rate(answers), "tok/s")}
    for what, times in (("first token", [a.first() for a in answers]), ("between tokens", [gap for a in answers for gap in a.gaps()])):
        for part in PERCENTILES:
            found[f"{what}, p{round(100 * part)}"] = (1000 * load.percentile(times, part) if times else 0.0, "ms")
    return found


class Report:
    def __init__(self, args):
        self.args = args

    def line(self, name, value, unit, beside=0.0, case="c4"):
        """beside: the peer's value, 0 where there is none. More is better of rates, less of times."""
        ratio = (value / beside if "/s" in unit else beside / value) if beside > 0 and value > 0 else 0.0
        name = f"{self.args.shape} {self.args.prompt_tokens}+{self.args.tokens}: {name}"
        if self.args.json:
            print(json.dumps({"id": case, "case": name, "value": value, "unit": unit, "ceiling": beside, "ratio": ratio}), flush=True)
        else:
            print(f"{case:4} {name:100} {value:10.4g} {unit:6}" + (f" beside {beside:10.4g}  ratio {ratio:.3f}" if beside > 0 else ""), flush=True)

    def start(self, seconds, weights):
        self.line(f"ready for requests beyond weights ({weights:.2f} s of {seconds:.2f} s)", seconds - weights, "s", START_GOAL, "c13")

    def best(self, ours, theirs):
        beside = f" and transformers with {theirs[1]}" if theirs else ""
        self.line(f"best rate, with {ours[1]} clients{beside}", ours[0], "req/s", theirs[0] if theirs else 0.0)

    def run(self, part, rate, ours, theirs):
        """theirs: (rate, saturated, figures), or None."""
        at = f"at {part} of the best rate, {rate:.2f} req/s"
        if theirs and theirs[1]:
            at += f" (transformers cannot: {theirs[0]:.2f} req/s, {part} of its own best)"
        for what, (value, unit) in ours.items():
            self.line(f"{what}, {at}", value, unit, theirs[2][what][0] if theirs else 0.0)


def measure_kvasir(args, folder, report):
    kvasir = Kvasir(args, folder)
    with kvasir.server as server:
        best = best_rate(args, kvasir)
        report.start(server.seconds, weights_seconds(server.log()))
        runs = []
        for part in PARTS:
            rate = part * best[0]
            times = load.arrivals(rate, requests_at(rate, args), seed=round(100 * part))
            runs.append((part, rate, times, figures(kvasir.open_loop(times, seed=1000 + round(100 * part)))))
            print(f"Kvasir at {rate:.2f} requests/s: {runs[-1][3]}", file=sys.stderr, flush=True)
    return best, runs


def measure_peer(args, folder, runs, deadline):
    """(best, a (rate, saturated, figures) for each run, what is to be said). What failed is left out, and said."""
    best, found, peer = None, [], None
    try:
        peer = Transformers(args, folder, deadline)
        best = best_rate(args, peer)
        for part, rate, times, _ in runs:
            its_rate, saturated = rate_for_peer(rate, part, best[0])
            if saturated:
                times = load.arrivals(its_rate, requests_at(its_rate, args), seed=round(100 * part))
            found.append((its_rate, saturated, figures(peer.open_loop(times, seed=1000 + round(100 * part)))))
        return best, found, f"beside {peer.about['system']}, attention {peer.about['attention']}"
    except (RuntimeError, OSError) as error:
        return best, found, f"transformers was not measured to the end: {error}"
    finally:
        if peer is not None:
            peer.process.close(1)


def arguments():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    numbers = lambda text: [int(n) for n in text.split(",")]
    parser.add_argument("--shape", default="0.5b", help="of tools/make_random_model.py")
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cuda")
    parser.add_argument("--kvasir", default=ROOT / "build/cuda/kvasir", type=pathlib.Path)
    parser.add_argument("--peer-python", default=sys.executable, help="a Python with torch and transformers; '' measures Kvasir alone")
    parser.add_argument("--prompt-tokens", type=int, default=256)
    parser.add_argument("--tokens", type=int, default=128, help="of each answer")
    parser.add_argument("--clients", type=numbers, default=[64, 256])
    parser.add_argument("--seconds", type=float, default=6, help="of each number of clients, and of each rate")
    parser.add_argument("--least", type=int, default=32, help="requests at each rate, however long that takes")
    parser.add_argument("--most", type=int, default=2000)
    parser.add_argument("--step-tokens", type=int, default=2048, help="--max-num-batched-tokens of Kvasir")
    parser.add_argument("--threads", type=int, default=0, help="of either side, on the CPU; 0: as each chooses")
    parser.add_argument("--client-processes", type=int, default=max(1, min(4, len(os.sched_getaffinity(0)) // 4)))
    parser.add_argument("--limit", type=float, default=600, help="seconds for all of it: the peer gets what Kvasir leaves")
    parser.add_argument("--json", action="store_true", help="one JSON line per case")
    return parser.parse_args()


def main():
    args = arguments()
    deadline, report = time.perf_counter() + args.limit, Report(args)
    with tempfile.TemporaryDirectory() as work:
        folder = pathlib.Path(work) / args.shape
        subprocess.run([sys.executable, ROOT / "tools/make_random_model.py", "--shape", args.shape, "--no-weights", "--out", folder], check=True)
        args.vocabulary = json.loads((folder / "config.json").read_text())["vocab_size"]
        best, runs = measure_kvasir(args, folder, report)
        peer_best, peer_runs, remark = (None, [], "transformers was not asked for")
        if args.peer_python:
            peer_best, peer_runs, remark = measure_peer(args, folder, runs, deadline)
    report.best(best, peer_best)
    for i, (part, rate, _, ours) in enumerate(runs):
        report.run(part, rate, ours, peer_runs[i] if i < len(peer_runs) else None)
    report.line(remark, 0, "")
    return 0


if __name__ == "__main__":
    sys.exit(main())
