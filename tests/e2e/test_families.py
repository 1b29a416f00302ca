"""The server over the small checkpoints whose layers keep different things: windows, a latent, shared KV, recurrent state. The greedy tokens are those of
transformers, cold and from the prefix cache, alone and beside each other; what serve says of the groups is true."""
import json
import re
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from kvasir_server import Server

FAMILIES = Path(__file__).parent.parent / "data" / "families"
NAMES = ["qwen3-next", "gemma2", "gemma3", "gemma3-multimodal", "gpt-oss", "deepseek-v2", "kv-owner-yoco", "kv-owner-windows", "qwen2-moe-window", "smollm3-window", "cohere2", "gpt2", "mixtral"]
LETTERS = "abcdefghijklmnopqrstuvwxyz ABCDEFGHIJKLMNOPQRSTUVWXYZ.,?!"


def make_folder(name, where):
    """The checkpoint with a tokenizer of single letters: texts are not what is tested here."""
    folder = where / name
    folder.mkdir()
    for file in (FAMILIES / name).iterdir():
        if file.name in ("config.json", "generation_config.json") or file.name.endswith((".safetensors", ".index.json")):
            (folder / file.name).symlink_to(file)
    vocab = {letter: id for id, letter in enumerate(LETTERS)}
    tokenizer = {"version": "1.0", "added_tokens": [], "normalizer": None, "pre_tokenizer": None, "post_processor": None, "decoder": None,
                 "model": {"type": "BPE", "vocab": vocab, "merges": []}}
    (folder / "tokenizer.json").write_text(json.dumps(tokenizer))
    return folder


@pytest.mark.parametrize("name", NAMES)
def test_family(name, tmp_path):
    golden = json.loads((FAMILIES / name / "golden.json").read_text())
    prompts = [p for p in golden["prompts"] if "greedy_ids" in p]
    assert len(prompts) >= 3

    with Server(make_folder(name, tmp_path), "--dtype", "float32", "--block-size", "8", "--max-num-batched-tokens", "48", "--check-invariants") as server:
        def ids_of(prompt):
            body = {"prompt": prompt["prompt_ids"], "max_tokens": len(prompt["greedy_ids"]), "temperature": 0, "ignore_eos": True, "return_token_ids": True}
            answer = server.post("/v1/completions", body)
            return answer["choices"][0]["token_ids"], answer["usage"]["prompt_tokens_details"]["cached_tokens"]

        with ThreadPoolExecutor(len(prompts)) as pool:
            for (ids, _), prompt in zip(pool.map(ids_of, prompts), prompts):
                assert ids == prompt["greedy_ids"], f"{prompt['length']} tokens, beside others"
        for prompt in prompts:
            ids, cached = ids_of(prompt)
            assert ids == prompt["greedy_ids"], f"{prompt['length']} tokens, from the cache"
            assert cached == (prompt["length"] - 1) // 8 * 8
        described = server.log
        config = json.loads((FAMILIES / name / "config.json").read_text())
        types = config.get("text_config", config).get("layer_types", [])
        owners = config.get("kv_owner", range(len(types)))
        types = [kind for layer, (kind, owner) in enumerate(zip(types, owners)) if owner == layer]  # the others keep nothing
        if "linear_attention" in types:
            assert re.search(rf"{types.count('linear_attention')} layers of recurrent state: \S+ \S+ per sequence", described)
        if "sliding_attention" in types and "full_attention" in types:
            assert re.search(rf"{types.count('full_attention')} layers that keep all tokens", described)
            assert re.search(rf"{types.count('sliding_attention')} layers that keep the last \d+ tokens", described)


def test_a_block_of_recurrent_state_has_256_tokens(tmp_path):
    with Server(make_folder("qwen3-next", tmp_path), "--max-num-seqs", "4") as server:
        server.wait_for_log("blocks of 256 tokens")
