"""Start, stop and everything that can be wrong with flags, ports and model folders."""
import json
import os
import shutil
import signal
import socket
import struct
import subprocess
import threading
import time

import pytest

from kvasir_server import BIN, DEMO, SLOW, Server, free_port, sse_events

import http.client


def run(*arguments, timeout=60, env=None):
    return subprocess.run([BIN, *map(str, arguments)], capture_output=True, text=True, timeout=timeout * SLOW, env={**os.environ, **(env or {})})


def test_help_and_version():
    assert "serve" in run("--help").stdout
    assert run("serve", "--help").stdout.count("--") > 25
    assert run("version").stdout.startswith("kvasir 0.")


@pytest.mark.parametrize("arguments,expected", [
    (["serve", "--prot", "1", "--model", DEMO], "did you mean --port?"),
    (["serve"], "--model is missing"),
    (["srve"], "did you mean 'serve'?"),
    (["serve", "--model", "/no/such/folder"], "/no/such/folder"),
    (["serve", "--model", DEMO, "--port", "99999"], "--port"),
    (["serve", "--model", DEMO, "--max-model-len", "10m"], "max_position_embeddings"),
    (["serve", "--model", DEMO, "--kv-cache-memory-bytes", "1"], "--block-size"),
    (["serve", "--model", DEMO, "--host", "0.0.0.0"], "--insecure-no-auth"),
    (["serve", "--model", DEMO, "--device", "cuda"], "--device cpu"),
    (["generate", "--model", DEMO, "--token-ids", "1,x"], "--token-ids"),
])
def test_bad_flags_exit_2_with_the_remedy(arguments, expected):
    result = run(*arguments)
    assert result.returncode == 2, result.stderr
    assert expected in result.stderr, result.stderr


def test_unknown_isa_names_what_this_machine_has():
    result = run("generate", "--model", DEMO, "-p", "x", env={"KVASIR_CPU_ISA": "avx9000"})
    assert result.returncode == 2 and "portable" in result.stderr, result.stderr


def test_check_config_prints_and_exits():
    result = run("serve", "--model", DEMO, "--check-config", "--port", "1234")
    assert result.returncode == 0 and "port: 1234" in result.stdout


def test_port_in_use_is_told_before_the_model_is_loaded():
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        result = run("serve", "--model", DEMO, "--port", port, "--grpc-port", free_port())
        assert result.returncode == 2 and str(port) in result.stderr and "in use" in result.stderr, result.stderr
        result = run("serve", "--model", DEMO, "--port", free_port(), "--grpc-port", port)
        assert result.returncode == 2 and str(port) in result.stderr, result.stderr


def test_not_enough_memory_is_told():
    result = run("serve", "--model", DEMO, "--kv-cache-memory-bytes", "100000g", "--port", free_port(), "--grpc-port", free_port())
    assert result.returncode == 2, result.stderr
    assert "memory" in result.stderr.lower()


