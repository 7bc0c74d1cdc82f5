#!/usr/bin/env python3
"""One MPO optimizer step in PyTorch, done the way the released training code does it: what the engine's speed is measured against.

    python step.py [--attention sdpa|eager] [--threads 2] [--steps 5]

The shape is SmolLM2-135M's with random weights; a row is four sequences (chosen and rejected, dominant and target) of 64 prompt and 192 response tokens, in float32. As released (github.com/circle-hit/MPO, `CustomDPOTrainer`):

- policy and reference are both in memory; every step runs the policy on the dominant and on the target pair, the reference on the dominant pair;
- a pair is one batch padded to a multiple of 8; all hidden states and the logits of every position over the whole vocabulary are made, in float32;
- retention is the squared difference of hidden states averaged over all positions of a row.

Where there was a choice PyTorch got the faster one: fused AdamW, nothing logged, and no labels handed to the model (the released code does, so
transformers also computes a loss there that nobody uses). Prints one line of JSON; seconds are wall time, the first steps are not counted.
"""
import argparse
import copy
import json
import platform
import resource
import statistics
import sys
import time

import torch
import transformers
from transformers import LlamaConfig, LlamaForCausalLM

SMOLLM2_135M = dict(
    vocab_size=49152, hidden_size=576, intermediate_size=1536, num_hidden_layers=30, num_attention_heads=9, num_key_value_heads=3,
    rms_norm_eps=1e-5, rope_parameters=dict(rope_type="default", rope_theta=100000.0), max_position_embeddings=8192, tie_word_embeddings=True,
)
PAD_ID, IGNORED = 2, -100


def random_pair(generator, n_prompt: int, n_response: int) -> dict:
    """A batch of two sequences (chosen, rejected) over one prompt, padded to a multiple of 8; labels are ignored but on the response."""
    width = -(-(n_prompt + n_response) // 8) * 8
    ids = torch.full((2, width), PAD_ID)
    ids[:, :n_prompt] = torch.randint(3, 49152, (n_prompt,), generator=generator)
    ids[:, n_prompt : n_prompt + n_response] = torch.randint(3, 49152, (2, n_response), generator=generator)
    position = torch.arange(width).expand(2, -1)
    labels = ids.masked_fill((position < n_prompt) | (position >= n_prompt + n_response), IGNORED)
    return dict(input_ids=ids, attention_mask=(position < n_prompt + n_response).long(), labels=labels)


def concatenated_forward(model, pair: dict) -> tuple[torch.Tensor, torch.Tensor]:
    """The length-normalised log-probability of each response, and the mean hidden state of each row."""
    output = model(input_ids=pair["input_ids"], attention_mask=pair["attention_mask"], use_cache=False, output_hidden_states=True)
    logits, labels = output.logits.float()[:, :-1], pair["labels"][:, 1:]
    counted = labels != IGNORED
    log_probs = logits.log_softmax(-1).gather(2, labels.masked_fill(~counted, 0).unsqueeze(2)).squeeze(2)
    return (log_probs * counted).sum(1) / counted.sum(1), output.hidden_states[-1].mean(1)


def mpo_step(policy, reference, optimizer, dominant: dict, target: dict, beta: float = 1.0) -> float:
    rewards_dominant, hidden = concatenated_forward(policy, dominant)
    rewards_target, _ = concatenated_forward(policy, target)
    with torch.no_grad():
        rewards_reference, hidden_reference = concatenated_forward(reference, dominant)
    gap = lambda rewards: rewards[0] - rewards[1]
    loss = (beta * gap(rewards_target) - gap(rewards_reference)) ** 2 + torch.nn.functional.mse_loss(hidden, hidden_reference)
    loss.backward()
    torch.nn.utils.clip_grad_norm_(policy.parameters(), 1.0)
    optimizer.step()
    optimizer.zero_grad(set_to_none=True)
    return loss.item()


def peak_rss_bytes() -> int:
    """The kernel's high-water mark of this process; Linux counts it in KiB."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--attention", choices=("sdpa", "eager"), default="sdpa")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--steps", type=int, default=5, help="measured steps")
    parser.add_argument("--warm-up", type=int, default=1, help="steps before those")
    parser.add_argument("--prompt-tokens", type=int, default=64)
    parser.add_argument("--response-tokens", type=int, default=192)
    arguments = parser.parse_args()

    torch.set_num_threads(arguments.threads)
    torch.manual_seed(0)
    config = LlamaConfig(**SMOLLM2_135M, attn_implementation=arguments.attention)
    policy = LlamaForCausalLM(config).train()  # no dropout in this family
    reference = copy.deepcopy(policy).eval().requires_grad_(False)
    optimizer = torch.optim.AdamW(policy.parameters(), lr=6e-7, weight_decay=0.0, fused=True)
    generator = torch.Generator().manual_seed(0)
    dominant, target = (random_pair(generator, arguments.prompt_tokens, arguments.response_tokens) for _ in range(2))

    seconds = []
    for step in range(arguments.warm_up + arguments.steps):
        start = time.perf_counter()
        loss = mpo_step(policy, reference, optimizer, dominant, target)
        if step >= arguments.warm_up:
            seconds.append(time.perf_counter() - start)

    print(json.dumps(dict(
        engine="pytorch", way="released", attention=policy.config._attn_implementation, dtype="f32", threads=arguments.threads,
        n_parameters=policy.num_parameters(), sequences=4, prompt_tokens=arguments.prompt_tokens, response_tokens=arguments.response_tokens,
        step_seconds=statistics.median(seconds), all_step_seconds=seconds, peak_rss_bytes=peak_rss_bytes(), loss=loss,
        torch=torch.__version__, transformers=transformers.__version__, machine=platform.machine(),
    )))


if __name__ == "__main__":
    main()
