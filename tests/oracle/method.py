"""MPO (arXiv 2505.16869) written down plainly, on one unpadded sequence at a time.

    L  = L1 + weight * L2
    L1 = mean over rows of (beta * RG(policy, target pair) - RG(reference, dominant pair))^2
    L2 = mean over the dominant sequences (chosen and rejected of every row) of the squared distance of pooled final-norm hidden states

RG is the chosen response's log-probability minus the rejected one's, each divided by its number of tokens (`length_normalized`) or not (`sum`).
A row is {"dominant": pair, "target": pair}, a pair is {"prompt": ids, "chosen": ids, "rejected": ids}.
"""
import contextlib
from dataclasses import dataclass

import torch

from models import Float64

RESPONSES = ("chosen", "rejected")
PAD_ID = 0


@dataclass
class Score:
    """One sequence under one model. Shapes: R response tokens, T tokens, D hidden, V vocabulary."""

    token_log_probs: torch.Tensor  # [R]
    response_logits: torch.Tensor  # [R, V], those that predict the response tokens
    hidden: torch.Tensor  # [T, D], after the final norm
    n_prompt: int


def forward(model, ids, mask=None):
    double = next(model.parameters()).dtype == torch.float64
    with Float64() if double else contextlib.nullcontext():
        output = model(input_ids=torch.tensor(ids), attention_mask=mask, use_cache=False, output_hidden_states=True)
    return output.logits, output.hidden_states[-1]


def score(model, prompt: list[int], response: list[int]) -> Score:
    logits, hidden = forward(model, [prompt + response])
    predicting = logits[0, len(prompt) - 1 : -1]
    chosen = predicting.log_softmax(-1).gather(1, torch.tensor(response)[:, None])[:, 0]
    return Score(chosen, predicting, hidden[0], len(prompt))


def score_pair(model, pair: dict) -> dict[str, Score]:
    return {name: score(model, pair["prompt"], pair[name]) for name in RESPONSES}


def reward_gap(scores: dict[str, Score], gap: str) -> torch.Tensor:
    reward = lambda s: s.token_log_probs.mean() if gap == "length_normalized" else s.token_log_probs.sum()
    return reward(scores["chosen"]) - reward(scores["rejected"])


def mpo_loss(policy, reference, rows, *, beta: float, gap: str, gap_target: str) -> torch.Tensor:
    terms = []
    for row in rows:
        teacher = {"reference": reference, "policy": policy}[gap_target]
        with torch.no_grad():
            dominant = reward_gap(score_pair(teacher, row["dominant"]), gap)
        terms.append((beta * reward_gap(score_pair(policy, row["target"]), gap) - dominant) ** 2)
    return torch.stack(terms).mean()


def pool(s: Score, pooling: str) -> torch.Tensor:
    match pooling:
        case "last":
            return s.hidden[-1]
        case "last_content":  # every response ends with one end-of-turn token
            return s.hidden[-2]
        case "last_prompt":
            return s.hidden[s.n_prompt - 1]
        case "mean":
            return s.hidden.mean(0)
    raise ValueError(pooling)


def pool_padded(model, pair: dict) -> list[torch.Tensor]:
    """As the released code: both sequences right-padded to a multiple of 8, padding positions included in the mean."""
    sequences = [pair["prompt"] + pair[name] for name in RESPONSES]
    width = -(-max(map(len, sequences)) // 8) * 8
    ids = [s + [PAD_ID] * (width - len(s)) for s in sequences]
    mask = torch.tensor([[1] * len(s) + [0] * (width - len(s)) for s in sequences])
    return list(forward(model, ids, mask)[1].mean(1))


def pooled(model, pair: dict, pooling: str) -> list[torch.Tensor]:
    if pooling == "mean_padded":
        return pool_padded(model, pair)
    return [pool(s, pooling) for s in score_pair(model, pair).values()]


def hidden_retention(policy, reference, rows, *, pooling: str, reduction: str) -> torch.Tensor:
    terms = []
    for row in rows:
        with torch.no_grad():
            anchors = pooled(reference, row["dominant"], pooling)
        for state, anchor in zip(pooled(policy, row["dominant"], pooling), anchors):
            squares = (state - anchor) ** 2
            terms.append(squares.sum() if reduction == "sum" else squares.mean())
    return torch.stack(terms).mean()


def kl_retention(policy, reference, rows) -> torch.Tensor:
    """KL(reference || policy): mean over a response's tokens, then over the dominant sequences."""
    terms = []
    for row in rows:
        with torch.no_grad():
            anchors = score_pair(reference, row["dominant"])
        for name, s in score_pair(policy, row["dominant"]).items():
            p, q = anchors[name].response_logits.log_softmax(-1), s.response_logits.log_softmax(-1)
            terms.append((p.exp() * (p - q)).sum(-1).mean())
    return torch.stack(terms).mean()


def losses(policy, reference, rows, objective: dict | None, retention: dict) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """L1, L2 and L1 + weight * L2; `objective` None leaves L1 out."""
    zero = torch.zeros(())
    mpo = zero if objective is None else mpo_loss(policy, reference, rows, **objective)
    match retention["kind"]:
        case "hidden":
            kept = hidden_retention(policy, reference, rows, pooling=retention["pooling"], reduction=retention["reduction"])
        case "kl":
            kept = kl_retention(policy, reference, rows)
        case "none":
            return mpo, zero, mpo
    return mpo, kept, mpo + retention["weight"] * kept
