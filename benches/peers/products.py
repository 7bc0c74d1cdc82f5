#!/usr/bin/env python3
"""The step's list of matrix products by PyTorch, into buffers made before: one of the floors. A peer of `../step`."""
import torch
from common import Clock, read_job


def main():
    job = read_job()
    dtype = torch.bfloat16 if job["dtype"] == "bf16" else torch.float32
    sizes, products = job["list"]["weights"], job["list"]["products"]
    weights = [torch.empty(out, width).uniform_(-0.0346, 0.0346).to(dtype) for out, width in sizes]
    gradients = [torch.zeros(out, width, dtype=dtype) for out, width in sizes]
    shapes = {(product["rows"], width) for product in products for width in sizes[product["weight"]]}
    inputs = {shape: torch.empty(shape).uniform_(-0.0346, 0.0346).to(dtype) for shape in shapes}
    results = {shape: torch.empty(shape, dtype=dtype) for shape in shapes}

    def step():
        for product in products:
            rows, weight = product["rows"], product["weight"]
            out, width = sizes[weight]
            if product["kind"] == "forward":
                torch.mm(inputs[rows, width], weights[weight].T, out=results[rows, out])
            elif product["kind"] == "backward_input":
                torch.mm(inputs[rows, out], weights[weight], out=results[rows, width])
            else:
                gradients[weight].addmm_(inputs[rows, out].T, inputs[rows, width])

    clock = Clock()
    clock.measure(job, [step])
    clock.report()


if __name__ == "__main__":
    main()
