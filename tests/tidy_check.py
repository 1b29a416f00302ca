#!/usr/bin/env python3
"""The tidy check: style as a failing test. Run by ctest from the repository root; prints every finding and exits 1 if there is one.

 * rooms include only what design allows (kernels <- {memory, models} <- scheduler <- server), and files do not include in a circle
 * no gRPC, Boost or HTTP below server/; CUDA only under kernels/cuda/, bench/cuda/ and tests/simt/
 * files are at most 800 lines, functions at most 70 (100 in kernels/)
 * every source file is listed in a CMakeLists.txt
 * no std::regex, no throw of our own, no wall clock outside the places that need it, no file named after nothing (utils, common, helper)
"""
import pathlib
import re
import sys

ROOMS = {
    "kernels": set(),
    "memory": {"kernels"},
    "models": {"kernels"},
    "scheduler": {"kernels", "memory", "models"},
    "server": {"kernels", "memory", "models", "scheduler", "proto"},
    "bench": {"kernels", "memory", "models", "scheduler", "server"},
}
ROOT = pathlib.Path(__file__).resolve().parent.parent
findings = []


def report(path, line, text):
    findings.append(f"{path.relative_to(ROOT)}:{line}: {text}")


def sources(*folders):
    for folder in folders:
        for path in sorted((ROOT / folder).rglob("*")):
            if path.suffix in (".h", ".cc", ".cu", ".cuh"):
                yield path


def check_includes():
    graph = {}
    for path in sources(*ROOMS):
        room = path.relative_to(ROOT).parts[0]
        edges = graph.setdefault(str(path.relative_to(ROOT)), [])
        for number, line in enumerate(path.read_text().splitlines(), 1):
            match = re.match(r'\s*#\s*include\s+["<]([^">]+)[">]', line)
            if not match:
                continue
            target = match.group(1)
            other = target.split("/")[0]
            if (ROOT / target).exists():
                edges.append(target)
            main = str(path.relative_to(ROOT)) == "server/main.cc"
            if "/" in target and other in ROOMS and other != room and other not in ROOMS[room] and not main:
                # The command line may call the benchmarks; nothing else looks up.
                report(path, number, f"{room}/ must not include {target}")
            if room != "server" and room != "bench" and re.match(r"(grpc|grpcpp|boost|google/protobuf)", target):
                report(path, number, f"{target} belongs to server/ only")
            if re.match(r"cuda|cublas", target) and not re.search("kernels/cuda|bench/cuda|tests/simt", str(path)):
                report(path, number, "CUDA belongs to kernels/cuda/ (its benchmarks to bench/cuda/) only")
    state = {}

    def visit(node, trail):
        state[node] = 1
        for edge in graph.get(node, []):
            if state.get(edge) == 1:
                findings.append(f"include cycle: {' -> '.join(trail + [node, edge])}")
            elif edge in graph and edge not in state:
                visit(edge, trail + [node])
        state[node] = 2

    for node in list(graph):
        if node not in state:
            visit(node, [])


def check_functions(path, lines, limit):
    """A function body starts at a line at depth of namespaces that ends with '{' and holds ')': good enough for formatted code."""
    start = None
    for number, line in enumerate(lines, 1):
        if start is None and re.match(r"^(  )?[A-Za-z_~].*\)?.*\{$", line) and "(" in "".join(lines[max(0, number - 6):number]) \
                and not re.match(r"^\s*(namespace|class|struct|enum|union|extern)\b", line) and not line.startswith("  case "):
            start, indent = number, len(line) - len(line.lstrip())
        elif start is not None and line.startswith(" " * indent + "}") and len(line) - len(line.lstrip()) == indent:
            if number - start + 1 > limit:
                report(path, start, f"function of {number - start + 1} lines, the limit is {limit}")
            start = None


def check_files():
    listed = "\n".join(p.read_text() for p in ROOT.rglob("CMakeLists.txt") if "build" not in p.relative_to(ROOT).parts)
    for path in sources(*ROOMS, "tests"):
        text = path.read_text()
        lines = text.splitlines()
        room = path.relative_to(ROOT).parts[0]
        if len(lines) > 800:
            report(path, 1, f"{len(lines)} lines, the limit is 800: this is more than one room")
        if path.suffix in (".cc", ".cu") and path.name not in listed:
            report(path, 1, "is in no CMakeLists.txt")
        if re.search(r"(^|_)(utils?|common|helpers?|manager|handler|impl)(_|\.)", path.name):
            report(path, 1, "is named after nothing: name it by what it is")
        if room != "tests":
            check_functions(path, lines, 100 if room == "kernels" else 70)
        for number, line in enumerate(lines, 1):
            code = line.split("//")[0]
            if "std::regex" in code:
                report(path, number, "std::regex recurses on its input: use PCRE2 with limits")
            if room not in ("tests",) and re.search(r"\bthrow\b(?! std::bad_alloc)", code):
                report(path, number, "our code throws nothing: return a Status")
            if len(line) > 160:
                report(path, number, f"{len(line)} columns")


def main():
    check_includes()
    check_files()
    for finding in findings:
        print(finding)
    print(f"tidy: {len(findings)} findings")
    return 1 if findings else 0


if __name__ == "__main__":
    sys.exit(main())
