#!/usr/bin/env python3
"""How step time grows (ids d1 to d3): decode over context, prefill over chunk size, decode over batch, each with 1 thread and all.

  python3 tools/make_random_model.py --shape 15m --context 40960 --out build/models/15m-long
  python3 bench/sweep.py --model build/models/15m-long --svg docs/benchmarks/growth.svg [--json]

d1: distance of the step time from the best straight line over context. d2: time per token of a chunk over that of the largest.
d3: tokens per second over the envelope of bandwidth and operations that kvasir bench engine measures in the same run.
"""
import argparse
import json
import os
import pathlib
import subprocess

ROOT = pathlib.Path(__file__).resolve().parents[1]


def measure(args, threads, **flags):
    """{"prefill": (tok/s, ratio), "decode": (tok/s, ratio)}"""
    command = [args.kvasir, "bench", "engine", "--model", args.model, "--threads", threads, "--json", "--packed-cache", "off", "--repetitions", args.repetitions]
    for name, value in flags.items():
        command += ["--" + name.replace("_", "-"), value]
    result = subprocess.run(list(map(str, command)), capture_output=True, text=True, check=False)
    if result.returncode != 0:
        raise SystemExit(result.stderr)
    found = {}
    for case in map(json.loads, result.stdout.splitlines()):
        for key in ("prefill", "decode"):
            if case["case"].startswith(key):
                found[key] = (case["value"], case["ratio"])
    return found


def line_fit(points):
    """Slope and intercept by least squares of relative errors."""
    weights = [1 / y ** 2 for _, y in points]
    total, sx, sy = sum(weights), sum(w * x for w, (x, _) in zip(weights, points)), sum(w * y for w, (_, y) in zip(weights, points))
    sxx, sxy = sum(w * x * x for w, (x, _) in zip(weights, points)), sum(w * x * y for w, (x, y) in zip(weights, points))
    slope = (total * sxy - sx * sy) / (total * sxx - sx * sx)
    return slope, (sy - slope * sx) / total


def emit(args, case_id, name, value, unit, ceiling, ratio):
    if args.json:
        print(json.dumps({"id": case_id, "case": name, "value": value, "unit": unit, "ceiling": ceiling, "ratio": ratio}), flush=True)
    else:
        print(f"{case_id:4} {name:48} {value:12.4g} {unit:8} of {ceiling:10.4g}  ratio {ratio:.3f}", flush=True)


