#!/usr/bin/env python3
"""Makes tests/data/tiny: very small random checkpoints with golden outputs, written by Hugging Face transformers.

Each folder is one feature of the Llama and Mistral families that an engine can get wrong: grouped or single key/value heads, a
head_dim that is not hidden/heads, odd sizes, biases, tied or separate output weights, every supported RoPE scaling, bf16 and fp16
storage, shards, a sliding window shorter than the prompt. Weights are random, but scaled so that attention is peaked and logits
are spread: a wrong rotation, mask or bias changes the answer by far more than rounding does.

Requirements:  pip install "torch==2.*" "transformers>=5,<6" "safetensors" "numpy"
Use:           python3 tools/make_tiny_checkpoints.py [--out tests/data/tiny] [--check]

--check recomputes the goldens from the files already in --out and compares, without writing anything. What each file and field
means is in tests/data/tiny/README.md.
"""

import argparse
import hashlib
import json
import math
import pathlib
import shutil
import sys

import torch
import transformers
from transformers import LlamaConfig, LlamaForCausalLM, MistralConfig, MistralForCausalLM

GREEDY_STEPS = 32
PROMPT_LENGTHS = [1, 7, 40, 110]
MIN_MARGIN = 2e-3  # a folder whose greedy choice is closer than this is made again with the next seed

LLAMA3_SCALING = {"rope_type": "llama3", "rope_theta": 1000.0, "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0,
                  "original_max_position_embeddings": 48}

# name -> (family, stored dtype, shard size or None, config values)
CHECKPOINTS = {
    "llama-f32": ("llama", "float32", None, dict(
        vocab_size=97, hidden_size=40, intermediate_size=41, num_hidden_layers=2, num_attention_heads=4, num_key_value_heads=2,
        head_dim=14, tie_word_embeddings=False)),
    "llama-rope-linear": ("llama", "float32", None, dict(
        vocab_size=101, hidden_size=42, intermediate_size=37, num_hidden_layers=2, num_attention_heads=3, num_key_value_heads=1,
        head_dim=24, tie_word_embeddings=True, rope_parameters={"rope_type": "linear", "rope_theta": 10000.0, "factor": 2.5})),
    "llama-rope-dynamic": ("llama", "float32", None, dict(
        vocab_size=103, hidden_size=40, intermediate_size=35, num_hidden_layers=2, num_attention_heads=4, num_key_value_heads=2,
        head_dim=16, tie_word_embeddings=True, max_position_embeddings=64,
        rope_parameters={"rope_type": "dynamic", "rope_theta": 1000.0, "factor": 4.0})),
    "llama-rope-llama3": ("llama", "float32", None, dict(
        vocab_size=107, hidden_size=40, intermediate_size=33, num_hidden_layers=2, num_attention_heads=4, num_key_value_heads=4,
        head_dim=14, tie_word_embeddings=True, rope_parameters=LLAMA3_SCALING)),
    "llama-bf16": ("llama", "bfloat16", None, dict(
        vocab_size=130, hidden_size=60, intermediate_size=53, num_hidden_layers=2, num_attention_heads=6, num_key_value_heads=2,
        head_dim=16, tie_word_embeddings=False)),
    "llama-f16": ("llama", "float16", None, dict(
        vocab_size=113, hidden_size=56, intermediate_size=67, num_hidden_layers=3, num_attention_heads=4, num_key_value_heads=1,
        head_dim=12, tie_word_embeddings=True, rms_norm_eps=1e-5)),
    "llama-bias": ("llama", "float32", None, dict(
        vocab_size=109, hidden_size=42, intermediate_size=39, num_hidden_layers=2, num_attention_heads=3, num_key_value_heads=3,
        head_dim=14, tie_word_embeddings=False, attention_bias=True, mlp_bias=True)),
    "llama-sharded": ("llama", "float32", "56KB", dict(
        vocab_size=98, hidden_size=45, intermediate_size=31, num_hidden_layers=2, num_attention_heads=5, num_key_value_heads=1,
        head_dim=12, tie_word_embeddings=False)),
    "mistral-window": ("mistral", "float32", None, dict(
        vocab_size=99, hidden_size=40, intermediate_size=43, num_hidden_layers=2, num_attention_heads=4, num_key_value_heads=2,
        head_dim=16, tie_word_embeddings=False, sliding_window=24)),
}


def make_config(name):
    family, dtype, _, values = CHECKPOINTS[name]
    values = dict(dict(max_position_embeddings=256, rms_norm_eps=1e-6, bos_token_id=1, eos_token_id=2, pad_token_id=None), **values)
    values.setdefault("rope_parameters", {"rope_type": "default", "rope_theta": 10000.0})
    values["rope_parameters"] = dict(values["rope_parameters"])
    config = (LlamaConfig if family == "llama" else MistralConfig)(**values)
    config.dtype = dtype
    return config


