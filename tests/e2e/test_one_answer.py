"""One answer: the same 64 requests give identical tokens and bit-identical logprobs alone, all at once, in any chunk size, under constant
preemption, with the prefix cache cold, warm and off, and with one thread and two."""
import json
import random
from concurrent.futures import ThreadPoolExecutor

import pytest

from kvasir_server import DEMO, SLOW, Server, real_models

# Sanitizers, which make this take many minutes, see nothing in the real models that is not in the small one.
REAL = {f.name: f for f in real_models() if f.name in ("stories260K", "babyllama-361-hd64")} if SLOW == 1 else {}
CANDIDATES = {"demo": DEMO, **REAL}
FOLDERS = {name: folder for name, folder in CANDIDATES.items() if (folder / "config.json").exists()}


def make_requests(folder, count=64, seed=20260101):
    """Prompts with shared prefixes and odd lengths; greedy and sampled, penalties, bias, several choices, logprobs."""
    rng = random.Random(seed)
    vocab = json.loads((folder / "config.json").read_text())["vocab_size"]
    prefixes = [[rng.randrange(3, vocab) for _ in range(n)] for n in (5, 16, 33, 48)]
    requests = []
    for i in range(count):
        prompt = [1] + rng.choice(prefixes) + [rng.randrange(3, vocab) for _ in range(rng.randrange(1, 20))]
        body = {"prompt": prompt, "max_tokens": rng.randrange(4, 24), "logprobs": 3, "return_token_ids": True, "seed": i,
                "temperature": rng.choice([0, 0, 0.7, 1.0, 1.5]), "ignore_eos": rng.random() < 0.8}
        if i % 4 == 1:
            body.update(top_p=0.9, top_k=20, presence_penalty=0.5, frequency_penalty=0.3, repetition_penalty=1.1)
        if i % 8 == 2:
            body.update(n=3, temperature=1.0, min_p=0.02)
        if i % 16 == 3:
            body.update(logit_bias={str(rng.randrange(3, vocab)): 3.5}, min_tokens=2)
        requests.append(body)
    return requests


def ask(server, body):
    answer = server.post("/v1/completions", body)
    return [(c["index"], c["token_ids"], c["finish_reason"], json.dumps(c["logprobs"], sort_keys=True)) for c in answer["choices"]]


def ask_all(server, requests, parallel):
    with ThreadPoolExecutor(parallel) as pool:
        return list(pool.map(lambda body: ask(server, body), requests))


VARIANTS = {
    "all at once": ([], 64),
    "chunks of 1": (["--max-num-batched-tokens", 1], 64),
    "chunks of 7": (["--max-num-batched-tokens", 7], 64),
    "chunks of 16": (["--max-num-batched-tokens", 16], 64),
    "long prompts in shares of 5": (["--long-prefill-token-threshold", 5], 64),
    "constant preemption": (["--block-size", 4, "--num-gpu-blocks-override", 30, "--check-invariants"], 64),
    "constant preemption, no prefix cache": (["--block-size", 4, "--num-gpu-blocks-override", 30, "--no-enable-prefix-caching"], 64),
    "reserve to finish": (["--num-gpu-blocks-override", 24, "--reserve-to-finish"], 64),
    "blocks of 8": (["--block-size", 8], 64),
    "one thread": (["--threads", 1], 64),
    "no prefix cache": (["--no-enable-prefix-caching"], 64),
}


@pytest.mark.parametrize("quantization", ["none", "int8", "int4"])
@pytest.mark.parametrize("name", FOLDERS)
def test_one_answer(name, quantization):
    folder = FOLDERS[name]
    requests = make_requests(folder)
    common = ["--quantization", quantization]
    with Server(folder, "--no-enable-prefix-caching", "--threads", 2, *common) as server:
        alone = ask_all(server, requests, 1)
    for variant, (flags, parallel) in VARIANTS.items():
        if quantization != "none" and variant not in ("all at once", "chunks of 7", "constant preemption", "one thread"):
            continue
        flags = flags if "--threads" in flags else [*flags, "--threads", 2]
        with Server(folder, *flags, *common) as server:
            for temperature in ("cold", "warm"):
                answers = ask_all(server, requests, parallel)
                different = [i for i, (a, b) in enumerate(zip(alone, answers)) if a != b]
                assert not different, f"{variant}, {temperature}: requests {different} differ, first: {alone[different[0]]} {answers[different[0]]}"
            if "constant preemption" in variant:
                assert server.metric("vllm:num_preemptions_total") > 20, "the pool is not small enough to test anything"
            if variant == "all at once":
                assert server.metric("vllm:prefix_cache_hits_total") > 500
