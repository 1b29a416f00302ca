#!/usr/bin/env python3
"""Makes tests/data/tiny and tests/data/families: very small random checkpoints with golden outputs, written by Hugging Face transformers.

tests/data/tiny is the ground floor, one folder per feature of Llama and Mistral that an engine can get wrong: grouped or single
key/value heads, a head_dim that is not hidden/heads, odd sizes, biases, tied or separate output weights, RoPE scalings, bf16 and fp16
storage, shards, a sliding window shorter than the prompt. tests/data/families has one to three folders per model family (tiny_families.py).
Weights are random, but scaled so that attention is peaked and logits are spread: a wrong rotation, mask or bias changes the answer
by far more than rounding does.

Requirements:  pip install "torch==2.*" "transformers>=5,<6" "safetensors" "numpy"
Use:           python3 tools/make_tiny_checkpoints.py [--out tests/data] [--check] [NAME...]

--check recomputes the goldens from the files already in --out and compares, without writing anything. What each file and field
means is in tests/data/tiny/README.md and tests/data/families/README.md.
"""

import argparse
import json
import math
import pathlib
import shutil
import sys

import tiny_references
import torch
import transformers
from tiny_families import FAMILIES, Checkpoint, legacy_config
from tiny_goldens import check_legacy_config, dull_tensors, greedy, make_golden, margin_of, prompts_for

MIN_MARGIN = 2e-3  # a folder whose greedy choice is closer than this is made again with the next seed
MIN_DISTINCT = 4  # and so is one that repeats itself

LLAMA3_SCALING = {"rope_type": "llama3", "rope_theta": 1000.0, "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0,
                  "original_max_position_embeddings": 48}


def llama(dtype, shard_size=None, family="Llama", **values):
    return Checkpoint(f"{family}Config", values, [], dtype=dtype, shard_size=shard_size)


TINY = {
    "llama-f32": llama("float32", vocab_size=97, hidden_size=40, intermediate_size=41, num_hidden_layers=2, num_attention_heads=4,
                       num_key_value_heads=2, head_dim=14, tie_word_embeddings=False),
    "llama-rope-linear": llama("float32", vocab_size=101, hidden_size=42, intermediate_size=37, num_hidden_layers=2, num_attention_heads=3,
                               num_key_value_heads=1, head_dim=24, tie_word_embeddings=True,
                               rope_parameters={"rope_type": "linear", "rope_theta": 10000.0, "factor": 2.5}),
    "llama-rope-dynamic": llama("float32", vocab_size=103, hidden_size=40, intermediate_size=35, num_hidden_layers=2, num_attention_heads=4,
                                num_key_value_heads=2, head_dim=16, tie_word_embeddings=True, max_position_embeddings=64,
                                rope_parameters={"rope_type": "dynamic", "rope_theta": 1000.0, "factor": 4.0}),
    "llama-rope-llama3": llama("float32", vocab_size=107, hidden_size=40, intermediate_size=33, num_hidden_layers=2, num_attention_heads=4,
                               num_key_value_heads=4, head_dim=14, tie_word_embeddings=True, rope_parameters=LLAMA3_SCALING),
    "llama-bf16": llama("bfloat16", vocab_size=130, hidden_size=60, intermediate_size=53, num_hidden_layers=2, num_attention_heads=6,
                        num_key_value_heads=2, head_dim=16, tie_word_embeddings=False),
    "llama-f16": llama("float16", vocab_size=113, hidden_size=56, intermediate_size=67, num_hidden_layers=3, num_attention_heads=4,
                       num_key_value_heads=1, head_dim=12, tie_word_embeddings=True, rms_norm_eps=1e-5),
    "llama-bias": llama("float32", vocab_size=109, hidden_size=42, intermediate_size=39, num_hidden_layers=2, num_attention_heads=3,
                        num_key_value_heads=3, head_dim=14, tie_word_embeddings=False, attention_bias=True, mlp_bias=True),
    "llama-sharded": llama("float32", "56KB", vocab_size=98, hidden_size=45, intermediate_size=31, num_hidden_layers=2,
                           num_attention_heads=5, num_key_value_heads=1, head_dim=12, tie_word_embeddings=False),
    "mistral-window": llama("float32", family="Mistral", vocab_size=99, hidden_size=40, intermediate_size=43, num_hidden_layers=2,
                            num_attention_heads=4, num_key_value_heads=2, head_dim=16, tie_word_embeddings=False, sliding_window=24),
}
CHECKPOINTS = TINY | FAMILIES
GAINS = {"gate": 3.0, "router": 3.0, "q_proj": 1.6, "k_proj": 1.6, "qkv_proj": 1.5, "lm_head": 2.5}


def make_config(checkpoint):
    values = dict(max_position_embeddings=256, bos_token_id=1, eos_token_id=2, pad_token_id=None)
    if checkpoint.config_class in ("LlamaConfig", "MistralConfig"):
        values |= dict(rms_norm_eps=1e-6, rope_parameters={"rope_type": "default", "rope_theta": 10000.0})
    values |= checkpoint.values
    config = getattr(transformers, checkpoint.config_class)(**json.loads(json.dumps(values)))
    config.dtype = checkpoint.dtype
    return config


def fan_in(module, tensor):
    if "Conv1D" in type(module).__name__ or "GptOssExperts" in type(module).__name__:
        return tensor.shape[-2]
    return tensor.shape[-1]