def make_model(name, seed):
    """A random model whose logits have a standard deviation of a few units and whose attention is far from uniform."""
    family, dtype, _, _ = CHECKPOINTS[name]
    config = make_config(name)
    config._attn_implementation = "eager"
    model = (LlamaForCausalLM if family == "llama" else MistralForCausalLM)(config)
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for key, tensor in model.named_parameters():
            noise = torch.randn(tensor.shape, generator=generator)
            if key.endswith("norm.weight"):
                tensor.copy_(1.0 + 0.2 * noise)
            elif key.endswith(".bias"):
                tensor.copy_(0.3 * noise)
            elif "embed_tokens" in key:
                tensor.copy_(noise * (2.5 / math.sqrt(config.hidden_size) if config.tie_word_embeddings else 1.0))
            else:
                gain = {"q_proj": 1.6, "k_proj": 1.6, "lm_head": 2.5}.get(key.split(".")[-2], 1.3)
                tensor.copy_(noise * gain / math.sqrt(tensor.shape[1]))
    return model.to(getattr(torch, dtype)).eval()


def legacy_config(config):
    """The same config in the spelling of transformers 4 (rope_theta, rope_scaling, torch_dtype), which most published models use."""
    config = json.loads(json.dumps(config))
    rope = config.pop("rope_parameters")
    config["rope_theta"] = rope.pop("rope_theta")
    config["rope_scaling"] = None if rope["rope_type"] == "default" else rope
    config["torch_dtype"] = config.pop("dtype")
    config["transformers_version"] = "4.46.0"
    return config


def load(folder, dtype=torch.float32):
    model = transformers.AutoModelForCausalLM.from_pretrained(folder, dtype=dtype, attn_implementation="eager")
    return model.eval()


def freeze_dynamic_rope(model, config):
    """Dynamic NTK evaluated once, at length factor * max_position_embeddings, and never changed again: what an engine with a
    KV cache that is shared between requests can serve (keys stay valid whatever the length of the sequence that reads them)."""
    rope = config["rope_parameters"]
    dim, factor, limit = config["head_dim"], rope["factor"], config["max_position_embeddings"]
    base = rope["rope_theta"] * ((factor * (limit * factor) / limit) - (factor - 1)) ** (dim / (dim - 2))
    rotary = model.model.rotary_emb
    rotary.inv_freq = 1.0 / (base ** (torch.arange(0, dim, 2, dtype=torch.float32) / dim))
    rotary.rope_type = "default"
    return model


@torch.no_grad()
def full_forward(make, ids):
    """Logits of every position, by one forward over the whole sequence with a model that has seen nothing else."""
    return make()(input_ids=torch.tensor([ids]), use_cache=False).logits[0]


@torch.no_grad()
def greedy(make, prompt, cached):
    """GREEDY_STEPS arg-max ids and their margins. cached: one prefill, then one token at a time through HF's KV cache."""
    ids, margins, cache, model = list(prompt), [], None, make() if cached else None
    for _ in range(GREEDY_STEPS):
        if cached:
            step = ids if cache is None else ids[-1:]
            out = model(input_ids=torch.tensor([step]), past_key_values=cache, use_cache=True)
            cache, logits = out.past_key_values, out.logits[0, -1]
        else:
            logits = full_forward(make, ids)[-1]
        top = torch.topk(logits.float(), 2)
        margins.append(float(top.values[0] - top.values[1]))
        ids.append(int(top.indices[0]))
    return ids[len(prompt):], margins


def rounded(values, digits=7):
    return [float(f"{float(v):.{digits}g}") for v in values]


def prompts_for(name, vocab):
    generator = torch.Generator().manual_seed(int(hashlib.sha256(name.encode()).hexdigest()[:8], 16))
    return [[1] + torch.randint(3, vocab, (length - 1,), generator=generator).tolist() for length in PROMPT_LENGTHS]


