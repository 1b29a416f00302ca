"""The greedy tokens of every model with goldens equal its golden continuation, through the command line, HTTP and gRPC."""
import json
import subprocess

import pytest

from kvasir_server import BIN, DEMO, Server, real_models

FOLDERS = [DEMO, *real_models()]  # without real models there is still the demo model


def check_ids(ids, prompt, is_float32, what):
    """A different token is a tie only where the golden margin is below the tolerance of golden.json; after it texts differ."""
    limit = 0.001 if is_float32 else 0.25
    for step, (ours, golden) in enumerate(zip(ids, prompt["greedy_ids"])):
        if ours != golden:
            margin = prompt["greedy_margins"][step]
            assert margin < limit, f"{what}: step {step} is {ours}, golden {golden}, margin {margin}"
            return
    assert len(ids) == len(prompt["greedy_ids"]), what


@pytest.mark.parametrize("folder", FOLDERS, ids=lambda f: f.name)
def test_greedy_tokens(folder):
    golden = json.loads((folder / "golden.json").read_text())
    is_float32 = golden["stored_dtype"] == "float32"
    with Server(folder) as server:
        for prompt in golden["prompts"]:
            body = {"prompt": prompt["prompt_ids"], "max_tokens": len(prompt["greedy_ids"]), "temperature": 0, "ignore_eos": True,
                    "return_token_ids": True}
            choice = server.post("/v1/completions", body)["choices"][0]
            check_ids(choice["token_ids"], prompt, is_float32, f"HTTP {folder.name}")
            if "messages" in prompt:
                assert server.post("/tokenize", {"messages": prompt["messages"]})["tokens"] == prompt["prompt_ids"]
            else:
                text = server.post("/v1/completions", {**body, "prompt": prompt["prompt"]})["choices"][0]
                assert text["token_ids"] == choice["token_ids"], "text and ids of the same prompt differ"
        for case in golden.get("tokenizer_cases", []):
            assert server.post("/tokenize", {"prompt": case["text"]})["tokens"] == case["ids"], case
            bare = server.post("/tokenize", {"prompt": case["text"], "add_special_tokens": False})["tokens"]
            assert bare == case["ids_without_bos"], case


@pytest.mark.parametrize("folder", FOLDERS, ids=lambda f: f.name)
def test_greedy_tokens_on_the_command_line(folder):
    golden = json.loads((folder / "golden.json").read_text())
    for prompt in golden["prompts"]:
        ids = ",".join(map(str, prompt["prompt_ids"]))
        out = subprocess.run([BIN, "generate", "--model", str(folder), "--token-ids", ids, "-n", str(len(prompt["greedy_ids"])), "--ignore-eos", "--json"],
                             capture_output=True, text=True, check=True).stdout
        check_ids(json.loads(out)["token_ids"], prompt, golden["stored_dtype"] == "float32", f"generate {folder.name}")


@pytest.mark.parametrize("folder", FOLDERS, ids=lambda f: f.name)
def test_greedy_tokens_over_grpc(folder):
    grpc_client = pytest.importorskip("kvasir_grpc", reason="grpcio is not installed")
    golden = json.loads((folder / "golden.json").read_text())
    with Server(folder) as server, grpc_client.connect(server.grpc_port) as client:
        for prompt in golden["prompts"]:
            ids = client.generate_ids(prompt["prompt_ids"], max_tokens=len(prompt["greedy_ids"]))
            check_ids(ids, prompt, golden["stored_dtype"] == "float32", f"gRPC {folder.name}")
