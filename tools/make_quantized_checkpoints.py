#!/usr/bin/env python3
"""Makes tests/data/quantized: very small random checkpoints in the quantised forms that people download, with goldens.

A golden is what Hugging Face transformers computes in float32 from the values that the stored numbers stand for: what a reader of the
form must get, whatever it does with them. The forms are made by quantized_forms.py.

Requirements:  those of make_tiny_checkpoints.py; --verify also wants compressed-tensors, and for GPTQ and AWQ the unpacked source
               distribution of gptqmodel (--gptqmodel DIR)
Use:           python3 tools/make_quantized_checkpoints.py [--out tests/data/quantized] [--check] [--verify] [NAME...]

--check makes every folder again elsewhere and compares. --verify reads the folders in --out with the libraries that made such formats
and compares the weights they get with ours. Fields of a golden: tests/data/tiny/README.md.
"""

import argparse
import ast
import dataclasses
import hashlib
import json
import math
import pathlib
import re
import sys
import tempfile

import numpy as np
import quantized_forms as forms
import torch
import transformers
from make_tiny_checkpoints import MIN_DISTINCT, MIN_MARGIN, make_model, save
from safetensors.torch import load_file, save_file
from tiny_families import FAMILIES, Checkpoint, rope
from tiny_goldens import make_golden, margin_of

LLAMA = Checkpoint("LlamaConfig", dict(vocab_size=96, hidden_size=64, intermediate_size=96, num_hidden_layers=2, num_attention_heads=4,
                                       num_key_value_heads=2, head_dim=16, tie_word_embeddings=False), [], dtype="float32")
WIDE = Checkpoint("LlamaConfig", dict(LLAMA.values, hidden_size=128, intermediate_size=160, num_attention_heads=4, num_key_value_heads=1,
                                      head_dim=24), [], dtype="float32")
QWEN2 = Checkpoint("Qwen2Config", dict(vocab_size=95, hidden_size=64, intermediate_size=64, num_hidden_layers=2, num_attention_heads=4,
                                       num_key_value_heads=2, tie_word_embeddings=True, rope_parameters=rope()), [], dtype="float32")
MOE = Checkpoint("Qwen3MoeConfig", dict(vocab_size=94, hidden_size=64, intermediate_size=64, moe_intermediate_size=32, num_hidden_layers=2,
                                        num_attention_heads=4, num_key_value_heads=2, head_dim=16, num_experts=4, num_experts_per_tok=2,
                                        norm_topk_prob=True, decoder_sparse_step=1, tie_word_embeddings=False, rope_parameters=rope()),
                 [], dtype="float32")
DEEPSEEK_V3 = dataclasses.replace(FAMILIES["deepseek-v3"], dtype="float32")


@dataclasses.dataclass
class Quantized:
    base: Checkpoint
    form: object
    config: dict
    dtype: str  # of what is not quantised
    ignore: str = r"lm_head"  # a pattern of modules that stay as they are
    about: str = ""


def gptq(bits, group, **more):
    return dict({"quant_method": "gptq", "bits": bits, "group_size": group, "desc_act": False, "sym": True, "damp_percent": 0.01,
                 "true_sequential": True, "lm_head": False, "model_name_or_path": None}, **more)


def compressed(fmt, bits=4, kind="int", strategy="group", group=None, symmetric=True, ignore=("lm_head",), activations=None, **more):
    weights = {"num_bits": bits, "type": kind, "strategy": strategy, "group_size": group, "symmetric": symmetric, "dynamic": False,
               "observer": "minmax", "block_structure": None, "actorder": None} | more
    return {"quant_method": "compressed-tensors", "format": fmt, "quantization_status": "compressed", "kv_cache_scheme": None,
            "global_compression_ratio": None, "ignore": list(ignore),
            "config_groups": {"group_0": {"targets": ["Linear"], "weights": weights, "input_activations": activations,
                                          "output_activations": None}}}


def dynamic(bits, kind):
    return {"num_bits": bits, "type": kind, "strategy": "token", "dynamic": True, "symmetric": True}