def describe(make, prompt, cached_reference):
    logits = full_forward(make, prompt).float()
    ids, margins = greedy(make, prompt, cached_reference)
    positions = sorted({0, 3, len(prompt) // 2, len(prompt) - 1} & set(range(len(prompt))))
    log_probs = torch.log_softmax(logits, dim=-1)
    following = torch.tensor(prompt[1:], dtype=torch.long)
    return {
        "length": len(prompt), "prompt_ids": prompt,
        "logits": [{"position": p, "values": rounded(logits[p])} for p in positions],
        "prompt_logprobs": rounded(log_probs[:-1].gather(1, following[:, None])[:, 0]) if len(prompt) > 1 else [],
        "greedy_ids": ids, "greedy_margins": rounded(margins, 5), "min_margin": float(f"{min(margins):.5g}"),
    }


def make_golden(name, folder):
    """The goldens of the files in `folder`, computed in float32 over the stored weights (16-bit weights widened)."""
    config = json.loads((folder / "config.json").read_text())
    stored = CHECKPOINTS[name][1]
    master = load(folder)
    dynamic = config["rope_parameters"]["rope_type"] == "dynamic"
    make = (lambda: load(folder)) if dynamic else (lambda: master)  # HF's dynamic RoPE remembers the longest sequence it has seen
    double = load(folder).double()
    golden = {
        "checkpoint": name, "stored_dtype": stored,
        "reference": f"transformers {transformers.__version__}, torch {torch.__version__.split('+')[0]}, attn_implementation=eager, float32",
        "weights_sha256": {f.name: hashlib.sha256(f.read_bytes()).hexdigest() for f in sorted(folder.glob("*.safetensors"))},
        "tolerance": {"logits": 1e-3, "logprobs": 1e-3, "greedy_ids": "equal"},
        "prompts": [],
    }
    worst = 0.0
    for prompt in prompts_for(name, config["vocab_size"]):
        entry = describe(make, prompt, cached_reference=False)
        stepwise = greedy(make, prompt, cached=True)[0]
        if dynamic:
            entry["stepwise_greedy_ids"] = stepwise
            entry["fixed"] = describe(lambda: freeze_dynamic_rope(load(folder), config), prompt, cached_reference=True)
            del entry["fixed"]["prompt_ids"], entry["fixed"]["length"]
        elif stepwise != entry["greedy_ids"]:
            raise SystemExit(f"{name}: HF disagrees with itself between a full forward and its KV cache")
        else:
            ids = prompt + entry["greedy_ids"]
            wide = double(input_ids=torch.tensor([ids]), use_cache=False).logits[0]
            worst = max(worst, float((wide - full_forward(make, ids).double()).abs().max()))
        if stored != "float32":
            native = load(folder, getattr(torch, stored))
            entry[f"native_{stored}_greedy_ids"] = greedy(lambda: native, prompt, cached=True)[0]
        golden["prompts"].append(entry)
    if not dynamic:
        golden["max_abs_logit_difference_float32_vs_float64"] = float(f"{worst:.3g}")
    return golden


def margin_of(golden):
    return min(min(p["min_margin"], p.get("fixed", p)["min_margin"]) for p in golden["prompts"])


def write(name, out):
    for seed in range(100, 140):
        folder = out / name
        shutil.rmtree(folder, ignore_errors=True)
        shard = CHECKPOINTS[name][2]
        make_model(name, seed).save_pretrained(folder, **({"max_shard_size": shard} if shard else {}))
        config = json.loads((folder / "config.json").read_text())
        (folder / "config.v4.json").write_text(json.dumps(legacy_config(config), indent=2, sort_keys=True) + "\n")
        golden = make_golden(name, folder)
        distinct = min(len(set(p["greedy_ids"])) for p in golden["prompts"])
        if margin_of(golden) >= MIN_MARGIN and distinct >= 8:
            golden["seed"] = seed
            for file in folder.iterdir():
                file.chmod(0o644)
            (folder / "golden.json").write_text(json.dumps(golden, separators=(",", ":")).replace('},{"length"', '},\n{"length"') + "\n")
            size = sum(f.stat().st_size for f in folder.iterdir())
            print(f"{name}: seed {seed}, least margin {margin_of(golden):.4f}, {size / 1000:.0f} kB", flush=True)
            return
    raise SystemExit(f"{name}: no seed gave a clear greedy answer")


def check(name, out):
    stored = json.loads((out / name / "golden.json").read_text())
    fresh = make_golden(name, out / name)
    if fresh["weights_sha256"] != stored["weights_sha256"]:
        raise SystemExit(f"{name}: the weights are not those that the goldens were made from")
    for new, old in zip(fresh["prompts"], stored["prompts"], strict=True):
        difference = max(abs(a - b) for n, o in zip(new["logits"], old["logits"]) for a, b in zip(n["values"], o["values"]))
        if new["greedy_ids"] != old["greedy_ids"] or difference > 1e-4:
            raise SystemExit(f"{name}: goldens differ at prompt length {old['length']} (logits by {difference:.2g})")
    print(f"{name}: ok")


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=pathlib.Path, default=pathlib.Path("tests/data/tiny"))
    parser.add_argument("--check", action="store_true", help="recompute and compare, write nothing")
    parser.add_argument("names", nargs="*", help="only these checkpoints")
    args = parser.parse_args()
    torch.manual_seed(0)
    torch.set_num_threads(1)
    torch.set_grad_enabled(False)
    transformers.utils.logging.set_verbosity_error()
    transformers.utils.logging.disable_progress_bar()
    for name in args.names or CHECKPOINTS:
        if name not in CHECKPOINTS:
            sys.exit(f"unknown checkpoint {name}; known: {', '.join(CHECKPOINTS)}")
        (check if args.check else write)(name, args.out)


if __name__ == "__main__":
    main()
