#!/usr/bin/env python3
"""MPO optimizer steps in PyTorch: what the engine's speed is measured against. A peer of `../step` and of `../gpu`; see `common.py`.

As released (github.com/circle-hit/MPO, `CustomDPOTrainer`), engines `released_sdpa` and `released_eager`:

- policy and reference are both in memory; every step runs the policy on the dominant and on the target pair, the reference on the dominant pair;
- one side of a step (chosen and rejected of one row; of `rows_per_step` rows where the job says so) is one batch padded to a multiple of 8; all hidden states and the logits of every position over the whole vocabulary are made, in float32;
- retention is the squared difference of hidden states averaged over all positions of a row.

`lean` is the same loss with what a careful user of transformers would leave out: the reference is computed once, before the clock starts; the
head runs on the target side only, at response positions only. Attention is SDPA. `lean_checkpointing` is that with activation checkpointing.

Where the job says `weights: bf16`, and on a GPU it does, weights, gradients and the reference are bf16, and AdamW updates f32 copies, as the released
runs had it (bf16 under ZeRO-2).
Running out of the GPU's memory is an answer, `out_of_memory`, not a failure.

Where there was a choice PyTorch got the faster one: fused AdamW, nothing logged, and no labels handed to the model (the released code does, so
transformers also computes a loss there that nobody uses).
"""
import copy
import json

import torch
from common import IGNORED, PAD_ID, Clock, autocast, device_of, has_bf16_weights, read_job
from torch.nn.functional import cross_entropy, mse_loss
from transformers import AutoModelForCausalLM, LlamaConfig

BETA, LEARNING_RATE, CLIP_NORM = 1.0, 6e-7, 1.0