CHECKPOINTS = {
    "gptq-int4": Quantized(LLAMA, forms.gptq(4, 32), gptq(4, 32), "float16"),
    "gptq-int4-128": Quantized(WIDE, forms.gptq(4, 128, symmetric=False), gptq(4, 128, sym=False), "float16",
                               about="o_proj has 96 inputs, fewer than a group"),
    "gptq-int4-actorder": Quantized(QWEN2, forms.gptq(4, 32, symmetric=False, shuffled=True), gptq(4, 32, sym=False, desc_act=True), "float16",
                                    about="projections of one input have one order"),
    "gptq-int4-moe": Quantized(MOE, forms.gptq(4, 32), gptq(4, 32, checkpoint_format="gptq"), "bfloat16"),
    "gptq-v2-channel": Quantized(LLAMA, forms.gptq(4, -1, symmetric=False, version=2, with_index=False),
                                 gptq(4, -1, sym=False, lm_head=True, checkpoint_format="gptq_v2"), "float16", ignore="-",
                                 about="a quantised lm_head"),
    "gptq-int8": Quantized(LLAMA, forms.gptq(8, 64), gptq(8, 64), "float16", about="groups of 64, and down_proj has 96 inputs"),
    "gptq-int8-asym": Quantized(LLAMA, forms.gptq(8, 32, symmetric=False), gptq(8, 32, sym=False), "float16"),
    "awq-int4": Quantized(QWEN2, forms.awq(32), {"quant_method": "awq", "bits": 4, "group_size": 32, "version": "gemm", "zero_point": True,
                                                 "modules_to_not_convert": ["layers.1.mlp.down_proj"]}, "float16",
                          ignore=r"layers\.1\.mlp\.down_proj"),
    "awq-int4-64": Quantized(LLAMA, forms.awq(64), {"quant_method": "awq", "bits": 4, "group_size": 64, "version": "GEMM",
                                                    "zero_point": True, "modules_to_not_convert": ["down_proj", "lm_head"]},
                             "float16", ignore="down_proj|lm_head"),
    "compressed-w4a16": Quantized(LLAMA, forms.packed(4, 32), compressed("pack-quantized", 4, group=32,
                                                                         ignore=["lm_head", "re:.*layers.1.self_attn.k_proj"]), "bfloat16",
                                  ignore=r"lm_head|layers\.1\.self_attn\.k_proj", about="k_proj of a layer is not quantised"),
    "compressed-w4a16-actorder": Quantized(LLAMA, forms.packed(4, 32, symmetric=False, shuffled=True),
                                           compressed("pack-quantized", 4, group=32, symmetric=False, actorder="group"), "bfloat16",
                                           about="each projection has an order of its own"),
    "compressed-w4a16-channel": Quantized(LLAMA, forms.packed(4, -1, symmetric=False),
                                          compressed("pack-quantized", 4, strategy="channel", symmetric=False), "bfloat16"),
    "compressed-w4a16-16": Quantized(LLAMA, forms.packed(4, 16), compressed("pack-quantized", 4, group=16), "bfloat16",
                                     about="groups that no kernel has"),
    "compressed-w8a16": Quantized(LLAMA, forms.packed(8, -1), compressed("pack-quantized", 8, strategy="channel"), "bfloat16"),
    "compressed-w8a8": Quantized(LLAMA, forms.int8(), compressed("int-quantized", 8, strategy="channel", activations=dynamic(8, "int")),
                                 "bfloat16"),
    "compressed-w8a8-asym": Quantized(LLAMA, forms.int8(symmetric=False, whole=True),
                                      compressed("int-quantized", 8, strategy="tensor", symmetric=False), "bfloat16"),
    "compressed-fp8": Quantized(LLAMA, forms.fp8(1, -1, "bfloat16"),
                                compressed("float-quantized", 8, "float", "channel", activations=dynamic(8, "float")), "bfloat16"),
    "compressed-fp8-tensor": Quantized(LLAMA, forms.fp8(-1, -1, "bfloat16", shape=(1,), extras=["input_scale"]),
                                       compressed("naive-quantized", 8, "float", "tensor"), "bfloat16"),
    "compressed-fp8-block": Quantized(LLAMA, forms.fp8(16, 32, "bfloat16"),
                                      compressed("float-quantized", 8, "float", "block", block_structure=[16, 32]), "bfloat16"),
    "fp8": Quantized(LLAMA, forms.fp8(-1, -1, shape=(), extras=["input_scale"]),
                     {"quant_method": "fp8", "activation_scheme": "static", "ignored_layers": ["lm_head"]}, "bfloat16"),
    "fp8-block": Quantized(DEEPSEEK_V3, forms.fp8(16, 16, scale_name="weight_scale_inv"),
                           {"quant_method": "fp8", "activation_scheme": "dynamic", "fmt": "e4m3", "weight_block_size": [16, 16]}, "bfloat16",
                           about="latent attention, experts, and blocks that no side is a multiple of"),
    "fbgemm-fp8": Quantized(LLAMA, forms.fp8(1, -1), {"quant_method": "fbgemm_fp8", "activation_scale_ub": 1200.0,
                                                      "modules_to_not_convert": ["lm_head", "model.layers.1.mlp.up_proj"]},
                            "bfloat16", ignore=r"lm_head|layers\.1\.mlp\.up_proj"),
}


