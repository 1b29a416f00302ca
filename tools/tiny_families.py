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

DEEPSEEK = dict(ep_size=1, moe_layer_freq=1, seq_aux=True, head_dim=..., qk_head_dim=..., mlp_bias=...,
                auto_map={"AutoConfig": "configuration_deepseek.DeepseekV3Config"})

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
        head_dim=16, tie_word_embeddings=False, attention_bias=True, max_position_embeddings=512,
        rope_parameters=rope(100.0, rope_type="yarn", factor=4.0, original_max_position_embeddings=128, beta_fast=8.0)),
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
        ["LayerNorm with bias", "plain MLP c_fc, gelu_tanh, c_proj", "bias everywhere", "sliding window on every layer"], gains={"embed_tokens": 0.2, "o_proj.weight": 0.4, "c_proj.weight": 0.3, "model.norm.weight": 5.0},
        v4=dict(activation_function="gelu", attention_softmax_in_fp32=True, layer_norm_epsilon=1e-5, mlp_type="default", norm_type="layer_norm",
                attention_dropout=0.1, residual_dropout=0.1, embedding_dropout=0.1, scale_attention_softmax_in_fp32=True,
                scale_attn_weights=True, tie_word_embeddings=..., rope_scaling=...)),
    "starcoder2-plain": Checkpoint("Starcoder2Config", dict(
        vocab_size=96, hidden_size=36, intermediate_size=71, num_hidden_layers=2, num_attention_heads=3, num_key_value_heads=3,
        sliding_window=None, use_bias=False, tie_word_embeddings=False, hidden_act="gelu", rope_parameters=rope(5000.0)),
        ["LayerNorm with bias", "no projection bias", "exact gelu", "untied output", "full attention"], gains={"lm_head": 2.0}, v4=dict(rope_scaling=...)),
    "cohere2": Checkpoint("Cohere2Config", dict(
        vocab_size=112, hidden_size=42, intermediate_size=45, num_hidden_layers=4, num_attention_heads=3, num_key_value_heads=1,
        sliding_window=21, logit_scale=0.6, layer_types=[SLIDING, SLIDING, FULL, SLIDING], rope_parameters=rope(5000.0)),
        ["parallel attention and MLP", "LayerNorm without bias", "interleaved RoPE on sliding layers, none on full ones", "logit_scale"],
        v4=dict(cache_implementation="hybrid", order_of_interleaved_layers="local_attn_first", position_embedding_type="rope_gptj",
                rotary_pct=1.0, sliding_window_pattern=3, use_embedding_sharing=True, use_gated_activation=True, use_parallel_block=True,
                use_parallel_embedding=False, use_qk_norm=False, layer_types=..., tie_word_embeddings=...)),
    "falcon3": Checkpoint("LlamaConfig", dict(
        vocab_size=95, hidden_size=42, intermediate_size=47, num_hidden_layers=2, num_attention_heads=3, num_key_value_heads=1, head_dim=18,
        rms_norm_eps=1e-6, tie_word_embeddings=False, rope_parameters=rope(1000042)),
        ["Llama with head_dim not hidden/heads and a large base"], v4=dict(activation="swiglu")),
    "smollm2": Checkpoint("LlamaConfig", dict(
        vocab_size=94, hidden_size=45, intermediate_size=55, num_hidden_layers=3, num_attention_heads=3, num_key_value_heads=1, head_dim=14,
        rms_norm_eps=1e-5, tie_word_embeddings=True, rope_parameters=rope(100000)),
        ["Llama, tied output"], gains={"embed_tokens": 0.2},
        v4=dict(is_llama_config=True, rope_interleaved=False, **{"transformers.js_config": {"kv_cache_dtype": {"q4f16": "float16", "fp16": "float16"}}})),
    "llama-yarn": Checkpoint("LlamaConfig", dict(
        vocab_size=96, hidden_size=40, intermediate_size=43, num_hidden_layers=2, num_attention_heads=4, num_key_value_heads=2, head_dim=20,
        rms_norm_eps=1e-6, tie_word_embeddings=False, max_position_embeddings=4096,
        rope_parameters=rope(rope_type="yarn", factor=4.0, original_max_position_embeddings=1024)),
        ["yarn with default betas and attention factor"], dtype="float32"),
    "phi4-mini": Checkpoint("Phi3Config", dict(
        vocab_size=103, hidden_size=48, intermediate_size=45, num_hidden_layers=2, num_attention_heads=3, num_key_value_heads=1,
        tie_word_embeddings=True, max_position_embeddings=256, original_max_position_embeddings=64, sliding_window=262144,
        rope_parameters=rope(rope_type="longrope", partial_rotary_factor=0.75, short_factor=[1.0, 1.0, 1.1, 1.2, 1.4, 1.7],
                             long_factor=[1.0, 1.2, 2.0, 3.5, 5.0, 7.0])),
        ["fused projections", "partial rotary 0.75", "longrope", "tied output"], context_switch=64, gains={"embed_tokens": 0.2},
        v4=dict(attention_bias=False, full_attn_mod=1, interpolate_factor=1, lm_head_bias=False, mlp_bias=False)),
    "gpt2": Checkpoint("GPT2Config", dict(
        vocab_size=101, n_embd=42, n_layer=2, n_head=3),
        ["learned positions", "Conv1D weights ([in, out])", "LayerNorm with bias", "gelu_new", "names without prefix and with mask buffers"],
        form="publish_gpt2", gains={"wte": 0.2, "wpe": 0.2, "c_attn.weight": 0.25, "c_proj.weight": 0.3, "ln_f.weight": 5.0},
        v4=dict(n_ctx=256, n_inner=..., tie_word_embeddings=..., add_cross_attention=...,
                task_specific_params={"text-generation": {"do_sample": True, "max_length": 50}})),
    "gpt2-scaled": Checkpoint("GPT2Config", dict(
        vocab_size=99, n_embd=40, n_layer=3, n_head=4, n_inner=71, activation_function="gelu", scale_attn_by_inverse_layer_idx=True,
        tie_word_embeddings=False, layer_norm_epsilon=1e-4),
        ["names with the transformer. prefix", "n_inner", "exact gelu", "attention scale divided by the layer's number", "untied output"],
        dtype="float32", gains={"wpe": 0.5, "c_attn.weight": 0.25, "lm_head": 2.0}, v4=dict(n_ctx=256)),
    "gpt-neox": Checkpoint("GPTNeoXConfig", dict(
        vocab_size=102, hidden_size=48, intermediate_size=95, num_hidden_layers=2, num_attention_heads=3, tie_word_embeddings=False,
        rope_parameters=rope(partial_rotary_factor=0.25)),
        ["parallel residual with two LayerNorms", "partial rotary 0.25", "query_key_value by head", "exact gelu"],
        gains={"query_key_value.weight": 0.24, "embed_out": 2.0, "lm_head": 2.0}, v4=dict(
            rotary_pct=0.25, rotary_emb_base=10000, rope_theta=..., rope_scaling=..., partial_rotary_factor=..., attention_bias=...,
            use_parallel_residual=...)),
    "gpt-neox-sequential": Checkpoint("GPTNeoXConfig", dict(
        vocab_size=97, hidden_size=42, intermediate_size=83, num_hidden_layers=2, num_attention_heads=3, tie_word_embeddings=False,
        use_parallel_residual=False, rope_parameters=rope(5000.0, partial_rotary_factor=1.0), hidden_act="gelu_fast"),
        ["sequential residual", "whole-width rotary", "gelu_fast"], dtype="float32", gains={"query_key_value.weight": 0.24, "embed_out": 2.0, "lm_head": 2.0},
        v4=dict(rotary_pct=1.0, rotary_emb_base=5000, rope_theta=..., rope_scaling=..., attention_bias=...)),
    "mixtral": Checkpoint("MixtralConfig", dict(
        vocab_size=98, hidden_size=40, intermediate_size=29, num_hidden_layers=2, num_attention_heads=4, num_key_value_heads=2, head_dim=12,
        num_local_experts=4, num_experts_per_tok=2, rms_norm_eps=1e-5, tie_word_embeddings=False, rope_parameters=rope(1e6)),
        ["4 experts, 2 per token, weights normed over the chosen"], v4=dict(rope_scaling=...)),
    "granite-moe": Checkpoint("GraniteMoeConfig", dict(
        vocab_size=102, hidden_size=40, intermediate_size=23, num_hidden_layers=2, num_attention_heads=4, num_key_value_heads=2,
        num_local_experts=5, num_experts_per_tok=2, tie_word_embeddings=True, embedding_multiplier=3.0, residual_multiplier=0.6,
        attention_multiplier=0.4, logits_scaling=0.5, rope_parameters=rope(5000.0)),
        ["stacked experts, softmax over the chosen", "embedding, residual, attention and logits multipliers", "tied output"],
        gains={"embed_tokens": 0.1, "o_proj": 0.4, "output_linear": 0.4}),
    "qwen2-moe": Checkpoint("Qwen2MoeConfig", dict(
        vocab_size=104, hidden_size=42, intermediate_size=57, moe_intermediate_size=23, shared_expert_intermediate_size=37,
        num_hidden_layers=2, num_attention_heads=3, num_key_value_heads=3, num_experts=5, num_experts_per_tok=2, norm_topk_prob=False,
        tie_word_embeddings=False, rope_parameters=rope(1e6)),
        ["softmax routing, weights not normed", "shared expert with a sigmoid gate", "q/k/v bias"],
        v4=dict(max_window_layers=28, sliding_window=32768, rope_scaling=..., layer_types=..., mlp_only_layers=..., qkv_bias=...)),
    "qwen2-moe-sparse-step": Checkpoint("Qwen2MoeConfig", dict(
        vocab_size=105, hidden_size=40, intermediate_size=39, moe_intermediate_size=21, shared_expert_intermediate_size=33,
        num_hidden_layers=4, num_attention_heads=4, num_key_value_heads=2, num_experts=6, num_experts_per_tok=3, norm_topk_prob=True,
        decoder_sparse_step=2, mlp_only_layers=[3], tie_word_embeddings=False, rope_parameters=rope()),
        ["dense and MoE layers by decoder_sparse_step and mlp_only_layers", "weights normed over the chosen", "shared expert"],
        v4=dict(rope_scaling=..., layer_types=..., qkv_bias=...)),
    "qwen2-moe-window": Checkpoint("Qwen2MoeConfig", dict(
        vocab_size=101, hidden_size=40, intermediate_size=37, moe_intermediate_size=19, shared_expert_intermediate_size=23,
        num_hidden_layers=4, num_attention_heads=4, num_key_value_heads=2, num_experts=4, num_experts_per_tok=2,
        use_sliding_window=True, sliding_window=20, max_window_layers=3, tie_word_embeddings=False, rope_parameters=rope()),
        ["use_sliding_window: every second layer below max_window_layers slides"], dtype="float32",
        v4=dict(rope_scaling=..., layer_types=..., qkv_bias=...)),
    "qwen3-moe": Checkpoint("Qwen3MoeConfig", dict(
        vocab_size=106, hidden_size=42, intermediate_size=51, moe_intermediate_size=19, num_hidden_layers=3, num_attention_heads=4,
        num_key_value_heads=2, head_dim=12, num_experts=7, num_experts_per_tok=3, norm_topk_prob=True, decoder_sparse_step=1,
        mlp_only_layers=[1], tie_word_embeddings=False, rope_parameters=rope(1e6)),
        ["q/k norm per head", "7 experts, 3 per token, normed", "a dense layer by mlp_only_layers", "no shared expert"],
        v4=dict(max_window_layers=3, sliding_window=None)),
    "gpt-oss": Checkpoint("GptOssConfig", dict(
        vocab_size=107, hidden_size=42, intermediate_size=27, num_hidden_layers=2, num_attention_heads=4, num_key_value_heads=2, head_dim=12,
        num_local_experts=5, num_experts_per_tok=2, sliding_window=20, swiglu_limit=1.5, max_position_embeddings=512,
        rope_parameters=rope(5000.0, rope_type="yarn", factor=8.0, beta_fast=8.0, beta_slow=1.0, truncate=False,
                             original_max_position_embeddings=64)),
        ["attention sinks", "bias on q, k, v, o", "sliding and full layers alternate", "yarn without truncation", "softmax over the chosen",
         "clamped interleaved SwiGLU with limit 1.5", "bf16 experts ([expert, in, out])"],
        gains={"sinks": 1.0, "experts.gate_up_proj": 0.25, "experts.down_proj": 0.25},
        v4=dict(initial_context_length=64, experts_per_token=2)),
    "gpt-oss-mxfp4": Checkpoint("GptOssConfig", dict(
        vocab_size=100, hidden_size=64, intermediate_size=32, num_hidden_layers=2, num_attention_heads=3, num_key_value_heads=1, head_dim=14,
        num_local_experts=4, num_experts_per_tok=2, sliding_window=24, swiglu_limit=2.0, max_position_embeddings=512,
        rope_parameters=rope(150000.0, rope_type="yarn", factor=32.0, beta_fast=32.0, beta_slow=1.0, truncate=False,
                             original_max_position_embeddings=16)),
        ["experts as published: MXFP4 blocks and scales", "attention sinks", "goldens over the values that transformers' own dequantiser gives"],
        gains={"sinks": 1.0, "experts.gate_up_proj": 0.2, "experts.down_proj": 0.25}, reference="mxfp4", form="publish_mxfp4",
        v4=dict(initial_context_length=16, experts_per_token=2)),
    "deepseek-v2": Checkpoint("DeepseekV2Config", dict(
        vocab_size=103, hidden_size=42, intermediate_size=49, moe_intermediate_size=21, num_hidden_layers=3, num_attention_heads=3,
        num_key_value_heads=3, kv_lora_rank=22, q_lora_rank=26, qk_nope_head_dim=10, qk_rope_head_dim=8, v_head_dim=14, n_routed_experts=6,
        n_shared_experts=2, num_experts_per_tok=3, n_group=3, topk_group=2, topk_method="group_limited_greedy", norm_topk_prob=False,
        routed_scaling_factor=1.7, first_k_dense_replace=1, tie_word_embeddings=False,
        rope_parameters=rope(rope_type="yarn", factor=4.0, beta_fast=16, beta_slow=1, mscale=0.707, mscale_all_dim=1.3,
                             original_max_position_embeddings=64)),
        ["multi-head latent attention with q_lora_rank", "softmax routing limited to the best groups", "2 shared experts",
         "routed_scaling_factor", "first layer dense", "yarn with different mscale and mscale_all_dim"],
        v4=dict(DEEPSEEK, rope_type_key="type", aux_loss_alpha=0.001, scoring_func="softmax")),
    "deepseek-v2-lite": Checkpoint("DeepseekV2Config", dict(
        vocab_size=101, hidden_size=40, intermediate_size=43, moe_intermediate_size=19, num_hidden_layers=2, num_attention_heads=4,
        num_key_value_heads=4, kv_lora_rank=18, q_lora_rank=None, qk_nope_head_dim=12, qk_rope_head_dim=6, v_head_dim=10, n_routed_experts=5,
        n_shared_experts=1, num_experts_per_tok=3, n_group=1, topk_group=1, topk_method="greedy", norm_topk_prob=False,
        routed_scaling_factor=1.0, first_k_dense_replace=0, tie_word_embeddings=False, rope_parameters=rope()),
        ["multi-head latent attention without q_lora_rank", "greedy softmax routing", "default RoPE"], dtype="float32",
        v4=dict(DEEPSEEK, aux_loss_alpha=0.001, scoring_func="softmax")),
    "deepseek-v3": Checkpoint("DeepseekV3Config", dict(
        vocab_size=104, hidden_size=42, intermediate_size=47, moe_intermediate_size=17, num_hidden_layers=3, num_attention_heads=3,
        num_key_value_heads=3, kv_lora_rank=20, q_lora_rank=24, qk_nope_head_dim=12, qk_rope_head_dim=8, v_head_dim=10, n_routed_experts=8,
        n_shared_experts=1, num_experts_per_tok=3, n_group=4, topk_group=2, norm_topk_prob=True, routed_scaling_factor=2.5,
        first_k_dense_replace=1, tie_word_embeddings=False, max_position_embeddings=512,
        rope_parameters=rope(rope_type="yarn", factor=8.0, beta_fast=16, beta_slow=1, mscale=1.0, mscale_all_dim=1.0,
                             original_max_position_embeddings=64)),
        ["multi-head latent attention", "sigmoid routing with correction bias and groups", "weights normed and scaled", "first layer dense",
         "yarn with mscale_all_dim in the attention scale"], gains={"e_score_correction_bias": 0.4}, form="publish_deepseek_v3",
        v4=dict(DEEPSEEK, rope_type_key="type", scoring_func="sigmoid", topk_method="noaux_tc", aux_loss_alpha=0.001, num_nextn_predict_layers=1,
                rope_interleave=...)),
    "deepseek-v3-unnormed": Checkpoint("DeepseekV3Config", dict(
        vocab_size=99, hidden_size=40, intermediate_size=41, moe_intermediate_size=15, num_hidden_layers=2, num_attention_heads=2,
        num_key_value_heads=2, kv_lora_rank=20, q_lora_rank=None, qk_nope_head_dim=8, qk_rope_head_dim=12, v_head_dim=18, n_routed_experts=4,
        n_shared_experts=1, num_experts_per_tok=2, n_group=1, topk_group=1, norm_topk_prob=False, routed_scaling_factor=1.3,
        first_k_dense_replace=0, tie_word_embeddings=False, attention_bias=True, rope_parameters=rope()),
        ["no q_lora_rank", "attention_bias", "one group", "weights not normed", "default RoPE"], gains={"e_score_correction_bias": 0.4}, form="publish_deepseek_v3",
        v4=dict(DEEPSEEK, scoring_func="sigmoid", topk_method="noaux_tc", rope_interleave=...)),
    "kv-owner": Checkpoint("LlamaConfig", dict(
        vocab_size=102, hidden_size=44, intermediate_size=41, num_hidden_layers=4, num_attention_heads=4, num_key_value_heads=2, head_dim=12,
        rms_norm_eps=1e-6, tie_word_embeddings=False, rope_parameters=rope(1000.0), kv_owner=[0, 0, 2, 2]),
        ["layers 1 and 3 read the keys and values of layers 0 and 2 (config key kv_owner, Kvasir's own)"],
        reference="kv_owner", form="publish_kv_owner"),
    "kv-owner-yoco": Checkpoint("LlamaConfig", dict(
        vocab_size=98, hidden_size=42, intermediate_size=37, num_hidden_layers=4, num_attention_heads=3, num_key_value_heads=1, head_dim=16,
        rms_norm_eps=1e-6, tie_word_embeddings=True, rope_parameters=rope(), kv_owner=[0, 1, 1, 1]),
        ["all later layers read layer 1, as in YOCO", "one key/value head", "tied output"], dtype="float32",
        reference="kv_owner", form="publish_kv_owner", gains={"embed_tokens": 0.2}),
    "kv-owner-windows": Checkpoint("Gemma3TextConfig", dict(
        vocab_size=103, hidden_size=42, intermediate_size=43, num_hidden_layers=6, num_attention_heads=3, num_key_value_heads=1,
        head_dim=16, sliding_window=20, query_pre_attn_scalar=14, sliding_window_pattern=2,
        layer_types=[SLIDING, FULL, SLIDING, FULL, SLIDING, FULL],
        rope_parameters={FULL: rope(20000.0), SLIDING: rope(300.0)}, kv_owner=[0, 1, 2, 3, 2, 3]),
        ["the last two layers read the last layer before them that slides or sees all as they do, as in Gemma 3n"], dtype="float32",
        gains=GEMMA_GAINS, reference="kv_owner_of_kind", form="publish_kv_owner",
        v4=dict(sliding_window_pattern=2, cache_implementation="hybrid", layer_types=..., tie_word_embeddings=..., use_bidirectional_attention=...)),
    "gemma3-multimodal": Checkpoint("Gemma3Config", dict(
        text_config=dict(
            vocab_size=104, hidden_size=40, intermediate_size=43, num_hidden_layers=3, num_attention_heads=4, num_key_value_heads=2, head_dim=12,
            sliding_window=20, query_pre_attn_scalar=12, sliding_window_pattern=2, layer_types=[SLIDING, FULL, SLIDING],
            max_position_embeddings=256, bos_token_id=1, eos_token_id=2, pad_token_id=0, dtype="bfloat16",
            rope_parameters={FULL: rope(20000.0, rope_type="linear", factor=8.0), SLIDING: rope(300.0)}),
        vision_config=dict(model_type="siglip_vision_model", hidden_size=8, intermediate_size=8, num_hidden_layers=1, num_attention_heads=1,
                           image_size=28, patch_size=14, vision_use_head=False),
        mm_tokens_per_image=4, boi_token_index=101, eoi_token_index=102, image_token_index=103),
        ["text model inside Gemma3ForConditionalGeneration: text_config, tensors under language_model.", "vision tensors to be skipped"],
        gains=GEMMA_GAINS, reference="gemma3_wrapper", form="publish_gemma3"),
    "qwen3-next": Checkpoint("Qwen3NextConfig", dict(
        vocab_size=105, hidden_size=42, intermediate_size=47, moe_intermediate_size=17, shared_expert_intermediate_size=19,
        num_hidden_layers=4, num_attention_heads=3, num_key_value_heads=1, head_dim=16, linear_num_key_heads=2, linear_num_value_heads=4,
        linear_key_head_dim=8, linear_value_head_dim=10, linear_conv_kernel_dim=4, num_experts=5, num_experts_per_tok=2, norm_topk_prob=True,
        layer_types=["linear_attention", FULL, "linear_attention", FULL], tie_word_embeddings=False,
        rope_parameters=rope(1000.0, partial_rotary_factor=0.25)),
        ["gated delta net beside full attention", "2 key heads, 4 value heads, convolution over 4 tokens", "norm weights as 1 + w",
         "output gate in q_proj", "q/k norm", "partial rotary 0.25", "MoE with gated shared expert"],
        gains={"A_log": 0.8, "dt_bias": 0.8},
        v4=dict(full_attention_interval=2, layer_types=..., rope_scaling=None, attn_output_gate=True)),
}


def legacy_config(config, v4):
    """The same config in the spelling of transformers 4 (rope_theta, rope_scaling, torch_dtype), with the keys of `v4` on top."""
    config = dict(config)
    v4 = dict(v4)
    if "text_config" in config:
        text = legacy_config(config["text_config"], dict(sliding_window_pattern=2, cache_implementation="hybrid", layer_types=..., tie_word_embeddings=...,
                                                         use_bidirectional_attention=..., transformers_version=...))
        config["text_config"] = text
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
    config["torch_dtype"] = config.pop("dtype", "bfloat16")
    config["transformers_version"] = "4.46.0"
    for key, value in v4.items():
        if value is ...:
            config.pop(key, None)
        else:
            config[key] = value
    return config
