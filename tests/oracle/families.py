"""The tiny models: one per family of decoders, each feature strong enough to be missed when it is forgotten.

A configuration is written with the keys of transformers 4; transformers 5 reads those and writes its own. `forgotten` lists what an
implementation might leave out: an edit of the configuration, or a change to the loaded model. `make_fixtures.py` measures how far each of
them moves the log-probabilities, and refuses a family where one of them hardly does.
"""
from dataclasses import dataclass, field
from typing import Callable

import torch

Edit = dict | Callable[[torch.nn.Module], None]


@dataclass
class Family:
    config: dict
    seed: int
    forgotten: dict[str, Edit]
    # The type that the safetensors files have; values are exact in it, so that every loader sees the same numbers.
    dtype: torch.dtype = torch.bfloat16
    # The norm computes x * (1 + w) rather than x * w.
    one_plus_norm: bool = False
    # Standard deviation of the embeddings.
    embedding_std: float = 1.0
    n_rows: int = 5

    @property
    def window(self) -> int | None:
        return self.config.get("sliding_window")


def _bypass(*suffixes: str) -> Callable[[torch.nn.Module], None]:
    """Replaces the modules with these names by the identity."""

    def edit(model):
        for name, module in list(model.named_modules()):
            leaf = name.rsplit(".", 1)[-1]
            if leaf in suffixes:
                setattr(model.get_submodule(name.rsplit(".", 1)[0]), leaf, torch.nn.Identity())

    return edit


def _no_embedding_scale(model):
    embedding = model.get_input_embeddings()
    embedding.forward = lambda ids: torch.nn.functional.embedding(ids, embedding.weight)


def _plain_norm(model):
    """x * w instead of x * (1 + w)."""
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if name.endswith("norm.weight"):
                parameter.sub_(1.0)


def _tiled_key_value_heads(model):
    """Query head h reads key-value head h mod K instead of h // (H / K)."""
    config = model.config
    n_heads, n_kv, width = config.num_attention_heads, config.num_key_value_heads, model.model.layers[0].self_attn.head_dim
    order = torch.arange(n_heads).reshape(-1, n_kv).T.reshape(-1)  # the query head that moves to each place
    rows = (order[:, None] * width + torch.arange(width)).reshape(-1)
    with torch.no_grad():
        for layer in model.model.layers:
            attention = layer.self_attn
            attention.q_proj.weight.copy_(attention.q_proj.weight[rows].clone())
            if attention.q_proj.bias is not None:
                attention.q_proj.bias.copy_(attention.q_proj.bias[rows].clone())
            attention.o_proj.weight.copy_(attention.o_proj.weight[:, rows].clone())


def _embeddings_as_head(model):
    model.lm_head.weight = model.get_input_embeddings().weight


def _zero(*endings: str) -> Callable[[torch.nn.Module], None]:
    def edit(model):
        with torch.no_grad():
            for name, parameter in model.named_parameters():
                if name.endswith(endings):
                    parameter.zero_()

    return edit


def _windows(size: int) -> dict[str, Edit]:
    return {
        "window": {"sliding_window": 4096},
        "window plus 1": {"sliding_window": size + 1},
        "window minus 1": {"sliding_window": size - 1},
    }


def _config(model_type: str, architecture: str, **keys) -> dict:
    common = dict(bos_token_id=1, eos_token_id=2, initializer_range=0.02, attention_dropout=0.0, max_position_embeddings=512, use_cache=True)
    return dict(architectures=[architecture], model_type=model_type, **{**common, **keys})


_LLAMA3_SCALING = dict(rope_type="llama3", factor=8.0, low_freq_factor=1.0, high_freq_factor=4.0, original_max_position_embeddings=64)

