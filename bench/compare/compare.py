#!/usr/bin/env python3
"""Kvasir and others in turn on the same random weights: ratios of medians, with everything that was measured.

  python3 bench/compare/compare.py [--quick] [--peers llama,openvino,transformers] [--shapes 15m,110m] [--formats bf16,int8,int4]
                                   [--cases c1,c2,c3,c13] [--json]

The first run makes a virtual environment for each peer (build/compare/venv*; llama-cpp-python is compiled for this machine, which takes a while) and
the models (build/compare/models: tools/make_random_model.py, and GGUF files with the same weights). Ids are those of the benchmark set:
c1 decoding one sequence (128 tokens), c2 a prompt of 512 tokens, c3 decoding 8 and 32 sequences (128 + 128 tokens), c13 loading.
Both sides use the same threads; llama.cpp has flash attention on, its own cache type (f16) and micro-batches of 512, and is not charged
for sampling, which Kvasir does. q8_0 (8.5 bits per weight, groups of 32) stands beside int8 (8 bits, a scale per channel) and int8:32 (8.5 bits);
q4_0 (4.5 bits, groups of 32) beside int4 (4.5 bits, groups of 64 with scale and minimum). OpenVINO GenAI reads the same files (f16 beside bf16);
transformers knows bf16 only.
"""
import argparse
import json
import os
import pathlib
import statistics
import subprocess
import sys

import load
import peer_process

HERE = pathlib.Path(__file__).resolve().parent
ROOT = HERE.parents[1]
PEERS = {  # the script that drives it, what it is called, and the file it reads for a format (None: the folder)
    "llama": ("llama_peer.py", "llama.cpp", {"bf16": "bf16", "int8": "q8_0", "int8:32": "q8_0", "int4": "q4_0"}),
    "openvino": ("openvino_peer.py", "OpenVINO", {"bf16": "f16", "int8": "q8_0", "int8:32": "q8_0", "int4": "q4_0"}),
    "transformers": ("torch_peer.py", "transformers", {"bf16": None}),
}
FORMATS = {"bf16": "none", "int8": "int8", "int8:32": "int8:32", "int4": "int4"}
GOALS = {  # of the benchmark set, against llama.cpp
    ("c1", "bf16"): {"15m": 3, "110m": 1.45, "0.5b": 1.3, "1.1b": 1.35}, ("c1", "int8"): {"15m": 3.5, "110m": 2.4, "0.5b": 1.9},
    ("c1", "int4"): {"15m": 3.5, "110m": 2.4, "0.5b": 2.6}, ("c2", "bf16"): {"15m": 3, "110m": 2.2, "0.5b": 1.6, "1.1b": 1.7},
    ("c2", "int8"): dict.fromkeys(("15m", "110m", "0.5b"), 4), ("c2", "int4"): dict.fromkeys(("15m", "110m", "0.5b"), 3),
    ("c3 x8", "bf16"): {"15m": 5, "110m": 3.5, "0.5b": 4}, ("c3 x32", "bf16"): {"15m": 8, "110m": 4, "0.5b": 2.7},
    ("c3 x32", "int8"): {"110m": 7, "0.5b": 7},
}


def prepare_peer(name, work):
    """The Python that has the peer, or None with the reason told."""
    venv, requirements = work / ("venv" if name == "llama" else f"venv-{name}"), HERE / f"requirements-{name}.txt"
    python, stamp, wanted = venv / "bin/python", venv / "requirements.stamp", requirements.read_text()
    if stamp.exists() and stamp.read_text() == wanted:
        return python
    print(f"preparing {venv} (llama.cpp is compiled for this machine: up to half an hour the first time)", file=sys.stderr)
    try:
        subprocess.run([sys.executable, "-m", "venv", venv], check=True)
        subprocess.run([python, "-m", "pip", "install", "-q", "--disable-pip-version-check", "--no-binary", "llama-cpp-python", "-r", requirements], check=True,
                       env={**os.environ, "CMAKE_ARGS": "-DGGML_NATIVE=ON"})
    except (subprocess.CalledProcessError, OSError) as error:
        print(f"SKIPPED: no {PEERS[name][1]} to compare with ({error})", file=sys.stderr)
        return None
    stamp.write_text(wanted)
    return python


def prepare_folder(python, models, shape):
    folder = models / shape
    if not (folder / "config.json").exists():
        subprocess.run([python, ROOT / "tools/make_random_model.py", "--shape", shape, "--out", folder], check=True, stdout=sys.stderr)
    return folder


