"""The random Llama models of tools/make_random_model.py as GGUF files with the same weights, for llama.cpp: bf16, q8_0, q4_0.

q4_0 keeps the output head (the embedding, when tied) in q8_0, as Kvasir's int4 does; llama.cpp's own converter keeps it finer than q4_0 too.
"""
import json
import pathlib
import struct

import numpy as np

FORMATS = ("bf16", "q8_0", "q4_0")


def read_safetensors(path):
    """name -> float32 array, from bfloat16."""
    with open(path, "rb") as file:
        (length,) = struct.unpack("<Q", file.read(8))
        header = json.loads(file.read(length))
    data = np.memmap(path, np.uint16, mode="r", offset=8 + length)
    for name, entry in header.items():
        if name == "__metadata__":
            continue
        begin, end = (at // 2 for at in entry["data_offsets"])
        yield name, (data[begin:end].astype(np.uint32) << 16).view(np.float32).reshape(entry["shape"])


def to_interleaved(matrix, heads):
    """llama.cpp rotates neighbouring rows of q and k where Hugging Face rotates the halves of a head."""
    rows, cols = matrix.shape
    return matrix.reshape(heads, 2, rows // heads // 2, cols).swapaxes(1, 2).reshape(rows, cols)


def gguf_name(name):
    if not name.startswith("model.layers."):
        return {"model.embed_tokens.weight": "token_embd.weight", "model.norm.weight": "output_norm.weight", "lm_head.weight": "output.weight"}[name]
    _, _, layer, rest = name.split(".", 3)
    parts = {"input_layernorm": "attn_norm", "self_attn.q_proj": "attn_q", "self_attn.k_proj": "attn_k", "self_attn.v_proj": "attn_v",
             "self_attn.o_proj": "attn_output", "post_attention_layernorm": "ffn_norm", "mlp.gate_proj": "ffn_gate", "mlp.up_proj": "ffn_up",
             "mlp.down_proj": "ffn_down"}
    return f"blk.{layer}.{parts[rest.removesuffix('.weight')]}.weight"


def write_gguf(folder, path, file_format):
    import gguf

    types = {"bf16": gguf.GGMLQuantizationType.BF16, "q8_0": gguf.GGMLQuantizationType.Q8_0, "q4_0": gguf.GGMLQuantizationType.Q4_0,
             "f16": gguf.GGMLQuantizationType.F16}
    folder, path = pathlib.Path(folder), pathlib.Path(path)
    config = json.loads((folder / "config.json").read_text())
    partial = path.with_suffix(".part")
    writer = gguf.GGUFWriter(partial, "llama")
    writer.add_context_length(config["max_position_embeddings"])
    writer.add_embedding_length(config["hidden_size"])
    writer.add_block_count(config["num_hidden_layers"])
    writer.add_feed_forward_length(config["intermediate_size"])
    writer.add_head_count(config["num_attention_heads"])
    writer.add_head_count_kv(config["num_key_value_heads"])
    writer.add_layer_norm_rms_eps(config["rms_norm_eps"])
    writer.add_file_type({"bf16": gguf.LlamaFileType.MOSTLY_BF16, "f16": gguf.LlamaFileType.MOSTLY_F16, "q8_0": gguf.LlamaFileType.MOSTLY_Q8_0,
                          "q4_0": gguf.LlamaFileType.MOSTLY_Q4_0}[file_format])
    writer.add_key_length(config["hidden_size"] // config["num_attention_heads"])
    writer.add_value_length(config["hidden_size"] // config["num_attention_heads"])
    writer.add_bos_token_id(1)
    writer.add_eos_token_id(2)
    writer.add_rope_dimension_count(config["hidden_size"] // config["num_attention_heads"])
    writer.add_rope_freq_base(config["rope_theta"])
    writer.add_vocab_size(config["vocab_size"])
    tokens = ["<unk>", "<s>", "</s>"] + [f"<0x{byte:02X}>" for byte in range(256)]
    tokens += [f"t{i}" for i in range(len(tokens), config["vocab_size"])]
    kind = gguf.TokenType
    writer.add_tokenizer_model("llama")
    writer.add_token_list(tokens)
    writer.add_token_scores([0.0] * len(tokens))
    writer.add_token_types([kind.UNKNOWN, kind.CONTROL, kind.CONTROL] + [kind.BYTE] * 256 + [kind.NORMAL] * (len(tokens) - 259))
    for name, values in read_safetensors(folder / "model.safetensors"):
        if name.endswith(("q_proj.weight", "k_proj.weight")):
            values = to_interleaved(values, config["num_attention_heads" if "q_proj" in name else "num_key_value_heads"])
        if values.ndim == 1:
            writer.add_tensor(gguf_name(name), np.ascontiguousarray(values))
            continue
        head = name in ("model.embed_tokens.weight", "lm_head.weight")
        kind = types["q8_0" if head and file_format == "q4_0" else file_format]
        writer.add_tensor(gguf_name(name), gguf.quants.quantize(np.ascontiguousarray(values), kind), raw_dtype=kind)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    partial.rename(path)
