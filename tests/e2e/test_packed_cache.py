"""The packed cache of a real server: the second start maps what the first one packed and answers the same; damage and changed files
are noticed; what cannot be kept does not matter."""
import json
import os
import shutil
import struct
import time

import pytest

from kvasir_server import DEMO, Server

HIDDEN, LAYERS, VOCAB, FFN = 256, 4, 16384, 1024  # 32 MB as packed: more than what is too small to keep


def random_bf16(count):
    """Values of about 0.01, in either sign."""
    data = bytearray(2 * count)
    data[0::2] = os.urandom(count)
    data[1::2] = os.urandom(count).translate(bytes(0x3C if i % 2 else 0xBC for i in range(256)))
    return bytes(data)


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    folder = tmp_path_factory.mktemp("model")
    tensors = {"model.embed_tokens.weight": (VOCAB, HIDDEN), "model.norm.weight": (HIDDEN,)}
    for i in range(LAYERS):
        p = f"model.layers.{i}."
        tensors |= {p + "input_layernorm.weight": (HIDDEN,), p + "post_attention_layernorm.weight": (HIDDEN,)}
        tensors |= {p + f"self_attn.{n}_proj.weight": (HIDDEN, HIDDEN) for n in "qkvo"}
        tensors |= {p + f"mlp.{n}_proj.weight": (FFN, HIDDEN) for n in ("gate", "up")} | {p + "mlp.down_proj.weight": (HIDDEN, FFN)}
    header, data = {}, bytearray()
    for name, shape in tensors.items():
        count = shape[0] * (shape[1] if len(shape) > 1 else 1)
        header[name] = {"dtype": "BF16", "shape": list(shape), "data_offsets": [len(data), len(data) + 2 * count]}
        data += random_bf16(count)
    text = json.dumps(header).encode()
    (folder / "model.safetensors").write_bytes(struct.pack("<Q", len(text)) + text + data)
    (folder / "config.json").write_text(json.dumps({
        "architectures": ["LlamaForCausalLM"], "model_type": "llama", "hidden_size": HIDDEN, "intermediate_size": FFN,
        "num_hidden_layers": LAYERS, "num_attention_heads": 4, "num_key_value_heads": 4, "vocab_size": VOCAB, "hidden_act": "silu",
        "max_position_embeddings": 512, "rms_norm_eps": 1e-5, "rope_theta": 10000.0, "tie_word_embeddings": True,
        "torch_dtype": "bfloat16", "bos_token_id": 1, "eos_token_id": 2}))
    for name in ("tokenizer.json", "tokenizer_config.json"):
        if (DEMO / name).exists():
            shutil.copy(DEMO / name, folder)
    return folder


def answers(server):
    bodies = [{"prompt": list(range(5, 5 + n)), "max_tokens": 12, "temperature": t, "seed": n, "ignore_eos": True, "logprobs": 2,
               "return_token_ids": True} for n in (3, 40) for t in (0, 1)]
    found = [server.post("/v1/completions", body)["choices"][0] for body in bodies]
    return json.dumps([[c["token_ids"], c["logprobs"]] for c in found])


@pytest.mark.parametrize("quantization", ["none", "int8"])
def test_second_start_maps(model, tmp_path, quantization):
    flags = ("--quantization", quantization, "--packed-cache", tmp_path / "packed", "--kv-cache-memory-bytes", "64m")
    if quantization == "int8":  # half as large, not kept by itself
        flags += ("--dtype", "float32")
    with Server(model, *flags) as server:
        server.wait_for_log("packed weights kept for the next start")
        assert "mapped" not in server.log
        expected = answers(server)
    [kept] = (tmp_path / "packed").iterdir()
    assert kept.stat().st_mode & 0o777 == 0o600
    with Server(model, *flags) as server:
        server.wait_for_log("mapped from the packed cache")
        assert answers(server) == expected
        assert "packed weights" not in server.log

    data = bytearray(kept.read_bytes())
    data[len(data) // 2] ^= 4
    kept.write_bytes(data)
    with Server(model, *flags) as server:
        server.wait_for_log("are damaged (checksum)")
        server.wait_for_log("packed weights kept for the next start")
        assert answers(server) == expected
    with Server(model, *flags) as server:
        server.wait_for_log("mapped from the packed cache")
        assert answers(server) == expected


def test_changed_model_and_no_cache(model, tmp_path):
    flags = ("--packed-cache", tmp_path / "packed", "--kv-cache-memory-bytes", "64m")
    with Server(model, *flags) as server:
        server.wait_for_log("packed weights kept for the next start")
    weights = model / "model.safetensors"
    data = weights.read_bytes()
    weights.write_bytes(data)
    with Server(model, *flags) as server:
        assert "mapped" not in server.log
        server.wait_for_log("packed weights kept for the next start")
    assert len(list((tmp_path / "packed").iterdir())) == 2
    with Server(model, "--packed-cache", "off", *flags[2:]) as server:
        assert "mapped" not in server.log
    # Stopped at once, the writer leaves nothing behind.
    Server(model, "--packed-cache", tmp_path / "other", *flags[2:]).stop()
    assert not list((tmp_path / "other").glob("*.part")) if (tmp_path / "other").exists() else True


def test_limits(model, tmp_path):
    (tmp_path / "file").write_text("x")
    with Server(model, "--packed-cache", tmp_path / "file/below", "--kv-cache-memory-bytes", "64m") as server:
        server.wait_for_log("packed weights not kept")
        answers(server)
    with Server(model, "--packed-cache", tmp_path / "small", "--packed-cache-limit", "1m", "--kv-cache-memory-bytes", "64m") as server:
        server.wait_for_log("more than --packed-cache-limit")
    with Server(DEMO, "--packed-cache", tmp_path / "none", "--kv-cache-memory-bytes", "64m") as server:
        time.sleep(0.2)
        assert "packed weights" not in server.log
    assert not (tmp_path / "none").exists()