def prepare_file(python, models, shape, file_format):
    path = models / f"{shape}-{file_format}.gguf"
    if not path.exists():
        print(f"writing {path}", file=sys.stderr)
        code = f"import gguf_models; gguf_models.write_gguf({str(models / shape)!r}, {str(path)!r}, {file_format!r})"
        subprocess.run([python, "-c", code], check=True, cwd=HERE, stdout=sys.stderr)
    return path


class Peer:
    def __init__(self, name, python, threads):
        script, self.title, self.files = PEERS[name]
        self.name, self.python, self.threads = name, python, threads
        self.process = peer_process.Process(self.title, [python, HERE / script])

    def ask(self, op, **arguments):
        return self.process.ask(op, **arguments)

    def load(self, path):
        return self.ask("load", path=str(path), threads=self.threads)

    def close(self):
        self.process.close()


class Kvasir:
    def __init__(self, binary, threads, cache):
        self.binary, self.threads, self.cache = binary, threads, cache

    def run(self, folder, quantization, prompt, decode, batch):
        command = [self.binary, "bench", "engine", "--model", folder, "--threads", self.threads, "--quantization", quantization, "--prompt-tokens",
                   prompt, "--decode-tokens", max(decode, 1), "--batch", batch, "--repetitions", 1, "--packed-cache", self.cache, "--json"]
        result = subprocess.run(list(map(str, command)), capture_output=True, text=True, check=False)
        if result.returncode != 0:
            raise RuntimeError(f"kvasir: {result.stderr.strip()}")
        values = {}
        for line in result.stdout.splitlines():
            case = json.loads(line)
            for key in ("prefill", "decode", "stream read"):
                if case["case"].startswith(key):
                    values[key] = case["value"]
        return {"prefill_tok_s": values["prefill"], "decode_tok_s": values["decode"], "stream_gb_s": values["stream read"]}

    def greedy(self, folder, prompt, decode):
        command = [self.binary, "generate", "--model", folder, "--token-ids", ",".join(map(str, prompt)), "--max-tokens", decode, "--ignore-eos",
                   "--json", "--packed-cache", "off"]
        result = subprocess.run(list(map(str, command)), capture_output=True, text=True, check=True)
        return json.loads(result.stdout)["token_ids"]


def spread(values):
    return (max(values) - min(values)) / statistics.median(values) if len(values) > 1 else 0.0


def alternate(repetitions, ours, theirs):
    """Runs A B, B A, A B, ...: whatever drifts touches both. Returns the results of each side."""
    results = ([], [])
    for i in range(repetitions):
        for side in ((0, 1) if i % 2 == 0 else (1, 0)):
            results[side].append((ours, theirs)[side]())
    return results


def report(args, peer_name, case, name, shape, ours, theirs, unit, higher_is_better=True):
    mine, peer = statistics.median(ours), statistics.median(theirs)
    ratio = mine / peer if higher_is_better else peer / mine
    goal = GOALS.get((case, name.split(":")[0]), {}).get(shape) if peer_name == "llama" else None
    if args.json:
        print(json.dumps({"id": case.split()[0], "case": f"{case} {shape} {name}", "value": mine, "unit": unit, "ceiling": peer, "ratio": ratio,
                          "goal": goal, "ours": ours, "peer": theirs, "peer_name": PEERS[peer_name][1]}), flush=True)
    else:
        verdict = "" if goal is None else f"  (goal {goal}: {'met' if ratio >= goal else 'missed'})"
        print(f"{case:7} {shape:5} {name:7} kvasir {mine:9.1f}  {PEERS[peer_name][1]} {peer:9.1f} {unit:6} ratio {ratio:6.2f}{verdict}"
              f"  spread {spread(ours):.0%} / {spread(theirs):.0%}", flush=True)


def check_same(args, llama, kvasir, folder):
    """The same weights: greedy tokens agree wherever the two best logits are not nearly equal."""
    compared = agreed = 0
    for seed in range(4):
        prompt = [300 + (seed * 7919 + i * 104729) % 31000 for i in range(12)]
        theirs = llama.ask("greedy", prompt=prompt, decode=6)
        ours = kvasir.greedy(folder, prompt, 6)
        for a, b, margin in zip(ours, theirs["tokens"], theirs["margins"]):
            if margin > 0.03:
                compared += 1
                agreed += a == b
            if a != b:
                break
    print(f"greedy tokens where the margin is clear: {agreed} of {compared} agree", file=sys.stderr)
    if agreed < compared:
        sys.exit("the two sides compute different models")


