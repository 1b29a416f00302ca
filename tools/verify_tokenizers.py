#!/usr/bin/env python3
"""Compares Kvasir's tokenizer with the `tokenizers` package for one tokenizer of every family and measures it; prints docs/tokenizers.md's table.

For each folder: --count random texts (ids with and without special tokens, decoding with and without them, streaming), a fifth as many
random sequences of ids (decoding), the speed on English, and for each hostile pattern the time of a megabyte over that of a quarter of it.

usage: verify_tokenizers.py TOKENIZE_LINES_BINARY [FOLDER...] [--families FOLDER] [--count N] [--seed S] [--only NAME,...] [--times-only | --no-times]
FOLDERs hold published tokenizers; --families is where make_family_tokenizers.py writes (made if missing). Exits 1 on differences or
where a pattern takes more than linear time.
"""
import argparse
import gzip
import pathlib
import random
import subprocess
import sys

sys.path.insert(0, str(pathlib.Path(__file__).parent))
import compare_tokenizer  # noqa: E402

HOSTILE = {  # each unit is repeated to a quarter of a megabyte and to a megabyte
    "a": "a", "spaces": " ", "newlines": "\n", "space newline": " \n", "half a special token": "</s", "special tokens": "</s>",
    "half a chat token": "<|im_", "marks": "\u0301", "letter and mark": "e\u0301", "marks out of order": "\u0301\u0316", "CJK": "\u4e2d", "emoji": "\U0001F468\u200d",
    "digits": "1", "punctuation": "!", "apostrophes": "'", "letter digit": "a1", "unknown": "\U000F0000", "metaspace": "\u2581", "Hangul parts": "\u1100",
    "ligature": "\ufdfa", "capitals": "Aa", "tab": "\t", "no-break space": "\u00a0", "equals": "=", "byte token": "<0x41>", "## of WordPiece": "##", "slash": "/",
    "carriage return": "\r", "spaces, then a letter": (" ", "x"), "newlines, then a letter": ("\n", "x"), "tab space, then a letter": ("\t ", "x"),
    "capitals, then a digit": ("A", "1"), "marks, then a letter": ("\u0301", "x"), "words": "word ", "long words": "x" * 5000 + " ", "code": "  if (a) {\n"}
LIMIT = 10.0   # of the time of four times the text over the time of the text: linear is 4, n log n and a cold cache somewhat more, quadratic 16
MATTERS = 0.05  # seconds a megabyte; what takes less is too short to be compared


def english():
    """Four megabytes of plain English: the installed licences, else the documents of this repository."""
    licences = sorted(p for p in pathlib.Path("/usr/share/common-licenses").glob("*") if p.is_file() and not p.is_symlink())
    text = "\n".join(p.read_text(errors="ignore") for p in licences)
    if len(text) < 100_000:
        text = "\n".join(p.read_text() for p in sorted((pathlib.Path(__file__).resolve().parent.parent / "docs").glob("*.md")))
    paragraphs = [p for p in text.split("\n\n") if p.isascii()]
    rng, out, size = random.Random(5), [], 0
    while size < 4_000_000:
        out.append(rng.choice(paragraphs))
        size += len(out[-1]) + 2
    return "\n\n".join(out)


def repeated(unit, size):
    unit, end = unit if isinstance(unit, tuple) else (unit, "")
    return unit * (size // len(unit.encode())) + end


def times(binary, folder, text):
    requests = [{"time": text, "repeat": 3}]
    for unit in HOSTILE.values():
        requests += [{"time": repeated(unit, 250_000), "repeat": 4}, {"time": repeated(unit, 1_000_000), "repeat": 2}]
    answers = compare_tokenizer.run_lines(binary, folder, requests)
    seconds = [answer.get("seconds") for answer in answers]
    speed = len(text) / seconds[0] / 1e6
    worst, slowest, refused = ("", 0.0), ("", 0.0), []
    for i, name in enumerate(HOSTILE):
        one, two = seconds[1 + 2 * i], seconds[2 + 2 * i]
        if one is None or two is None:
            refused.append(name)
            continue
        if two > MATTERS:
            worst = max(worst, (name, two / one), key=lambda w: w[1])
        slowest = max(slowest, (name, two), key=lambda w: w[1])
    return speed, worst, slowest, refused


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("binary")
    parser.add_argument("folders", nargs="*", type=pathlib.Path)
    parser.add_argument("--families", type=pathlib.Path)
    parser.add_argument("--count", type=int, default=50000)
    parser.add_argument("--seed", type=int, default=12)
    parser.add_argument("--only")
    parser.add_argument("--times-only", action="store_true", help="compare nothing")
    parser.add_argument("--no-times", action="store_true", help="measure nothing")
    args = parser.parse_args()
    folders = list(args.folders)
    if args.families:
        if not args.families.is_dir():
            subprocess.run([sys.executable, str(pathlib.Path(__file__).parent / "make_family_tokenizers.py"), str(args.families)], check=True)
        folders += sorted(p for p in args.families.iterdir() if p.is_dir())
    if args.only:
        folders = [folder for folder in folders if folder.name in args.only.split(",")]
    text, bad = english(), False
    print("| tokenizer | texts | ids | decoded | id sequences | streamed | MB/s on English | slowest hostile megabyte | 1 MB / 0.25 MB |\n|---|---|---|---|---|---|---|---|---|")
    for folder in folders:
        result = {"texts": 0, "sequences": 0, "ids": 0, "special_ids": 0, "decoded": 0, "skipped": 0, "streamed": 0}
        if not args.times_only:
            result = compare_tokenizer.compare(args.binary, str(folder), args.count, args.seed, False)
        speed, worst, slowest, refused = (0.0, ("", 0.0), ("", 0.0), []) if args.no_times else times(args.binary, str(folder), text)
        wrong_ids, wrong_text = max(result["ids"], result["special_ids"]), max(result["decoded"], result["skipped"])
        bad = bad or wrong_ids > 0 or wrong_text > 0 or worst[1] > LIMIT or refused
        print(f"| {folder.name} | {result['texts']} | {wrong_ids} | {wrong_text} | {result['sequences']} | {result['streamed']} | {speed:.0f} "
              f"| {slowest[0]}: {slowest[1]:.2f} s | {worst[0]}: {worst[1]:.1f} |" + (f" refused: {', '.join(refused)}" if refused else ""), flush=True)
    sys.exit(1 if bad else 0)


if __name__ == "__main__":
    main()
