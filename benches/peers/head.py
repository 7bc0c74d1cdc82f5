#!/usr/bin/env python3
"""The head alone in PyTorch, with the logits of all tokens at once: log-probabilities and their gradients. A peer of `../step`.

`extra_bytes` is the peak beyond the weight, its gradient and the hidden states. The gradient is not there before the backward, since PyTorch would then
need a second one to add to it.
"""
import torch
from common import Clock, autocast, peak_rss_bytes, read_job, rss_bytes


def main():
    job = read_job()
    n_vocab, width = job["config"]["vocab_size"], job["config"]["hidden_size"]
    n_tokens = sum(row["target"]["chosen"] + row["target"]["rejected"] for row in job["rows"])
    weight = torch.empty(n_vocab, width).uniform_(-0.0346, 0.0346).requires_grad_()
    hidden = torch.empty(n_tokens, width).uniform_(-0.0346, 0.0346).requires_grad_()
    tokens = torch.randint(3, n_vocab, (n_tokens, 1))

    def step():
        weight.grad = hidden.grad = None
        with autocast(job):
            logits = (hidden @ weight.T).float()
        log_probs = logits.log_softmax(-1).gather(1, tokens).squeeze(1)
        (5e-4 * log_probs.square().sum()).backward()

    before = rss_bytes()
    clock = Clock()
    clock.measure(job, [step])
    clock.report(extra_bytes=peak_rss_bytes() - before - 4 * weight.numel())


if __name__ == "__main__":
    main()
