"""The table of tests/data/families: one small random checkpoint per entry, and how published models of that family spell its config.

Used by make_tiny_checkpoints.py. An entry names a configuration class of transformers and its values; `v4` is what turns the config
that transformers 5 writes into what models on the Hub have: keys to set (also keys nobody reads, because users bring those) and keys
to drop. Weights, prompts and goldens are made by make_tiny_checkpoints.py; what each folder exercises is in the README there.
"""

import dataclasses


@dataclasses.dataclass
class Checkpoint:
    config_class: str
    values: dict
    features: list
    dtype: str = "bfloat16"
    v4: dict = dataclasses.field(default_factory=dict)  # keys that published configs have besides; `...` drops the key
    context_switch: int = 0  # dynamic NTK and longrope: texts longer than this are rotated otherwise
    gains: dict = dataclasses.field(default_factory=dict)  # part of a parameter's name -> its standard deviation (a norm's: what is added)
    idle: tuple = ()  # ends of names of parameters that by their nature change nothing, such as a key bias without rotation
    shard_size: str | None = None
    reference: str = ""  # a loader of tiny_references.py where transformers alone cannot load the folder
    form: str = ""  # a function of tiny_references.py that gives the tensors their published form


def rope(theta=10000.0, **more):
    return dict({"rope_type": "default", "rope_theta": theta}, **more)


# With tied weights and a scaled embedding a random model repeats its input unless the embedding is small and what is added to it large.
GEMMA_GAINS = {"embed_tokens": 0.06, "model.norm": 4.0, "o_proj": 0.4, "down_proj": 0.4}

SLIDING, FULL = "sliding_attention", "full_attention"

