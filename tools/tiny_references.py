"""Reference models that transformers alone cannot load from the published files, and the published forms that it does not write.

Used by make_tiny_checkpoints.py: a `publish_*` function rewrites a folder that save_pretrained has just written, a function with the
name of a Checkpoint's `reference` loads a folder, and its `build_*` twin makes the random model.
"""

import functools
import json

import safetensors.torch
import torch
import transformers
from transformers.integrations.mxfp4 import convert_moe_packed_tensors
from transformers.models.llama import modeling_llama as llama

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


def publish_deepseek_v3(folder):
    """The correction bias of the router is float32 whatever the rest is."""
    rewrite(folder, {k: v.float() if k.endswith("e_score_correction_bias") else v for k, v in read(folder).items()})


def to_mxfp4(weight):
    """[expert, in, out] -> blocks [expert, out, in / 32, 16] (two values a byte, the first in the low half) and scales [expert, out, in / 32]."""
    experts, inner, outer = weight.shape
    groups = weight.float().transpose(1, 2).reshape(experts, outer, inner // 32, 32)
    exponent = torch.floor(torch.log2(groups.abs().amax(-1, keepdim=True))) - 2  # the largest value of the block falls into 4..8, clipped to 6
    codes = ((groups / torch.exp2(exponent))[..., None] - FP4).abs().argmin(-1).to(torch.uint8)
    return codes[..., ::2] | (codes[..., 1::2] << 4), (exponent[..., 0] + 127).to(torch.uint8)


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
        tensors[key.removesuffix("_blocks")] = convert_moe_packed_tensors(tensors.pop(key), scales, dtype=dtype)
    model = transformers.GptOssForCausalLM(config)
    model.load_state_dict(tensors, strict=True)
    return model.to(dtype)


def share_keys_and_values(model):
    """Llama in which layer i has no keys and values of its own where kv_owner[i] < i, and reads those that layer kv_owner[i] has computed."""
    for layer, owner in enumerate(model.config.kv_owner):
        attention = model.model.layers[layer].self_attn
        attention.k_proj_owner, attention.shared = owner, model.__dict__.setdefault("keys_and_values", {})
        if owner != layer:
            del attention.k_proj, attention.v_proj
        attention.forward = functools.partial(shared_attention, attention)
    return model


def shared_attention(self, hidden_states, position_embeddings, attention_mask, past_key_values=None, **_):
    shape = (*hidden_states.shape[:-1], -1, self.head_dim)
    query = self.q_proj(hidden_states).view(shape).transpose(1, 2)
    owns = self.k_proj_owner == self.layer_idx
    fresh = self.k_proj(hidden_states).view(shape).transpose(1, 2) if owns else query
    query, fresh = llama.apply_rotary_pos_emb(query, fresh, *position_embeddings)
    if owns:
        value = self.v_proj(hidden_states).view(shape).transpose(1, 2)
        self.shared[self.layer_idx] = past_key_values.update(fresh, value, self.layer_idx) if past_key_values is not None else (fresh, value)
    key, value = self.shared[self.k_proj_owner]
    output, weights = llama.eager_attention_forward(self, query, key, value, attention_mask, scaling=self.scaling)
    return self.o_proj(output.reshape(*hidden_states.shape[:-1], -1)), weights


def build_kv_owner(config):
    return share_keys_and_values(transformers.LlamaForCausalLM(config))


def build_kv_owner_of_kind(config):
    """Gemma 3 in which a layer and the owner of its KV slide and rotate alike. Then its keys and values are the owner's from the projection on, so
    each borrowing layer gets what the owner's projections gave in this forward pass, and norms it as the owner does."""
    model = transformers.Gemma3ForCausalLM(config)
    for layer, owner in enumerate(config.kv_owner):
        attention, lender = model.model.layers[layer].self_attn, model.model.layers[owner].self_attn
        for name in ("k_proj", "v_proj"):
            if owner == layer:
                getattr(attention, name).register_forward_hook(lambda module, _, output: setattr(module, "given", output))
            else:
                delattr(attention, name)
                attention.__dict__[name] = functools.partial(lambda module, _: module.given, getattr(lender, name))
        if owner != layer:
            del attention.k_norm
            attention.__dict__["k_norm"] = lender.k_norm
    return model


def publish_kv_owner(folder):
    config = json.loads((folder / "config.json").read_text())
    tensors = read(folder)
    borrowed = [f"layers.{i}.self_attn.{p}" for i, owner in enumerate(config["kv_owner"]) if owner != i for p in ("k_proj", "v_proj", "k_norm")]
    assert not [k for k in tensors if any(b in k for b in borrowed)]


def load_exactly(model, tensors, dtype, tied):
    missing = set(model.load_state_dict(tensors, strict=False).missing_keys)
    assert missing == ({"lm_head.weight"} if tied else set()), missing
    if tied:
        model.tie_weights()
    return model.to(dtype)


def kv_owner(folder, dtype):
    config = transformers.LlamaConfig(**json.loads((folder / "config.json").read_text()))
    config._attn_implementation = "eager"
    return load_exactly(build_kv_owner(config), read(folder), dtype, config.tie_word_embeddings)


def kv_owner_of_kind(folder, dtype):
    config = transformers.Gemma3TextConfig(**json.loads((folder / "config.json").read_text()))
    config._attn_implementation = "eager"
    return load_exactly(build_kv_owner_of_kind(config), read(folder), dtype, config.tie_word_embeddings)


def build_gemma3_wrapper(config):
    config.text_config._attn_implementation = config.vision_config._attn_implementation = "eager"
    return transformers.Gemma3ForConditionalGeneration(config)


def publish_gemma3(folder):
    """Published files say language_model.model., vision_tower.vision_model. and multi_modal_projector., without lm_head (it is tied)."""
    names = {"model.language_model.": "language_model.model.", "model.vision_tower.": "vision_tower.vision_model.",
             "model.multi_modal_projector.": "multi_modal_projector."}
    tensors = {}
    for key, tensor in read(folder).items():
        for inside, published in names.items():
            key = published + key.removeprefix(inside) if key.startswith(inside) else key
        if not key.startswith(("language_model.lm_head", "lm_head")):
            tensors[key] = tensor
    rewrite(folder, tensors)


def gemma3_wrapper(folder, dtype):
    """The text model alone, from the tensors of the wrapper."""
    values = json.loads((folder / "config.json").read_text())["text_config"]
    config = transformers.Gemma3TextConfig(**values)
    config._attn_implementation = "eager"
    tensors = {k.removeprefix("language_model."): v for k, v in read(folder).items() if k.startswith("language_model.")}
    return load_exactly(transformers.Gemma3ForCausalLM(config), tensors, dtype, True)