def is_quantized(name, entry):
    module = name.removesuffix(".weight")
    return name.endswith((".weight",)) and ("_proj" in name or module == "lm_head") and not re.search(entry.ignore, module)


def quantize(entry, source, seed):
    """From the tensors of a float checkpoint: those of the quantised one, and the values that they stand for."""
    generator = np.random.default_rng(seed)
    tensors, values = {}, {}
    for name, tensor in source.items():
        if is_quantized(name, entry):
            made, value = entry.form(name.removesuffix(".weight"), tensor.float().numpy(), generator)
            tensors |= {key: v if isinstance(v, torch.Tensor) else torch.from_numpy(v) for key, v in made.items()}
            values[name] = torch.from_numpy(np.ascontiguousarray(value, dtype=np.float32))
        else:
            keep = torch.float32 if "correction_bias" in name else getattr(torch, entry.dtype)
            tensors[name] = tensor.to(keep)
            values[name] = tensors[name].float()
    return {key: tensor.contiguous() for key, tensor in tensors.items()}, values


def make(name, entry, folder):
    for seed in range(100, 300):
        with tempfile.TemporaryDirectory() as temporary:
            plain = pathlib.Path(temporary) / "plain"
            save(entry.base, make_model(entry.base, seed), plain)
            tensors, values = quantize(entry, load_file(plain / "model.safetensors"), seed)
            save_file(values, plain / "model.safetensors", {"format": "pt"})
            golden = make_golden(name, entry.base, plain)
            if margin_of(golden) < MIN_MARGIN or min(len(set(p["greedy_ids"])) for p in golden["prompts"]) < MIN_DISTINCT:
                continue
            config = json.loads((plain / "config.json").read_text())
        folder.mkdir(parents=True, exist_ok=True)
        config |= {"dtype": entry.dtype, "quantization_config": entry.config}
        (folder / "config.json").write_text(json.dumps(config, indent=2, sort_keys=True) + "\n")
        save_file(tensors, folder / "model.safetensors", {"format": "pt"})
        golden |= {"stored_dtype": entry.dtype, "seed": seed, "features": [entry.about] if entry.about else [],
                   "weights_sha256": {"model.safetensors": hashlib.sha256((folder / "model.safetensors").read_bytes()).hexdigest()}}
        (folder / "golden.json").write_text(json.dumps(golden, separators=(",", ":")).replace('},{"length"', '},\n{"length"') + "\n")
        size = sum(f.stat().st_size for f in folder.iterdir())
        print(f"{name}: seed {seed}, least margin {margin_of(golden):.4f}, {size / 1000:.0f} kB", flush=True)
        return values
    raise SystemExit(f"{name}: no seed gave a clear greedy answer")


def check(name, entry, folder):
    with tempfile.TemporaryDirectory() as temporary:
        fresh = pathlib.Path(temporary) / name
        make(name, entry, fresh)
        for file in fresh.iterdir():
            if file.read_bytes() != (folder / file.name).read_bytes():
                raise SystemExit(f"{name}: {file.name} is not what is made again")


