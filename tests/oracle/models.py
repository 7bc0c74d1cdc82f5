"""Seeded weights, loading, and a forward that is float64 throughout.

transformers computes norms, the attention softmax and the rotary angles in float32 whatever the model's type. `Float64` reads every
float32 in its forward as float64, so that the recorded numbers have no rounding of their own: what a float32 engine differs by is the
engine's error alone. (The inverse frequencies are rounded to float32 when the model is built; that is the model's definition.)
"""
import torch
from torch.overrides import TorchFunctionMode
from transformers import AutoConfig, AutoModelForCausalLM

from families import Family


class Float64(TorchFunctionMode):
    def __torch_function__(self, function, types, args=(), kwargs=None):
        if function is torch.Tensor.float:
            function = torch.Tensor.double
        widen = lambda value: torch.float64 if value is torch.float32 else value
        return function(*(widen(a) for a in args), **{name: widen(a) for name, a in (kwargs or {}).items()})


def random_weights(family: Family) -> dict[str, torch.Tensor]:
    """Weights by name: sharp attention, peaky logits, norm weights and biases away from one and zero."""
    generator = torch.Generator().manual_seed(family.seed)
    weights = {}
    for name, parameter in _build(family.config).named_parameters():
        noise = torch.randn(parameter.shape, generator=generator)
        if name.endswith("norm.weight"):
            value = (0.0 if family.one_plus_norm else 1.0) + 0.3 * noise
        elif name.endswith(".bias"):
            value = 0.5 * noise
        elif name == "model.embed_tokens.weight":
            value = family.embedding_std * noise
        else:
            gain = {"q_proj": 2.0, "k_proj": 2.0, "lm_head": 1.5}.get(name.split(".")[-2], 1.0)
            value = gain * noise / parameter.shape[1] ** 0.5
        weights[name] = value
    return _stored(weights, family)


def perturbed(weights: dict[str, torch.Tensor], family: Family, strength: float = 0.15) -> dict[str, torch.Tensor]:
    """The reference: every tensor moved by a share of its own spread."""
    generator = torch.Generator().manual_seed(family.seed + 1000)
    return _stored({n: w + strength * w.std() * torch.randn(w.shape, generator=generator) for n, w in weights.items()}, family)


def _stored(weights, family: Family):
    """Values that are exact in the stored type, and short enough for bfloat16 where that type is float32."""
    narrow = torch.bfloat16 if family.dtype == torch.float32 else family.dtype
    return {name: weight.to(narrow).to(family.dtype) for name, weight in weights.items()}


def _build(config: dict):
    keys = {name: value for name, value in config.items() if name != "model_type"}
    return AutoModelForCausalLM.from_config(AutoConfig.for_model(config["model_type"], **_copied(keys)), attn_implementation="eager")


def _copied(value):
    """transformers edits nested dictionaries of a configuration in place."""
    return {k: _copied(v) for k, v in value.items()} if isinstance(value, dict) else value


def load(config: dict, weights: dict[str, torch.Tensor], dtype=torch.float64):
    """The model in evaluation mode. Weights that the configuration has no place for (a switched-off bias) are left out."""
    model = _build(config)
    missing, _ = model.load_state_dict(weights, strict=False)
    assert set(missing) <= ({"lm_head.weight"} if config["tie_word_embeddings"] else set()), missing
    model.tie_weights()
    return model.eval().to(dtype)