def corrupt(folder, name):
    """Breaks a copy of the demo model; what the error must name."""
    weights, config, tokenizer = folder / "model.safetensors", folder / "config.json", folder / "tokenizer.json"
    data = weights.read_bytes()
    header = json.loads(data[8:8 + struct.unpack("<Q", data[:8])[0]])
    body = data[8 + struct.unpack("<Q", data[:8])[0]:]

    def write(new_header, new_body=body):
        text = json.dumps(new_header).encode()
        weights.write_bytes(struct.pack("<Q", len(text)) + text + new_body)

    first = next(k for k in header if k != "__metadata__")
    if name == "truncated":
        weights.write_bytes(data[:-1000])
        return "model.safetensors"
    if name == "header bomb":
        weights.write_bytes(struct.pack("<Q", 2**63) + data[8:])
        return "header"
    if name == "overlap":
        other = [k for k in header if k not in (first, "__metadata__")][0]
        header[other]["data_offsets"] = header[first]["data_offsets"]
        write(header)
        return "model.safetensors"
    if name == "wrong shape":
        header[first]["shape"] = list(reversed(header[first]["shape"])) + [1]
        write(header)
        return first
    if name == "missing tensor":
        names = sorted((k for k in header if k != "__metadata__"), key=lambda k: header[k]["data_offsets"][0])
        begin, _ = header.pop(names[-1])["data_offsets"]
        write(header, body[:begin])
        return names[-1]
    if name == "wrong dtype":
        header[first]["dtype"] = "Q4"
        write(header)
        return "Q4"
    if name == "config type":
        config.write_text(config.read_text().replace('"hidden_size":', '"hidden_size": "x", "hidden_size_":'))
        return "hidden_size"
    if name == "other architecture":
        c = json.loads(config.read_text())
        c["architectures"] = ["MambaForCausalLM"]
        config.write_text(json.dumps(c))
        return "MambaForCausalLM"
    if name == "tokenizer":
        tokenizer.write_text(tokenizer.read_text()[:5000])
        return "tokenizer.json"
    if name == "tokenizer component":
        t = json.loads(tokenizer.read_text())
        t["pre_tokenizer"] = {"type": "Psychic"}
        tokenizer.write_text(json.dumps(t))
        return "Psychic"
    if name == "no weights":
        weights.unlink()
        return "safetensors"
    raise AssertionError(name)


@pytest.mark.parametrize("name", ["truncated", "header bomb", "overlap", "wrong shape", "missing tensor", "wrong dtype", "config type",
                                  "other architecture", "tokenizer", "tokenizer component", "no weights"])
def test_broken_model_folders(tmp_path, name):
    folder = tmp_path / "model"
    shutil.copytree(DEMO, folder)
    expected = corrupt(folder, name)
    start = time.time()
    result = run("serve", "--model", folder, "--port", free_port(), "--grpc-port", free_port())
    assert result.returncode == 2, (result.returncode, result.stderr)
    assert expected in result.stderr, result.stderr
    assert time.time() - start < 10 * SLOW


def test_sigterm_when_idle_is_quick():
    with Server(DEMO) as server:
        start = time.time()
        assert server.stop() == 0
        assert time.time() - start < 2 * SLOW


def stream_to_end(server, ended, i):
    connection = http.client.HTTPConnection("127.0.0.1", server.port, timeout=120 * SLOW)
    body = {"prompt": [1 + i % 50, 7, 9], "max_tokens": 300, "stream": True, "ignore_eos": True, "temperature": 1, "seed": i}
    connection.request("POST", "/v1/completions", json.dumps(body), {"Content-Type": "application/json"})
    response = connection.getresponse()
    if response.status != 200:  # ended before its first token: a plain error is its terminal event
        ended[i] = response.status
        return
    last = None
    for event in sse_events(response):
        if "error" in event:
            last = "error"
        elif event["choices"] and event["choices"][0]["finish_reason"]:
            last = event["choices"][0]["finish_reason"]
    ended[i] = last


@pytest.mark.parametrize("drain", [60, 0])
def test_sigterm_under_load_loses_no_terminal_event(drain):
    server = Server(DEMO, "--drain-timeout", int(drain * SLOW), "--max-num-seqs", 64)
    ended = {}
    threads = [threading.Thread(target=stream_to_end, args=(server, ended, i)) for i in range(100)]
    for thread in threads:
        thread.start()
    deadline = time.time() + 30 * SLOW
    while server.metric("vllm:num_requests_running") < 32 and time.time() < deadline:
        time.sleep(0.01)
    running = server.metric("vllm:num_requests_running") + server.metric("vllm:num_requests_waiting")
    assert server.stop(signal.SIGTERM, timeout=90) == 0
    for thread in threads:
        thread.join(30 * SLOW)
    accepted = [v for v in ended.values()]
    assert len(accepted) >= running, (len(accepted), running)
    assert all(v in (("length",) if drain else ("length", "error", 503)) for v in accepted), accepted