def functions_of(path, names):
    """Some functions of a Python file, without importing what else it wants."""
    tree = ast.parse(path.read_text())
    tree.body = [node for node in tree.body if isinstance(node, ast.FunctionDef) and node.name in names]
    space = {"torch": torch, "math": math, "PLANAR_BITS": (), "AWQ_ORDER": forms.AWQ_ORDER, "AWQ_REVERSE_ORDER": [0, 4, 1, 5, 2, 6, 3, 7]}
    exec(compile(ast.fix_missing_locations(tree), str(path), "exec"), space)
    return space


def verify(name, entry, folder, gptqmodel):
    """Our values of the folder's weights against those that other readers get."""
    with tempfile.TemporaryDirectory() as temporary:
        values = make(name, entry, pathlib.Path(temporary) / name)
    tensors, worst = load_file(folder / "model.safetensors"), 0.0
    method = entry.config["quant_method"]
    if method == "compressed-tensors":
        model = transformers.AutoModelForCausalLM.from_pretrained(
            folder, dtype=torch.float32, quantization_config=transformers.CompressedTensorsConfig(run_compressed=False))
        theirs = model.state_dict()
    elif method in ("gptq", "awq") and gptqmodel:
        theirs = read_with_gptqmodel(entry, tensors, gptqmodel)
    else:
        print(f"{name}: no other reader at hand")
        return
    for key in values:
        if is_quantized(key, entry):
            scale = float(values[key].abs().max())
            worst = max(worst, float((theirs[key].float() - values[key]).abs().max()) / scale)
    if worst > 6e-3:  # some compute in 16 bits
        raise SystemExit(f"{name}: another reader gets other weights, by {worst:.3g} of the largest")
    print(f"{name}: others read the same weights within {worst:.2g} of the largest", flush=True)


def read_with_gptqmodel(entry, tensors, gptqmodel):
    source = gptqmodel / "gptqmodel"
    awq = functions_of(source / "quantization/awq/utils/packing_utils.py",
                       ["dequantize_gemm", "unpack_awq", "reverse_awq_order", "_unpack_columnwise"])
    gptq = functions_of(source / "utils/model_dequant.py", ["unpack_rows", "unpack_cols", "pack_cols", "_correct_gptq_v1_qzeros", "_shift_gptq_qzeros"])
    theirs, config = {}, entry.config
    for base in [k.removesuffix(".qweight") for k in tensors if k.endswith(".qweight")]:
        qweight, qzeros, scales = (tensors[f"{base}.{part}"] for part in ("qweight", "qzeros", "scales"))
        if config["quant_method"] == "awq":
            theirs[base + ".weight"] = awq["dequantize_gemm"](qweight, qzeros, scales, 4, config["group_size"]).T
            continue
        bits = config["bits"]
        codes = gptq["unpack_rows"](qweight, bits)
        if config.get("checkpoint_format") != "gptq_v2":
            qzeros = gptq["_correct_gptq_v1_qzeros"](qzeros, bits, planar=False)
        group = config["group_size"] if config["group_size"] > 0 else codes.shape[0]
        index = tensors.get(base + ".g_idx", torch.arange(codes.shape[0]) // group).long()
        zeros = gptq["unpack_cols"](qzeros, bits)
        theirs[base + ".weight"] = ((codes - zeros[index]).float() * scales.float()[index]).T
    return theirs


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=pathlib.Path, default=pathlib.Path("tests/data/quantized"))
    parser.add_argument("--check", action="store_true", help="make again elsewhere and compare")
    parser.add_argument("--verify", action="store_true", help="compare with other readers of the formats")
    parser.add_argument("--gptqmodel", type=pathlib.Path, help="the unpacked source distribution")
    parser.add_argument("names", nargs="*", help="only these checkpoints")
    args = parser.parse_args()
    torch.set_num_threads(1)
    torch.set_grad_enabled(False)
    transformers.utils.logging.set_verbosity_error()
    transformers.utils.logging.disable_progress_bar()
    for name in args.names or CHECKPOINTS:
        if name not in CHECKPOINTS:
            sys.exit(f"unknown checkpoint {name}; known: {', '.join(CHECKPOINTS)}")
        entry, folder = CHECKPOINTS[name], args.out / name
        if args.verify:
            verify(name, entry, folder, args.gptqmodel)
        elif args.check:
            check(name, entry, folder)
        else:
            make(name, entry, folder)


if __name__ == "__main__":
    main()
