"""Reference models that transformers alone cannot load from the published files, and the published forms that it does not write.

Used by make_tiny_checkpoints.py: a `publish_*` function rewrites a folder that save_pretrained has just written, a function with the
name of a Checkpoint's `reference` loads a folder, and its `build_*` twin makes the random model.
"""

import json

import safetensors.torch
import torch
import transformers

FP4 = torch.tensor([0.0, 0.5, 1.0, 1.5, 2.0, 3.0, 4.0, 6.0, -0.0, -0.5, -1.0, -1.5, -2.0, -3.0, -4.0, -6.0])


def read(folder):
    return safetensors.torch.load_file(folder / "model.safetensors")


def rewrite(folder, tensors):
    safetensors.torch.save_file({k: v.contiguous() for k, v in tensors.items()}, folder / "model.safetensors", metadata={"format": "pt"})


def publish_gpt2(folder):
    """The file of the original release: no "transformer." prefix, and the causal mask of every layer as a buffer nobody needs."""
    config = json.loads((folder / "config.json").read_text())
    tensors = {k.removeprefix("transformer."): v for k, v in read(folder).items()}
    n = config["n_positions"]
    for layer in range(config["n_layer"]):
        tensors[f"h.{layer}.attn.bias"] = torch.tril(torch.ones(n, n, dtype=torch.bool)).view(1, 1, n, n)
    rewrite(folder, tensors)


def to_mxfp4(weight):
    """[expert, in, out] -> blocks [expert, out, in / 32, 16] (two values a byte, the first in the low half) and scales [expert, out, in / 32]."""
    experts, inner, outer = weight.shape
    groups = weight.float().transpose(1, 2).reshape(experts, outer, inner // 32, 32)
    exponent = torch.floor(torch.log2(groups.abs().amax(-1, keepdim=True))) - 2  # the largest value of the block falls into 4..8, clipped to 6
    codes = ((groups / torch.exp2(exponent))[..., None] - FP4).abs().argmin(-1).to(torch.uint8)
    return codes[..., ::2] | (codes[..., 1::2] << 4), (exponent[..., 0] + 127).to(torch.uint8)


def from_mxfp4(blocks, scales):
    values = torch.stack([FP4[(blocks & 15).long()], FP4[(blocks >> 4).long()]], dim=-1).flatten(-2)
    values = values * torch.exp2(scales.float() - 127)[..., None]
    return values.flatten(2).transpose(1, 2)


def publish_mxfp4(folder):
    tensors = read(folder)
    for key in [k for k in tensors if k.endswith(("gate_up_proj", "down_proj"))]:
        tensors[key + "_blocks"], tensors[key + "_scales"] = to_mxfp4(tensors.pop(key))
    rewrite(folder, tensors)
    config = json.loads((folder / "config.json").read_text())
    config["quantization_config"] = {"quant_method": "mxfp4", "modules_to_not_convert": [
        "model.layers.*.self_attn", "model.layers.*.mlp.router", "model.embed_tokens", "lm_head"]}
    (folder / "config.json").write_text(json.dumps(config, indent=2, sort_keys=True) + "\n")


def mxfp4(folder, dtype):
    values = json.loads((folder / "config.json").read_text())
    values.pop("quantization_config")
    config = transformers.GptOssConfig(**values)
    config._attn_implementation = config._experts_implementation = "eager"
    tensors = read(folder)
    for key in [k for k in tensors if k.endswith("_blocks")]:
        scales = tensors.pop(key.replace("_blocks", "_scales"))
        tensors[key.removesuffix("_blocks")] = from_mxfp4(tensors.pop(key), scales)
    model = transformers.GptOssForCausalLM(config)
    model.load_state_dict(tensors, strict=True)
    return model.to(dtype)
