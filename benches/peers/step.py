#!/usr/bin/env python3
"""One MPO optimizer step a row in PyTorch: what the engine's speed is measured against. A peer of `../step`; see `common.py`.

As released (github.com/circle-hit/MPO, `CustomDPOTrainer`), engines `released_sdpa` and `released_eager`:

- policy and reference are both in memory; every step runs the policy on the dominant and on the target pair, the reference on the dominant pair;
- a pair is one batch padded to a multiple of 8; all hidden states and the logits of every position over the whole vocabulary are made, in float32;
- retention is the squared difference of hidden states averaged over all positions of a row.

`lean` is the same loss with what a careful user of transformers would leave out: the reference is computed once, before the clock starts; the
head runs on the target side only, at response positions only. Attention is SDPA.

Where there was a choice PyTorch got the faster one: fused AdamW, nothing logged, and no labels handed to the model (the released code does, so
transformers also computes a loss there that nobody uses).
"""
import copy

import torch
from common import IGNORED, PAD_ID, Clock, autocast, read_job
from torch.nn.functional import cross_entropy, mse_loss
from transformers import AutoModelForCausalLM, LlamaConfig

BETA, LEARNING_RATE, CLIP_NORM = 1.0, 6e-7, 1.0


def random_pair(generator, n_vocab: int, lengths: dict) -> dict:
    """A batch of two sequences (chosen, rejected) over one prompt, padded to a multiple of 8; labels are ignored but on the response."""
    n_prompt, n_responses = lengths["prompt"], torch.tensor([[lengths["chosen"]], [lengths["rejected"]]])
    width = -(-(n_prompt + int(n_responses.max())) // 8) * 8
    position = torch.arange(width).expand(2, -1)
    is_token = position < n_prompt + n_responses
    ids = torch.randint(3, n_vocab, (2, width), generator=generator).masked_fill(~is_token, PAD_ID)
    ids[1, :n_prompt] = ids[0, :n_prompt]
    labels = ids.masked_fill((position < n_prompt) | ~is_token, IGNORED)
    return dict(input_ids=ids, attention_mask=is_token.long(), labels=labels)


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
    return rewards[0] - rewards[1]


def released_loss(policy, reference, dominant: dict, target: dict) -> torch.Tensor:
    _, hidden = released_forward(policy, dominant)
    rewards_target, _ = released_forward(policy, target)
    with torch.no_grad():
        rewards_reference, hidden_reference = released_forward(reference, dominant)
    return (BETA * gap(rewards_target) - gap(rewards_reference)) ** 2 + mse_loss(hidden, hidden_reference)


def lean_loss(policy, reference: tuple, dominant: dict, target: dict) -> torch.Tensor:
    gap_reference, hidden_reference = reference
    hidden = hidden_states(policy, dominant).mean(1)
    return (BETA * gap(lean_forward(policy, target)) - gap_reference) ** 2 + mse_loss(hidden.float(), hidden_reference)


@torch.no_grad()
def reference_scores(model, job: dict, dominant: dict) -> tuple[torch.Tensor, torch.Tensor]:
    with autocast(job):
        return gap(lean_forward(model, dominant)), hidden_states(model, dominant).mean(1).float()


def main():
    job = read_job()
    is_lean = job["engine"] == "lean"
    attention = "eager" if job["engine"] == "released_eager" else "sdpa"
    config = LlamaConfig(**job["config"])
    policy = AutoModelForCausalLM.from_config(config, attn_implementation=attention, dtype=torch.float32).train()  # no dropout here
    generator = torch.Generator().manual_seed(0)
    rows = [[random_pair(generator, config.vocab_size, row[side]) for side in ("dominant", "target")] for row in job["rows"]]
    reference = None if is_lean else copy.deepcopy(policy).eval().requires_grad_(False)
    references = [reference_scores(policy, job, dominant) if is_lean else reference for dominant, _ in rows]
    optimizer = torch.optim.AdamW(policy.parameters(), lr=LEARNING_RATE, weight_decay=0.0, fused=True)
    loss_function = lean_loss if is_lean else released_loss
    losses = []

    def step(row, reference):
        with autocast(job):
            loss = loss_function(policy, reference, *row)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(policy.parameters(), CLIP_NORM)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        losses.append(loss.item())

    clock = Clock()
    clock.measure(job, [lambda row=row, scores=scores: step(row, scores) for row, scores in zip(rows, references)])
    clock.report(attention=policy.config._attn_implementation, n_parameters=policy.num_parameters(), loss=losses[-1])


if __name__ == "__main__":
    main()