FAMILIES = {
    # With theta 300 and 4 frequencies the wavelengths are 6, 26, 109, 453: one kept, one in the smooth band, two divided by the factor.
    "llama": Family(
        seed=11,
        config=_config(
            "llama", "LlamaForCausalLM", vocab_size=272, hidden_size=32, intermediate_size=56, num_hidden_layers=2, num_attention_heads=4,
            num_key_value_heads=2, head_dim=8, hidden_act="silu", rms_norm_eps=1e-5, rope_theta=300.0, rope_scaling=_LLAMA3_SCALING,
            attention_bias=False, mlp_bias=False, pad_token_id=0, tie_word_embeddings=False,
        ),
        forgotten={
            "rope scaling": {"rope_scaling": None},
            "smooth band": {"rope_scaling": {**_LLAMA3_SCALING, "high_freq_factor": 1.001}},
            "rope theta": {"rope_theta": 10000.0},
            "untied head": _embeddings_as_head,
            "order of key-value heads": _tiled_key_value_heads,
            "final norm": _bypass("norm"),
        },
    ),
    "llama_linear": Family(
        seed=22,
        dtype=torch.float32,
        config=_config(
            "llama", "LlamaForCausalLM", vocab_size=261, hidden_size=36, intermediate_size=50, num_hidden_layers=2, num_attention_heads=6,
            num_key_value_heads=3, hidden_act="silu", rms_norm_eps=0.02, rope_theta=1000.0, rope_scaling=dict(type="linear", factor=4.0),
            attention_bias=True, mlp_bias=True, tie_word_embeddings=True,
        ),
        embedding_std=0.4,
        forgotten={
            "rope scaling": {"rope_scaling": None},
            "rms_norm_eps": {"rms_norm_eps": 1e-5},
            "attention_bias": {"attention_bias": False},
            "bias of the output projection": _zero("o_proj.bias"),
            "mlp_bias": {"mlp_bias": False},
        },
    ),
    "mistral": Family(
        seed=33,
        config=_config(
            "mistral", "MistralForCausalLM", vocab_size=256, hidden_size=40, intermediate_size=64, num_hidden_layers=2, num_attention_heads=4,
            num_key_value_heads=1, hidden_act="silu", rms_norm_eps=1e-5, rope_theta=1000.0, sliding_window=14, tie_word_embeddings=False,
        ),
        forgotten={"rope theta": {"rope_theta": 10000.0}, "untied head": _embeddings_as_head, **_windows(14)},
    ),
    "gemma2": Family(
        seed=44,
        one_plus_norm=True,
        embedding_std=0.5,
        config=_config(
            "gemma2", "Gemma2ForCausalLM", vocab_size=260, hidden_size=36, intermediate_size=52, num_hidden_layers=3, num_attention_heads=4,
            num_key_value_heads=2, head_dim=12, hidden_act="gelu_pytorch_tanh", hidden_activation="gelu_pytorch_tanh", rms_norm_eps=1e-6,
            rope_theta=1000.0, sliding_window=12, query_pre_attn_scalar=5, attn_logit_softcapping=3.0, final_logit_softcapping=9.0,
            attention_bias=False, pad_token_id=0, tie_word_embeddings=True,
        ),
        forgotten={
            "attention soft cap": {"attn_logit_softcapping": None},
            "logit soft cap": {"final_logit_softcapping": None},
            "query scale": {"query_pre_attn_scalar": 12},
            "which layers slide": {"layer_types": ["full_attention", "sliding_attention", "full_attention"]},
            "embedding scale": _no_embedding_scale,
            "norm of 1 + w": _plain_norm,
            "norm after attention": _bypass("post_attention_layernorm"),
            "norm after the MLP": _bypass("post_feedforward_layernorm"),
            "tanh approximation of GELU": {"hidden_activation": "gelu"},
            **_windows(12),
        },
    ),
    "gemma3_text": Family(
        seed=55,
        one_plus_norm=True,
        embedding_std=0.5,
        config=_config(
            "gemma3_text", "Gemma3ForCausalLM", vocab_size=256, hidden_size=32, intermediate_size=40, num_hidden_layers=7, num_attention_heads=4,
            num_key_value_heads=1, head_dim=12, hidden_activation="gelu_pytorch_tanh", rms_norm_eps=1e-6, rope_theta=2000.0,
            rope_local_base_freq=100.0, rope_scaling=dict(rope_type="linear", factor=4.0), sliding_window=10, sliding_window_pattern=6,
            query_pre_attn_scalar=3, attn_logit_softcapping=None, final_logit_softcapping=None, attention_bias=False, pad_token_id=0,
            tie_word_embeddings=True,
        ),
        forgotten={
            "query and key norm": _bypass("q_norm", "k_norm"),
            "weight of the query norm": _zero("q_norm.weight"),
            "rope scaling": {"rope_scaling": None},
            "rope base of sliding layers": {"rope_local_base_freq": 2000.0},
            "rope base of full layers": {"rope_theta": 100.0},
            "query scale": {"query_pre_attn_scalar": 12},
            "which layers slide": {"sliding_window_pattern": 5},
            "embedding scale": _no_embedding_scale,
            "norm of 1 + w": _plain_norm,
            **_windows(10),
        },
    ),
    # A sliding_window that use_sliding_window switches off, as the published Qwen2 checkpoints have it.
    "qwen2": Family(
        seed=66,
        dtype=torch.float16,
        embedding_std=0.4,
        config=_config(
            "qwen2", "Qwen2ForCausalLM", vocab_size=264, hidden_size=40, intermediate_size=60, num_hidden_layers=2, num_attention_heads=4,
            num_key_value_heads=2, hidden_act="silu", rms_norm_eps=1e-6, rope_theta=1000.0, use_sliding_window=False, sliding_window=8,
            max_window_layers=0, pad_token_id=0, tie_word_embeddings=True,
        ),
        forgotten={
            "attention bias": _zero("q_proj.bias", "k_proj.bias", "v_proj.bias"),
            "key bias": _zero("k_proj.bias"),
            "rope theta": {"rope_theta": 10000.0},
            "use_sliding_window": {"use_sliding_window": True},
        },
    ),
    "qwen3": Family(
        seed=77,
        config=_config(
            "qwen3", "Qwen3ForCausalLM", vocab_size=256, hidden_size=32, intermediate_size=48, num_hidden_layers=2, num_attention_heads=4,
            num_key_value_heads=2, head_dim=12, hidden_act="silu", rms_norm_eps=1e-6, rope_theta=1000.0, rope_scaling=None, attention_bias=False,
            use_sliding_window=False, sliding_window=None, max_window_layers=2, tie_word_embeddings=False,
        ),
        forgotten={
            "query and key norm": _bypass("q_norm", "k_norm"),
            "weight of the key norm": lambda model: [layer.self_attn.k_norm.weight.data.fill_(1.0) for layer in model.model.layers],
            "rope theta": {"rope_theta": 10000.0},
            "untied head": _embeddings_as_head,
        },
    ),
}
