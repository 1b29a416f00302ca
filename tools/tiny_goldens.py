"""Loads a tiny checkpoint with Hugging Face transformers and computes its golden outputs: logits, log-probabilities, greedy ids.

Used by make_tiny_checkpoints.py. Everything is computed in float32 over the stored weights (16-bit weights widened). What the fields
of a golden mean is in tests/data/tiny/README.md.
"""

import hashlib
import json
import math
import pathlib
import tempfile

import tiny_references
import torch
import transformers

GREEDY_STEPS = 32
PROMPT_LENGTHS = [1, 7, 40, 110]
SWITCHING = ("dynamic", "longrope")


def load(folder, checkpoint, dtype=torch.float32):
    """The model of the files in `folder`; refuses a file whose tensors are not exactly those the model has."""
    if checkpoint.reference:
        return getattr(tiny_references, checkpoint.reference)(folder, dtype).eval()
    model, info = transformers.AutoModelForCausalLM.from_pretrained(folder, dtype=dtype, attn_implementation="eager",
                                                                       experts_implementation="eager", output_loading_info=True)
    wrong = {kind: keys for kind, keys in info.items() if keys}
    if wrong:
        raise SystemExit(f"{folder}: {wrong}")
    return model.eval()


def freeze_rope(model, config):
    """Length-dependent RoPE evaluated once, for the longest text there may be, and never changed again: what an engine with a KV
    cache that is shared between requests can serve (keys stay valid whatever the length of the sequence that reads them)."""
    rotary, parameters = model.model.rotary_emb, config["rope_parameters"]
    if parameters["rope_type"] == "longrope":
        head_dim = config["hidden_size"] // config["num_attention_heads"]
        dim = int(head_dim * parameters.get("partial_rotary_factor", 1.0))
        exponents = torch.arange(0, dim, 2, dtype=torch.int64).float() / dim
        inv_freq = 1.0 / (torch.tensor(parameters["long_factor"], dtype=torch.float32) * parameters["rope_theta"] ** exponents)
    else:
        dim, factor, limit = config["head_dim"], parameters["factor"], config["max_position_embeddings"]
        base = parameters["rope_theta"] * ((factor * (limit * factor) / limit) - (factor - 1)) ** (dim / (dim - 2))
        inv_freq = 1.0 / (base ** (torch.arange(0, dim, 2, dtype=torch.float32) / dim))
    rotary.inv_freq = inv_freq
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


def read_config(folder):
    """config.json, or its text part where the text model is wrapped in one that also sees images."""
    config = json.loads((folder / "config.json").read_text())
    return config.get("text_config", config)


def make_golden(name, checkpoint, folder):
    """The goldens of the files in `folder`."""
    config = read_config(folder)
    stored = checkpoint.dtype
    master = load(folder, checkpoint)
    switching = (config.get("rope_parameters") or {}).get("rope_type") in SWITCHING
    make = (lambda: load(folder, checkpoint)) if switching else (lambda: master)  # HF's dynamic RoPE remembers the longest text it has seen
    double = load(folder, checkpoint).double()
    golden = {
        "checkpoint": name, "stored_dtype": stored,
        "reference": f"transformers {transformers.__version__}, torch {torch.__version__.split('+')[0]}, attn_implementation=eager, float32",
        "weights_sha256": {f.name: hashlib.sha256(f.read_bytes()).hexdigest() for f in sorted(folder.glob("*.safetensors"))},
        "tolerance": {"logits": 1e-3, "logprobs": 1e-3, "greedy_ids": "equal"},
        "prompts": [],
    }
    if checkpoint.features:
        golden["features"] = checkpoint.features
    if checkpoint.context_switch:
        golden["context_switch"] = checkpoint.context_switch
    worst = 0.0
    for prompt in prompts_for(name, config["vocab_size"]):
        entry = describe(make, prompt, cached_reference=False)
        stepwise = greedy(make, prompt, cached=True)[0]
        if switching:
            entry["stepwise_greedy_ids"] = stepwise
            entry["fixed"] = describe(lambda: freeze_rope(load(folder, checkpoint), config), prompt, cached_reference=True)
            del entry["fixed"]["prompt_ids"], entry["fixed"]["length"]
        elif stepwise != entry["greedy_ids"]:
            raise SystemExit(f"{name}: HF disagrees with itself between a full forward and its KV cache")
        else:
            ids = prompt + entry["greedy_ids"]
            wide = double(input_ids=torch.tensor([ids]), use_cache=False).logits[0]
            worst = max(worst, float((wide - full_forward(make, ids).double()).abs().max()))
        if stored != "float32":
            native = load(folder, checkpoint, getattr(torch, stored))
            entry[f"native_{stored}_greedy_ids"] = greedy(lambda: native, prompt, cached=True)[0]
        golden["prompts"].append(entry)
    if not switching:
        golden["max_abs_logit_difference_float32_vs_float64"] = float(f"{worst:.3g}")
    return golden


def margin_of(golden):
    return min(min(p["min_margin"], p.get("fixed", p)["min_margin"]) for p in golden["prompts"])


def check_legacy_config(name, checkpoint, folder):
    """config.v4.json must be read by transformers as the very model that config.json is."""
    ids = prompts_for(name, read_config(folder)["vocab_size"])[-1]
    with tempfile.TemporaryDirectory() as temporary:
        other = pathlib.Path(temporary)
        (other / "config.json").write_text((folder / "config.v4.json").read_text())
        for file in folder.glob("model*"):
            (other / file.name).symlink_to(file.resolve())
        difference = (full_forward(lambda: load(folder, checkpoint), ids) - full_forward(lambda: load(other, checkpoint), ids)).abs().max()
    if not difference <= 1e-6:
        raise SystemExit(f"{name}: config.v4.json is another model than config.json, logits differ by {float(difference):.3g}")


def dull_tensors(name, checkpoint, folder):
    """Names of parameters without which the answer would hardly change: a loader that forgot them would pass."""
    ids = prompts_for(name, read_config(folder)["vocab_size"])[-1]
    model, dull = load(folder, checkpoint), []
    logits = full_forward(lambda: model, ids)
    spread = float(logits.std())
    for key, tensor in model.named_parameters():
        if any(key.endswith(part) for part in checkpoint.idle):
            continue
        kept = tensor.clone()
        tensor.data.fill_(1.0 if "norm" in key and key.endswith("weight") and float(kept.mean()) > 0.4 else 0.0)
        change = float((full_forward(lambda: model, ids) - logits).abs().max())
        tensor.data.copy_(kept)
        if not math.isfinite(change) or change < 0.02 * spread:
            dull.append(f"{key} ({change:.2g})")
    return dull