def random_batch(generator, n_vocab: int, lengths: list[dict], device) -> dict:
    """The chosen, then the rejected sequences of some pairs, padded to a multiple of 8; labels are ignored but on the responses."""
    n_prompts = torch.tensor([pair["prompt"] for pair in lengths]).repeat(2).unsqueeze(1)
    n_responses = torch.tensor([pair[answer] for answer in ("chosen", "rejected") for pair in lengths]).unsqueeze(1)
    width = -(-int((n_prompts + n_responses).max()) // 8) * 8
    position = torch.arange(width).expand(2 * len(lengths), -1)
    is_token = position < n_prompts + n_responses
    ids = torch.randint(3, n_vocab, position.shape, generator=generator).masked_fill(~is_token, PAD_ID)
    for row, pair in enumerate(lengths):
        ids[len(lengths) + row, : pair["prompt"]] = ids[row, : pair["prompt"]]
    labels = ids.masked_fill((position < n_prompts) | ~is_token, IGNORED)
    return {name: value.to(device) for name, value in dict(input_ids=ids, attention_mask=is_token.long(), labels=labels).items()}


def log_prob_per_token(log_probs: torch.Tensor, counted: torch.Tensor) -> torch.Tensor:
    return (log_probs * counted).sum(1) / counted.sum(1)


def released_forward(model, pair: dict) -> tuple[torch.Tensor, torch.Tensor]:
    """The length-normalised log-probability of each response, and the mean hidden state of each row."""
    output = model(input_ids=pair["input_ids"], attention_mask=pair["attention_mask"], use_cache=False, output_hidden_states=True)
    logits, labels = output.logits.float()[:, :-1], pair["labels"][:, 1:]
    counted = labels != IGNORED
    log_probs = logits.log_softmax(-1).gather(2, labels.masked_fill(~counted, 0).unsqueeze(2)).squeeze(2)
    return log_prob_per_token(log_probs, counted), output.hidden_states[-1].mean(1)


def hidden_states(model, pair: dict) -> torch.Tensor:
    """Final-norm states, without the head."""
    return model.model(input_ids=pair["input_ids"], attention_mask=pair["attention_mask"], use_cache=False).last_hidden_state


def lean_forward(model, pair: dict) -> torch.Tensor:
    """As `released_forward`'s first value; logits exist at response positions only."""
    labels = pair["labels"][:, 1:]
    counted = labels != IGNORED
    logits = model.lm_head(hidden_states(model, pair)[:, :-1][counted]).float()
    log_probs = torch.zeros(labels.shape).masked_scatter(counted, -cross_entropy(logits, labels[counted], reduction="none"))
    return log_prob_per_token(log_probs, counted)


def gap(rewards: torch.Tensor) -> torch.Tensor:
    """Of each row."""
    chosen, rejected = rewards.chunk(2)
    return chosen - rejected


def released_loss(policy, reference, dominant: dict, target: dict) -> torch.Tensor:
    _, hidden = released_forward(policy, dominant)
    rewards_target, _ = released_forward(policy, target)
    with torch.no_grad():
        rewards_reference, hidden_reference = released_forward(reference, dominant)
    return ((BETA * gap(rewards_target) - gap(rewards_reference)) ** 2).mean() + mse_loss(hidden, hidden_reference)


def lean_loss(policy, reference: tuple, dominant: dict, target: dict) -> torch.Tensor:
    gap_reference, hidden_reference = reference
    hidden = hidden_states(policy, dominant).mean(1)
    return ((BETA * gap(lean_forward(policy, target)) - gap_reference) ** 2).mean() + mse_loss(hidden.float(), hidden_reference)


@torch.no_grad()
def reference_scores(model, job: dict, dominant: dict) -> tuple[torch.Tensor, torch.Tensor]:
    with autocast(job):
        return gap(lean_forward(model, dominant)), hidden_states(model, dominant).mean(1).float()


class MasterWeights:
    """Fused AdamW on f32 copies of bf16 parameters, or on the parameters themselves where they are f32."""

    def __init__(self, parameters):
        self.parameters = list(parameters)
        self.are_copies = self.parameters[0].dtype != torch.float32
        self.masters = [p.detach().float() for p in self.parameters] if self.are_copies else self.parameters
        self.adamw = torch.optim.AdamW(self.masters, lr=LEARNING_RATE, weight_decay=0.0, fused=True)

    @torch.no_grad()
    def step(self):
        torch.nn.utils.clip_grad_norm_(self.parameters, CLIP_NORM)
        if self.are_copies:
            for master, parameter in zip(self.masters, self.parameters):
                master.grad, parameter.grad = parameter.grad.float(), None
        self.adamw.step()
        self.adamw.zero_grad(set_to_none=True)
        if self.are_copies:
            torch._foreach_copy_(self.parameters, self.masters)


def measure(job: dict):
    device = device_of(job)
    is_lean = job["engine"].startswith("lean")
    attention = "eager" if job["engine"] == "released_eager" else "sdpa"
    config = LlamaConfig(**job["config"])
    dtype = torch.bfloat16 if has_bf16_weights(job) else torch.float32
    with device:
        policy = AutoModelForCausalLM.from_config(config, attn_implementation=attention, dtype=dtype).train()  # no dropout here
    if job["engine"] == "lean_checkpointing":
        policy.gradient_checkpointing_enable(gradient_checkpointing_kwargs=dict(use_reentrant=False))
    generator = torch.Generator().manual_seed(0)
    n_rows = job.get("rows_per_step", 1)
    batches = [job["rows"][first : first + n_rows] for first in range(0, len(job["rows"]), n_rows)]
    side = lambda rows, name: random_batch(generator, config.vocab_size, [row[name] for row in rows], device)
    batches = [[side(rows, name) for name in ("dominant", "target")] for rows in batches]
    reference = None if is_lean else copy.deepcopy(policy).eval().requires_grad_(False)
    references = [reference_scores(policy, job, dominant) if is_lean else reference for dominant, _ in batches]
    optimizer = MasterWeights(policy.parameters())
    loss_function = lean_loss if is_lean else released_loss
    losses = []

    def step(batch, reference):
        with autocast(job):
            loss = loss_function(policy, reference, *batch)
        loss.backward()
        optimizer.step()
        losses.append(loss.item())

    clock = Clock(device)
    clock.measure(job, [lambda batch=batch, scores=scores: step(batch, scores) for batch, scores in zip(batches, references)])
    clock.report(attention=policy.config._attn_implementation, n_parameters=policy.num_parameters(), loss=losses[-1])


def main():
    try:
        measure(read_job())
    except torch.OutOfMemoryError as error:
        print(json.dumps(dict(out_of_memory=str(error).splitlines()[0])))


if __name__ == "__main__":
    main()
