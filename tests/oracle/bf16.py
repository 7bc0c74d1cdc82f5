#!/usr/bin/env python3
"""Writes tests/fixtures/bf16.safetensors: a linear layer's forward and both products of its backward, with inputs rounded to bf16.

    python bf16.py

`x`, `weight` and `dy` are float32. `y`, `dx`, `dweight` are float64 products of the rounded inputs; `autocast.*` is what a layer under
torch.autocast makes of them on the CPU, which rounds the results to bf16 too.
"""
from pathlib import Path

import torch
from safetensors.torch import save_file

N, D_IN, D_OUT = 19, 70, 45


def products(x: torch.Tensor, weight: torch.Tensor, dy: torch.Tensor) -> dict[str, torch.Tensor]:
    return dict(y=x @ weight.T, dx=dy @ weight, dweight=dy.T @ x)


def autocast(x: torch.Tensor, weight: torch.Tensor, dy: torch.Tensor) -> dict[str, torch.Tensor]:
    x, weight = x.clone().requires_grad_(), weight.clone().requires_grad_()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        y = torch.nn.functional.linear(x, weight)
    assert y.dtype == torch.bfloat16
    y.backward(dy.bfloat16())
    return dict(y=y.detach(), dx=x.grad.bfloat16(), dweight=weight.grad.bfloat16())


def main() -> None:
    generator = torch.Generator().manual_seed(1)
    random = lambda *shape: torch.randn(*shape, generator=generator)
    inputs = dict(x=random(N, D_IN), weight=random(D_OUT, D_IN) / D_IN**0.5, dy=random(N, D_OUT))
    # A tie of each kind, the largest value that bf16 has, and what rounds to it.
    inputs["x"][0, :4] = torch.tensor([1 + 2**-8, 1 + 3 * 2**-8, -(2 - 2**-7), 2 - 2**-9])
    exact = products(**{name: tensor.bfloat16().double() for name, tensor in inputs.items()})
    rounded = autocast(**inputs)
    for name, tensor in exact.items():
        # Half a unit in the last place of bf16, and what f32 sums leave.
        assert ((rounded[name].double() - tensor).abs() <= 2**-8 * 1.01 * tensor.abs() + 1e-5).all(), name
        # Rounding the inputs shows: this is not what float32 makes.
        assert (products(**inputs)[name].double() - tensor).abs().max() > 1e-3, name
    path = Path(__file__).parent / "../fixtures/bf16.safetensors"
    save_file(inputs | exact | {f"autocast.{name}": tensor for name, tensor in rounded.items()}, path)


if __name__ == "__main__":
    main()