# The order is that of docs/models.md: Llama-like first.
FAMILIES = {
    "qwen2": Checkpoint("Qwen2Config", dict(
        vocab_size=101, hidden_size=42, intermediate_size=45, num_hidden_layers=2, num_attention_heads=3, num_key_value_heads=1,
        tie_word_embeddings=True, rope_parameters=rope(1000.0)),
        ["q/k/v bias without a config key", "tied output", "sliding_window set but use_sliding_window false (config.v4.json)"],
        v4=dict(use_sliding_window=False, sliding_window=24, max_window_layers=1, layer_types=..., rope_scaling=...)),
    "qwen2-window": Checkpoint("Qwen2Config", dict(
        vocab_size=99, hidden_size=40, intermediate_size=37, num_hidden_layers=4, num_attention_heads=4, num_key_value_heads=2,
        tie_word_embeddings=False, use_sliding_window=True, sliding_window=20, max_window_layers=2, rope_parameters=rope()),
        ["q/k/v bias", "sliding window from layer max_window_layers on", "untied output"], dtype="float32",
        v4=dict(layer_types=..., rope_scaling=...)),
    "qwen3": Checkpoint("Qwen3Config", dict(
        vocab_size=103, hidden_size=45, intermediate_size=47, num_hidden_layers=3, num_attention_heads=4, num_key_value_heads=2,
        head_dim=12, tie_word_embeddings=True, rope_parameters=rope(1000.0)),
        ["q/k norm per head", "head_dim not hidden/heads", "tied output"],
        v4=dict(layer_types=..., max_window_layers=3)),
    "qwen3-yarn": Checkpoint("Qwen3Config", dict(
        vocab_size=100, hidden_size=40, intermediate_size=41, num_hidden_layers=2, num_attention_heads=4, num_key_value_heads=1,
        head_dim=16, tie_word_embeddings=False, attention_bias=True, max_position_embeddings=192,
        rope_parameters=rope(1000.0, rope_type="yarn", factor=4.0, original_max_position_embeddings=48, beta_fast=8.0)),
        ["q/k norm per head", "attention_bias on q, k, v and o", "yarn with beta_fast 8", "untied output"],
        v4=dict(layer_types=..., max_window_layers=2)),
    "phi3": Checkpoint("Phi3Config", dict(
        vocab_size=98, hidden_size=42, intermediate_size=43, num_hidden_layers=2, num_attention_heads=3, num_key_value_heads=3,
        tie_word_embeddings=False, sliding_window=23, original_max_position_embeddings=256, rope_parameters=rope()),
        ["fused qkv_proj and gate_up_proj", "sliding window on every layer"], dtype="float32",
        v4=dict(rope_scaling=None, auto_map={"AutoConfig": "configuration_phi3.Phi3Config", "AutoModelForCausalLM": "modeling_phi3.Phi3ForCausalLM"})),
    "phi3-longrope": Checkpoint("Phi3Config", dict(
        vocab_size=102, hidden_size=40, intermediate_size=39, num_hidden_layers=2, num_attention_heads=4, num_key_value_heads=2,
        tie_word_embeddings=False, max_position_embeddings=256, original_max_position_embeddings=64, sliding_window=262144,
        rope_parameters=rope(rope_type="longrope", short_factor=[1.0, 1.05, 1.1, 1.3, 1.6],
                             long_factor=[1.1, 1.5, 2.5, 4.0, 6.5])),
        ["fused projections", "longrope, short and long factors, attention factor sqrt(1 + ln 4 / ln 64)"], context_switch=64),
    "phi3-longrope-short": Checkpoint("Phi3Config", dict(
        vocab_size=97, hidden_size=36, intermediate_size=35, num_hidden_layers=2, num_attention_heads=3, num_key_value_heads=1,
        tie_word_embeddings=False, max_position_embeddings=1024, original_max_position_embeddings=160,
        rope_parameters=rope(rope_type="longrope", short_factor=[1.0, 1.2, 1.5, 1.7, 2.0, 2.2],
                             long_factor=[1.2, 1.9, 3.5, 5.0, 7.5, 9.0])),
        ["fused projections", "longrope, every text below original_max_position_embeddings"], context_switch=160,
        v4=dict(rope_type_key="type")),
    "gemma": Checkpoint("GemmaConfig", dict(
        vocab_size=104, hidden_size=44, intermediate_size=51, num_hidden_layers=2, num_attention_heads=3, num_key_value_heads=1,
        head_dim=20, rope_parameters=rope(1000.0)),
        ["norm weights as 1 + w", "embedding times sqrt(hidden)", "gated gelu_tanh", "tied output by default"], gains=GEMMA_GAINS,
        v4=dict(hidden_act="gelu", hidden_activation=None, tie_word_embeddings=..., use_bidirectional_attention=...)),
    "gemma2": Checkpoint("Gemma2Config", dict(
        vocab_size=105, hidden_size=44, intermediate_size=53, num_hidden_layers=4, num_attention_heads=4, num_key_value_heads=2,
        head_dim=16, sliding_window=20, query_pre_attn_scalar=11, attn_logit_softcapping=3.0, final_logit_softcapping=5.0,
        rope_parameters=rope()),
        ["four norms per layer", "attention soft-cap 3", "final soft-cap 5", "query_pre_attn_scalar", "sliding and full layers alternate"], gains=GEMMA_GAINS,
        dtype="float32", v4=dict(
            hidden_act="gelu_pytorch_tanh", tie_word_embeddings=..., use_bidirectional_attention=..., layer_types=..., rope_scaling=...,
            cache_implementation="hybrid", sliding_window_size=20)),
    "gemma3": Checkpoint("Gemma3TextConfig", dict(
        vocab_size=106, hidden_size=42, intermediate_size=45, num_hidden_layers=4, num_attention_heads=3, num_key_value_heads=1,
        head_dim=16, sliding_window=20, query_pre_attn_scalar=14, sliding_window_pattern=3, layer_types=[SLIDING, SLIDING, FULL, SLIDING],
        rope_parameters={FULL: rope(20000.0, rope_type="linear", factor=4.0), SLIDING: rope(300.0)}),
        ["q/k norm per head with 1 + w", "two RoPE bases", "linear scaling on full layers only", "pattern of 2 sliding : 1 full"], gains=GEMMA_GAINS,
        v4=dict(sliding_window_pattern=3, cache_implementation="hybrid", tie_word_embeddings=...,
                use_bidirectional_attention=..., layer_types=...)),
    "smollm3": Checkpoint("SmolLM3Config", dict(
        vocab_size=107, hidden_size=40, intermediate_size=33, num_hidden_layers=4, num_attention_heads=4, num_key_value_heads=2,
        no_rope_layers=[1, 1, 0, 1], no_rope_layer_interval=3, tie_word_embeddings=True, rope_parameters=rope(2000.0)),
        ["a layer without RoPE", "tied output"],
        v4=dict(max_window_layers=28, pretraining_tp=2, rope_scaling=None)),
    "smollm3-window": Checkpoint("SmolLM3Config", dict(
        vocab_size=98, hidden_size=42, intermediate_size=37, num_hidden_layers=4, num_attention_heads=3, num_key_value_heads=1,
        no_rope_layer_interval=2, use_sliding_window=True, sliding_window=22, attention_bias=True, mlp_bias=True,
        tie_word_embeddings=False, rope_parameters=rope(2000.0)),
        ["layers without RoPE slide, layers with RoPE are full", "attention_bias", "mlp_bias", "untied output"],
        idle=("layers.1.self_attn.k_proj.bias", "layers.3.self_attn.k_proj.bias"),
        v4=dict(rope_scaling=None, no_rope_layers=..., layer_types=...)),
    "olmo2": Checkpoint("Olmo2Config", dict(
        vocab_size=109, hidden_size=42, intermediate_size=41, num_hidden_layers=3, num_attention_heads=3, num_key_value_heads=1,
        tie_word_embeddings=False, rms_norm_eps=1e-5, rope_parameters=rope(5000.0)),
        ["norms after attention and MLP, none before", "q/k norm over the whole projected width"], dtype="float32"),
    "granite": Checkpoint("GraniteConfig", dict(
        vocab_size=110, hidden_size=44, intermediate_size=39, num_hidden_layers=3, num_attention_heads=2, num_key_value_heads=1,
        tie_word_embeddings=True, embedding_multiplier=3.0, residual_multiplier=0.6, attention_multiplier=0.4, logits_scaling=0.5,
        attention_bias=True, mlp_bias=False, rope_parameters=rope(5000.0)),
        ["embedding, residual, attention and logits multipliers", "attention_bias", "tied output"],
        gains={"embed_tokens": 0.1, "o_proj": 0.4, "down_proj": 0.4}),
    "starcoder2": Checkpoint("Starcoder2Config", dict(
        vocab_size=111, hidden_size=42, intermediate_size=83, num_hidden_layers=2, num_attention_heads=3, num_key_value_heads=1,
        sliding_window=25, tie_word_embeddings=True, rope_parameters=rope(999.4420358813)),
        ["LayerNorm with bias", "plain MLP c_fc, gelu_tanh, c_proj", "bias everywhere", "sliding window on every layer"], gains={"embed_tokens": 0.2, "o_proj.weight": 0.4, "c_proj.weight": 0.3},
        v4=dict(activation_function="gelu", attention_softmax_in_fp32=True, layer_norm_epsilon=1e-5, mlp_type="default", norm_type="layer_norm",
                attention_dropout=0.1, residual_dropout=0.1, embedding_dropout=0.1, scale_attention_softmax_in_fp32=True,
                scale_attn_weights=True, tie_word_embeddings=..., rope_scaling=...)),
    "starcoder2-plain": Checkpoint("Starcoder2Config", dict(
        vocab_size=96, hidden_size=36, intermediate_size=71, num_hidden_layers=2, num_attention_heads=3, num_key_value_heads=3,
        sliding_window=None, use_bias=False, tie_word_embeddings=False, hidden_act="gelu", rope_parameters=rope(5000.0)),
        ["LayerNorm with bias", "no projection bias", "exact gelu", "untied output", "full attention"], v4=dict(rope_scaling=...)),
    "cohere2": Checkpoint("Cohere2Config", dict(
        vocab_size=112, hidden_size=42, intermediate_size=45, num_hidden_layers=4, num_attention_heads=3, num_key_value_heads=1,
        sliding_window=21, logit_scale=0.6, layer_types=[SLIDING, SLIDING, FULL, SLIDING], rope_parameters=rope(5000.0)),
        ["parallel attention and MLP", "LayerNorm without bias", "interleaved RoPE on sliding layers, none on full ones", "logit_scale"],
        v4=dict(cache_implementation="hybrid", order_of_interleaved_layers="local_attn_first", position_embedding_type="rope_gptj",
                rotary_pct=1.0, sliding_window_pattern=3, use_embedding_sharing=True, use_gated_activation=True, use_parallel_block=True,
                use_parallel_embedding=False, use_qk_norm=False, layer_types=..., tie_word_embeddings=...)),
}


def legacy_config(config, v4):
    """The same config in the spelling of transformers 4 (rope_theta, rope_scaling, torch_dtype), with the keys of `v4` on top."""
    config = dict(config)
    v4 = dict(v4)
    kind_key = v4.pop("rope_type_key", "rope_type")
    parameters = config.pop("rope_parameters", None)
    if parameters is not None and FULL in parameters:
        parameters = dict(parameters)
        config["rope_local_base_freq"] = parameters[SLIDING]["rope_theta"]
        parameters = parameters[FULL]
    if parameters is not None:
        scaling = dict(parameters)
        config["rope_theta"] = scaling.pop("rope_theta")
        partial = scaling.pop("partial_rotary_factor", None)
        if partial not in (None, 1.0):
            config["partial_rotary_factor"] = partial
        kind = scaling.pop("rope_type")
        if "original_max_position_embeddings" in config:
            scaling.pop("original_max_position_embeddings", None)
        config["rope_scaling"] = None if kind == "default" else {kind_key: kind, **scaling}
    config["torch_dtype"] = config.pop("dtype")
    config["transformers_version"] = "4.46.0"
    for key, value in v4.items():
        if value is ...:
            config.pop(key, None)
        else:
            config[key] = value
    return config