def compare_shape(args, peer, kvasir, shape):
    folder = prepare_folder(peer.python, args.models, shape)
    large = shape in ("0.5b", "1.1b")
    for name in args.formats:
        if name not in peer.files:
            print(f"{peer.title} has no {name}", file=sys.stderr)
            continue
        quantization = FORMATS[name]
        path = folder if peer.files[name] is None else prepare_file(peer.python, args.models, shape, peer.files[name])
        print(f"{shape} {name}: {peer.load(path)['system']}", file=sys.stderr)
        if name == "bf16" and peer.name == "llama":
            check_same(args, peer, kvasir, folder)
        kvasir.run(folder, quantization, 8, 1, 1)  # packs the weights, and keeps them
        tokens = args.decode_tokens or (64 if large else 128)
        cases = [("c1", 8, tokens, 1), ("c2", 512, 0, 1), ("c3 x8", 128, tokens // 2, 8), ("c3 x32", 128, tokens // 4, 32)]
        for case, prompt, decode, batch in cases:
            if case.split()[0] not in args.cases:
                continue
            ours, theirs = alternate(args.repetitions, lambda: kvasir.run(folder, quantization, prompt, decode, batch),
                                     lambda: peer.ask("run", prompt=prompt, decode=decode, batch=batch))
            key = "prefill_tok_s" if case == "c2" else "decode_tok_s"
            report(args, peer.name, case, name, shape, [r[key] for r in ours], [r[key] for r in theirs], "tok/s")
        if "c13" in args.cases:
            ours, theirs = alternate(args.repetitions, lambda: seconds_to_ready(kvasir, folder, quantization),
                                     lambda: peer.load(path)["seconds"])
            report(args, peer.name, "c13", name, shape, [1000 * s for s in ours], [1000 * s for s in theirs], "ms", higher_is_better=False)


def seconds_to_ready(kvasir, folder, quantization):
    """From exec to 200 on /health. The peer's figure is its library's load alone, in a running process."""
    with load.Server([kvasir.binary, "serve", "--model", folder, "--quantization", quantization, "--grpc-port", -1, "--packed-cache", kvasir.cache]) as server:
        return server.seconds


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parts = lambda text: text.split(",")
    parser.add_argument("--peers", type=parts, default=["llama"])
    parser.add_argument("--shapes", type=parts, default=["15m", "110m", "0.5b"])
    parser.add_argument("--formats", type=parts, default=list(FORMATS))
    parser.add_argument("--cases", type=parts, default=["c1", "c2", "c3", "c13"])
    parser.add_argument("--repetitions", type=int, default=7)
    parser.add_argument("--decode-tokens", type=int, default=0, help="of one sequence; half and a quarter of it with 8 and 32. Default 128, or 64 from 0.5b on")
    parser.add_argument("--threads", type=int, default=len(os.sched_getaffinity(0)))
    parser.add_argument("--quick", action="store_true", help="15m and 110m, three repetitions, fewer tokens")
    parser.add_argument("--json", action="store_true", help="one JSON line per case")
    parser.add_argument("--kvasir", default=ROOT / "build/release/kvasir", type=pathlib.Path)
    parser.add_argument("--work", default=ROOT / "build/compare", type=pathlib.Path)
    args = parser.parse_args()
    if args.quick:
        args.shapes, args.repetitions, args.decode_tokens = ["15m", "110m"], 3, args.decode_tokens or 64
    for name in args.formats:
        if name not in FORMATS:
            parser.error(f"--formats: {name} is not one of {', '.join(FORMATS)}")
    for name in args.peers:
        if name not in PEERS:
            parser.error(f"--peers: {name} is not one of {', '.join(PEERS)}")
    if not args.kvasir.exists():
        parser.error(f"{args.kvasir} is not there: scripts/build release, or --kvasir PATH")
    args.models = args.work / "models"
    args.models.mkdir(parents=True, exist_ok=True)
    kvasir, compared = Kvasir(str(args.kvasir), args.threads, args.work / "packed"), 0
    for name in args.peers:
        python = prepare_peer(name, args.work)
        if python is None:
            continue
        compared += 1
        peer = Peer(name, python, args.threads)
        try:
            for shape in args.shapes:
                compare_shape(args, peer, kvasir, shape)
        finally:
            peer.close()
    return 0 if compared else 77


if __name__ == "__main__":
    sys.exit(main())