def fill(model, checkpoint, hidden_size, tied, seed):
    """Random values such that logits have a standard deviation of a few units and attention is far from uniform."""
    generator = torch.Generator().manual_seed(seed)
    for key, tensor in list(model.named_parameters()) + [b for b in model.named_buffers() if "e_score_correction_bias" in b[0]]:
        noise = torch.randn(tensor.shape, generator=generator)
        module, _, leaf = key.rpartition(".")
        special = [gain for part, gain in checkpoint.gains.items() if part in key]
        if special and ("norm" in key or ".ln_" in key):
            tensor.add_(special[0] + 0.3 * noise)
        elif leaf == "weight" and ("q_norm" in key or "k_norm" in key):
            tensor.add_(0.5 + 0.3 * noise)  # normed queries and keys make flat attention unless their norm's weight is large
        elif "norm" in key or ".ln_" in key:
            tensor.add_(0.2 * noise)  # from ones or zeros, whichever the family's norm starts from
        elif special:
            tensor.copy_(special[0] * noise)
        elif leaf.endswith("bias"):
            tensor.copy_(0.3 * noise)
        elif "embed_tokens" in key or "wte" in key or "embed_in" in key:
            tensor.copy_(noise * (2.5 / math.sqrt(hidden_size) if tied else 1.0))
        else:
            gain = GAINS.get(key.split(".")[-2], 1.3)
            tensor.copy_(noise * gain / math.sqrt(fan_in(model.get_submodule(module), tensor)))


def make_model(checkpoint, seed):
    config = make_config(checkpoint)
    config._attn_implementation = config._experts_implementation = "eager"
    torch.manual_seed(seed)
    build = getattr(tiny_references, "build_" + checkpoint.reference, transformers.AutoModelForCausalLM.from_config)
    model = build(config)
    text = config.get_text_config()
    fill(model, checkpoint, text.hidden_size, config.tie_word_embeddings, seed)
    return model.to(getattr(torch, checkpoint.dtype)).eval()


def promising(name, checkpoint, model):
    """Whether the greedy continuations are clear and not one token for ever, by the quick way through HF's KV cache."""
    for prompt in prompts_for(name, model.config.get_text_config().vocab_size)[::-1]:
        ids, margins = greedy(lambda: model, prompt, cached=True)
        if min(margins) < MIN_MARGIN or len(set(ids)) < MIN_DISTINCT:
            return False
    return True


def save(checkpoint, model, folder):
    shutil.rmtree(folder, ignore_errors=True)
    model.save_pretrained(folder, **({"max_shard_size": checkpoint.shard_size} if checkpoint.shard_size else {}))
    if checkpoint.form:
        getattr(tiny_references, checkpoint.form)(folder)
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.v4.json").write_text(json.dumps(legacy_config(config, checkpoint.v4), indent=2, sort_keys=True) + "\n")


def write(name, checkpoint, folder):
    for seed in range(100, 300):
        model = make_model(checkpoint, seed)
        if not promising(name, checkpoint, model.float()):
            continue
        save(checkpoint, model.to(getattr(torch, checkpoint.dtype)), folder)
        golden = make_golden(name, checkpoint, folder)
        distinct = min(len(set(p["greedy_ids"])) for p in golden["prompts"])
        if margin_of(golden) < MIN_MARGIN or distinct < MIN_DISTINCT:
            continue
        check_legacy_config(name, checkpoint, folder)
        if dull := dull_tensors(name, checkpoint, folder):
            raise SystemExit(f"{name}: these tensors hardly matter: {', '.join(dull)}")
        golden["seed"] = seed
        for file in folder.iterdir():
            file.chmod(0o644)
        (folder / "golden.json").write_text(json.dumps(golden, separators=(",", ":")).replace('},{"length"', '},\n{"length"') + "\n")
        size = sum(f.stat().st_size for f in folder.iterdir())
        print(f"{name}: seed {seed}, least margin {margin_of(golden):.4f}, float32 off by "
              f"{golden.get('max_abs_logit_difference_float32_vs_float64', 0):.2g}, {size / 1000:.0f} kB", flush=True)
        return
    raise SystemExit(f"{name}: no seed gave a clear greedy answer")


def check(name, checkpoint, folder):
    stored = json.loads((folder / "golden.json").read_text())
    fresh = make_golden(name, checkpoint, folder)
    check_legacy_config(name, checkpoint, folder)
    if fresh["weights_sha256"] != stored["weights_sha256"]:
        raise SystemExit(f"{name}: the weights are not those that the goldens were made from")
    pairs = list(zip(fresh["prompts"], stored["prompts"], strict=True))
    pairs += [(n["fixed"], dict(o["fixed"], length=o["length"])) for n, o in pairs if "fixed" in o]
    for new, old in pairs:
        difference = max(abs(a - b) for n, o in zip(new["logits"], old["logits"]) for a, b in zip(n["values"], o["values"]))
        if new["greedy_ids"] != old["greedy_ids"] or difference > 1e-4:
            raise SystemExit(f"{name}: goldens differ at prompt length {old['length']} (logits by {difference:.2g})")
    print(f"{name}: ok", flush=True)


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=pathlib.Path, default=pathlib.Path("tests/data"))
    parser.add_argument("--check", action="store_true", help="recompute and compare, write nothing")
    parser.add_argument("names", nargs="*", help="only these checkpoints")
    args = parser.parse_args()
    torch.set_num_threads(1)
    torch.set_grad_enabled(False)
    transformers.utils.logging.set_verbosity_error()
    transformers.utils.logging.disable_progress_bar()
    for name in args.names or CHECKPOINTS:
        if name not in CHECKPOINTS:
            sys.exit(f"unknown checkpoint {name}; known: {', '.join(CHECKPOINTS)}")
        folder = args.out / ("tiny" if name in TINY else "families") / name
        (check if args.check else write)(name, CHECKPOINTS[name], folder)


if __name__ == "__main__":
    main()