def contexts(args, threads):
    decode_tokens, points = 16, []
    for context in args.contexts:
        rate = measure(args, threads, prompt_tokens=context - decode_tokens // 2, decode_tokens=decode_tokens, batch=1)["decode"][0]
        points.append((context, 1000 / rate))
    slope, intercept = line_fit(points)
    for context, millis in points:
        line = intercept + slope * context
        emit(args, "d1", f"decode step, context {context}, {threads} threads", millis, "ms", line, line / millis)
    return points


def chunks(args, threads):
    points = []
    for chunk in args.chunks:
        rate = measure(args, threads, prompt_tokens=2048, decode_tokens=1, batch=1, max_num_batched_tokens=chunk)["prefill"][0]
        points.append((chunk, 1e6 / rate))
    for chunk, micros in points:
        emit(args, "d2", f"prefill of 2048 tokens, chunks of {chunk}, {threads} threads", micros, "us/token", points[-1][1], points[-1][1] / micros)
    return points


def batches(args, threads):
    points = []
    for batch in args.batches:
        rate, ratio = measure(args, threads, prompt_tokens=64, decode_tokens=24, batch=batch, max_num_seqs=max(args.batches))["decode"]
        points.append((batch, rate))
        emit(args, "d3", f"decode, batch {batch}, {threads} threads", rate, "tok/s", rate / ratio, ratio)
    return points


def ticks(low, high):
    value, out = 1, []
    while value <= high * 1.001:
        out += [value * m for m in (1, 2, 5) if low * 0.999 <= value * m <= high * 1.001]
        value *= 10
    return out


def plot(charts, path):
    """Log-log charts side by side: (title, x label, y label, {series: points})."""
    import math
    width, height, left, bottom, top = 330, 280, 58, 44, 34
    colours = ("#1f6feb", "#d1570a", "#2da44e")
    parts = [f'<svg xmlns="http://www.w3.org/2000/svg" width="{width * len(charts)}" height="{height}" font-family="sans-serif" font-size="11">',
             '<rect width="100%" height="100%" fill="white"/>']
    for nth, (title, x_label, y_label, series) in enumerate(charts):
        points = [p for line in series.values() for p in line]
        x0, x1, y0, y1 = min(p[0] for p in points), max(p[0] for p in points), min(p[1] for p in points) * 0.8, max(p[1] for p in points) * 1.25
        at_x = lambda x: nth * width + left + (width - left - 16) * math.log(x / x0) / math.log(x1 / x0)
        at_y = lambda y: height - bottom - (height - bottom - top) * math.log(y / y0) / math.log(y1 / y0)
        parts.append(f'<text x="{nth * width + left}" y="18" font-weight="bold">{title}</text>')
        for x in sorted({p[0] for p in points}):
            parts.append(f'<text x="{at_x(x):.0f}" y="{height - bottom + 14}" text-anchor="middle" font-size="9">{f"{x // 1024}k" if x >= 1024 else x}</text>')
        for y in ticks(y0, y1):
            parts.append(f'<line x1="{at_x(x0):.0f}" x2="{at_x(x1):.0f}" y1="{at_y(y):.0f}" y2="{at_y(y):.0f}" stroke="#ddd"/>'
                         f'<text x="{nth * width + left - 6}" y="{at_y(y) + 4:.0f}" text-anchor="end">{y:g}</text>')
        parts.append(f'<text x="{nth * width + (width + left) / 2:.0f}" y="{height - 10}" text-anchor="middle">{x_label}</text>'
                     f'<text transform="translate({nth * width + 14},{height / 2:.0f}) rotate(-90)" text-anchor="middle">{y_label}</text>')
        for colour, (name, line) in zip(colours, series.items()):
            parts.append(f'<polyline fill="none" stroke="{colour}" stroke-width="2" points="{" ".join(f"{at_x(x):.1f},{at_y(y):.1f}" for x, y in line)}"/>')
            parts += [f'<circle cx="{at_x(x):.1f}" cy="{at_y(y):.1f}" r="2.5" fill="{colour}"/>' for x, y in line]
            legend = height - bottom - 10 - 14 * list(series).index(name)
            parts.append(f'<text x="{nth * width + width - 20}" y="{legend}" text-anchor="end" fill="{colour}">{name}</text>')
    path.write_text("\n".join(parts + ["</svg>"]) + "\n")


def main():
    numbers = lambda text: [int(n) for n in text.split(",")]
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", required=True, type=pathlib.Path)
    parser.add_argument("--contexts", type=numbers, default=[1024, 2048, 4096, 8192, 16384, 32768])
    parser.add_argument("--chunks", type=numbers, default=[64, 128, 256, 512, 1024, 2048])
    parser.add_argument("--batches", type=numbers, default=[1, 2, 4, 8, 16, 32, 64, 128, 256])
    parser.add_argument("--threads", type=numbers, default=sorted({1, len(os.sched_getaffinity(0))}))
    parser.add_argument("--repetitions", type=int, default=3)
    parser.add_argument("--kvasir", type=pathlib.Path, default=ROOT / "build/release/kvasir")
    parser.add_argument("--svg", type=pathlib.Path)
    parser.add_argument("--json", action="store_true")
    args = parser.parse_args()
    names = {threads: f"{threads} thread" + "s" * (threads > 1) for threads in args.threads}
    charts = [("Decode step over context", "context, tokens", "ms per step", {names[t]: contexts(args, t) for t in args.threads}),
              ("Prefill over chunk size", "tokens per chunk", "us per token", {names[t]: chunks(args, t) for t in args.threads}),
              ("Decode over batch", "sequences", "tokens per second", {names[t]: batches(args, t) for t in args.threads})]
    if args.svg:
        plot(charts, args.svg)


if __name__ == "__main__":
    main()
