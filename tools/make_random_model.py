#!/usr/bin/env python3
"""Writes a Llama-shaped model folder with random bf16 weights and a byte-level tokenizer, for benchmarks: speed does not depend on the values.

  python3 tools/make_random_model.py --shape 110m --out build/models/110m      (needs numpy)

Shapes: 15m (288/768/6 layers/6 heads, vocab 32000, tied), 110m (768/2048/12/12, tied), 0.5b (896/4864/24, 14 q / 2 kv heads, vocab 151936, tied),
1.1b (2048/5632/22, 32 q / 4 kv heads, vocab 32000), 8b (4096/14336/32, 32 q / 8 kv heads, vocab 128256). With --no-weights the folder has no weights,
for `kvasir serve --load-format dummy`, and numpy is not needed.
"""
import argparse
import json
import pathlib
import struct

SHAPES = {  # hidden, intermediate, layers, q heads, kv heads, vocabulary, tied
    "15m": (288, 768, 6, 6, 6, 32000, True),
    "110m": (768, 2048, 12, 12, 12, 32000, True),
    "0.5b": (896, 4864, 24, 14, 2, 151936, True),
    "1.1b": (2048, 5632, 22, 32, 4, 32000, False),
    "8b": (4096, 14336, 32, 32, 8, 128256, False),
}


def tensors(hidden, intermediate, layers, q_heads, kv_heads, vocab, tied):
    head = hidden // q_heads
    yield "model.embed_tokens.weight", (vocab, hidden)
    for i in range(layers):
        p = f"model.layers.{i}."
        yield p + "input_layernorm.weight", (hidden,)
        yield p + "self_attn.q_proj.weight", (q_heads * head, hidden)
        yield p + "self_attn.k_proj.weight", (kv_heads * head, hidden)
        yield p + "self_attn.v_proj.weight", (kv_heads * head, hidden)
        yield p + "self_attn.o_proj.weight", (hidden, q_heads * head)
        yield p + "post_attention_layernorm.weight", (hidden,)
        yield p + "mlp.gate_proj.weight", (intermediate, hidden)
        yield p + "mlp.up_proj.weight", (intermediate, hidden)
        yield p + "mlp.down_proj.weight", (hidden, intermediate)
    yield "model.norm.weight", (hidden,)
    if not tied:
        yield "lm_head.weight", (vocab, hidden)


def byte_alphabet():
    """GPT-2's printable stand-ins for the 256 bytes."""
    plain = [*range(ord("!"), ord("~") + 1), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    extra = [b for b in range(256) if b not in plain]
    return {**{b: chr(b) for b in plain}, **{b: chr(256 + i) for i, b in enumerate(extra)}}


def write_weights(path, shape, seed):
    import numpy as np
    rng = np.random.default_rng(seed)
    header, offset, listed = {}, 0, list(tensors(*shape))
    for name, dims in listed:
        size = 2 * int(np.prod(dims))
        header[name] = {"dtype": "BF16", "shape": list(dims), "data_offsets": [offset, offset + size]}
        offset += size
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    with open(path, "wb") as file:
        file.write(struct.pack("<Q", len(text)) + text)
        for name, dims in listed:
            values = np.ones(dims, np.float32) if len(dims) == 1 else rng.standard_normal(dims, np.float32) * np.float32(0.02)
            file.write((values.view(np.uint32) >> 16).astype(np.uint16).tobytes())
    print(f"{path}: {offset / 1e6:.1f} MB of weights")


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--shape", choices=SHAPES, default="110m")
    parser.add_argument("--out", required=True, type=pathlib.Path)
    parser.add_argument("--context", type=int, default=8192)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--no-weights", action="store_true")
    args = parser.parse_args()
    hidden, intermediate, layers, q_heads, kv_heads, vocab, tied = shape = SHAPES[args.shape]
    args.out.mkdir(parents=True, exist_ok=True)
    if not args.no_weights:
        write_weights(args.out / "model.safetensors", shape, args.seed)

    config = {"architectures": ["LlamaForCausalLM"], "model_type": "llama", "hidden_size": hidden, "intermediate_size": intermediate,
              "num_hidden_layers": layers, "num_attention_heads": q_heads, "num_key_value_heads": kv_heads, "vocab_size": vocab,
              "max_position_embeddings": args.context, "rms_norm_eps": 1e-5, "rope_theta": 10000.0, "hidden_act": "silu",
              "tie_word_embeddings": tied, "torch_dtype": "bfloat16", "bos_token_id": 0, "eos_token_id": 1}
    (args.out / "config.json").write_text(json.dumps(config, indent=1))
    tokenizer = {"version": "1.0", "added_tokens": [], "normalizer": None,
                 "pre_tokenizer": {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": True},
                 "post_processor": None, "decoder": {"type": "ByteLevel", "add_prefix_space": True, "trim_offsets": True, "use_regex": True},
                 "model": {"type": "BPE", "dropout": None, "unk_token": None, "continuing_subword_prefix": None, "end_of_word_suffix": None,
                           "fuse_unk": False, "byte_fallback": False, "vocab": {**{c: b for b, c in byte_alphabet().items()}, **{f"t{i}": i for i in range(256, vocab)}}, "merges": []}}
    (args.out / "tokenizer.json").write_text(json.dumps(tokenizer))


if __name__ == "__main__":
    main()
