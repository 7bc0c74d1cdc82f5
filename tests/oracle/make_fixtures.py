#!/usr/bin/env python3
"""Writes tests/fixtures: tiny seeded models of every family and what PyTorch says about them.

    python make_fixtures.py [--only FAMILY] [--out ../fixtures]

For each family: config.json (keys of transformers 5), config.v4.json (keys of transformers 4), model.safetensors (the policy),
reference.safetensors (a different frozen reference) and expected.json (every recorded number, in float64 rounded to 12 digits).
Three checks run first, and the script fails where one does not hold: transformers loads the written folder with both configurations and
agrees; plain float32 agrees within a third of the tolerances; each feature of the family moves the result when it is left out.
"""
import argparse
import copy
import json
import math
import random
import re
from pathlib import Path

import torch
import transformers
from safetensors.torch import save_file
from transformers import AutoModelForCausalLM

import method
from families import FAMILIES, Family
from models import load, perturbed, random_weights
from schedules import schedules

BETAS, EPS, LEARNING_RATE, WEIGHT_DECAY, STEPS = (0.9, 0.999), 1e-8, 5e-4, 0.1, 5
LOG_PROB_TOLERANCE = 3e-4  # of a sequence's sum, absolute
SAMPLED_ELEMENTS = 16  # of every tensor after training
MPO = dict(beta=1.0, gap="length_normalized", gap_target="reference")
NO_RETENTION = dict(kind="none")
TRAINED = dict(objective=MPO | dict(beta=1.5), retention=dict(kind="hidden", weight=0.7, pooling="last", reduction="sum"))


def random_rows(family: Family) -> list[dict]:
    """Token ids only; 0 is padding and never occurs. Rows 0, 1 and 4 share a dominant pair. Sequences have 5 to 70 tokens."""
    generator = random.Random(family.seed)
    vocabulary = range(3, family.config["vocab_size"])
    lengths = [((19, 21, 12), (30, 40, 33)), (None, (2, 3, 17)), ((7, 1, 9), (25, 12, 4)), ((33, 8, 30), (5, 26, 26)), (None, (12, 2, 38))]
    rows, ids = [], lambda n: generator.choices(vocabulary, k=n)
    for dominant, target in lengths[: family.n_rows]:
        pair = lambda n: dict(prompt=ids(n[0]), chosen=ids(n[1]), rejected=ids(n[2]))
        rows.append(dict(dominant=pair(dominant) if dominant else copy.deepcopy(rows[0]["dominant"]), target=pair(target)))
    # Two answers that begin alike, as real ones do: what they share is not the prompt.
    rows[3]["target"]["rejected"][:4] = rows[3]["target"]["chosen"][:4]
    return rows


def cases(family: Family) -> dict[str, dict]:
    """Every loss that is recorded with its gradient."""
    hidden = lambda pooling, reduction: dict(kind="hidden", weight=1.0, pooling=pooling, reduction=reduction)
    alone = {
        "mpo": MPO,
        "mpo, beta 1.5": MPO | dict(beta=1.5),
        "mpo, summed gap": MPO | dict(gap="sum"),
        "mpo, gap of the policy": MPO | dict(gap_target="policy"),
    }
    found = {name: dict(objective=objective, retention=NO_RETENTION) for name, objective in alone.items()}
    # Padding behind a window sees no token at all: the released code's pooling is undefined there.
    poolings = ["last", "last_prompt", "mean"] + ([] if _slides(family) else ["mean_padded"])
    for pooling in poolings:
        for reduction in ("sum", "mean"):
            found[f"{pooling}, {reduction}"] = dict(objective=None, retention=hidden(pooling, reduction))
    found["last_content, mean"] = dict(objective=None, retention=hidden("last_content", "mean"))
    found["kl"] = dict(objective=None, retention=dict(kind="kl", weight=1.0))
    found["mpo, beta 1.5, and 0.7 last, sum"] = TRAINED
    found["mpo and 0.7 kl"] = dict(objective=MPO, retention=dict(kind="kl", weight=0.7))
    return found


def _slides(family: Family) -> bool:
    return family.window is not None and family.config.get("use_sliding_window", True)


def norm(tensors) -> float:
    return math.sqrt(sum(float((t.double() ** 2).sum()) for t in tensors))


def backward(policy, reference, rows, case) -> tuple[dict, list[torch.Tensor]]:
    policy.zero_grad(set_to_none=True)
    mpo, retention, loss = method.losses(policy, reference, rows, **case)
    loss.backward()
    gradients = [torch.zeros_like(p) if p.grad is None else p.grad for p in policy.parameters()]
    return dict(mpo=mpo.item(), retention=retention.item(), loss=loss.item(), grad_norm=norm(gradients)), gradients


def record_scores(policy, reference, rows) -> list[dict]:
    def pair(model, ids):
        scores = method.score_pair(model, ids)
        told = {n: dict(log_prob=s.token_log_probs.sum().item(), tokens=len(s.token_log_probs), token_log_probs=s.token_log_probs.tolist()) for n, s in scores.items()}
        return told | dict(reward_gap=method.reward_gap(scores, "length_normalized").item())

    with torch.no_grad():
        return [
            dict(
                policy=dict(dominant=pair(policy, row["dominant"]), target=pair(policy, row["target"])),
                reference=dict(dominant=pair(reference, row["dominant"]), target=pair(reference, row["target"])),
            )
            for row in rows
        ]


def record_hidden(policy, rows) -> list[dict]:
    """The final-norm hidden state of the last token of a few sequences."""
    with torch.no_grad():
        return [
            dict(row=i, side=side, response=response, last=method.score(policy, rows[i][side]["prompt"], rows[i][side][response]).hidden[-1].tolist())
            for i, side, response in ((0, "dominant", "chosen"), (0, "target", "rejected"), (2, "dominant", "chosen"))
        ]


def record_cases(family, policy, reference, rows) -> list[dict]:
    found = []
    for name, case in cases(family).items():
        values, gradients = backward(policy, reference, rows, case)
        found.append(dict(name=name, **case, values=values, parameter_grad_norms=[norm([g]) for g in gradients]))
    return found


def train(policy, reference, rows, clip_norm: float) -> list[dict]:
    """AdamW at a constant rate over all rows at once; only matrices decay. Losses and norms are those before each update."""
    parameters = list(policy.parameters())
    matrices, vectors = [p for p in parameters if p.ndim >= 2], [p for p in parameters if p.ndim < 2]
    groups = [dict(params=matrices, weight_decay=WEIGHT_DECAY), dict(params=vectors, weight_decay=0.0)]
    optimizer = torch.optim.AdamW(groups, lr=LEARNING_RATE, betas=BETAS, eps=EPS)
    steps = []
    for _ in range(STEPS):
        values, _ = backward(policy, reference, rows, TRAINED)
        torch.nn.utils.clip_grad_norm_(parameters, clip_norm)
        optimizer.step()
        steps.append(values)
    return steps


def record_training(family, weights, reference, rows, dtype=torch.float64) -> dict:
    free = train(load(family.config, weights, dtype), reference, rows, clip_norm=math.inf)
    norms = sorted(step["grad_norm"] for step in free)
    clip_norm = float(f"{norms[STEPS // 2] * 0.9:.2g}")  # bites on about half of the steps
    policy = load(family.config, weights, dtype)
    steps = train(policy, reference, rows, clip_norm)
    clipped = sum(step["grad_norm"] > clip_norm for step in steps)
    assert 0 < clipped < STEPS, f"clipping at {clip_norm} acts on {clipped} of {STEPS} steps"
    final = {name: value.detach().double() for name, value in policy.named_parameters()}
    return dict(
        **TRAINED,
        optimizer=dict(kind="adamw", lr=LEARNING_RATE, betas=BETAS, eps=EPS, weight_decay=WEIGHT_DECAY, clip_norm=clip_norm),
        steps=steps,
        final=[
            dict(l2=norm([value]), l2_of_change=norm([value - weights[name].double()]), elements=value.reshape(-1)[sampled(value.numel())].tolist())
            for name, value in final.items()
        ],
    )


def sampled(n_elements: int) -> torch.Tensor:
    """Evenly spread: element floor(i * n / SAMPLED_ELEMENTS), each at most once."""
    n = min(n_elements, SAMPLED_ELEMENTS)
    return torch.tensor([i * n_elements // n for i in range(n)])


def record(family: Family, weights, reference_weights, rows, dtype=torch.float64) -> dict:
    policy, reference = load(family.config, weights, dtype), load(family.config, reference_weights, dtype)
    return dict(
        parameters=[name for name, _ in policy.named_parameters()],
        rows=rows,
        scores=record_scores(policy, reference, rows),
        hidden=record_hidden(policy, rows),
        cases=record_cases(family, policy, reference, rows),
        training=record_training(family, weights, reference, rows, dtype),
    )


def check_final_norm(model, rows):
    """transformers' last hidden state is the vector that enters the head."""
    seen = {}
    hook = model.model.norm.register_forward_hook(lambda module, inputs, output: seen.update(output=output))
    _, hidden = method.forward(model, [rows[0]["target"]["prompt"]])
    hook.remove()
    assert torch.equal(seen["output"], hidden)


def summed_log_probs(model, rows) -> torch.Tensor:
    """One number a sequence, over both sides of every row."""
    with torch.no_grad():
        pairs = [row[side] for row in rows for side in ("dominant", "target")]
        return torch.stack([s.token_log_probs.sum() for pair in pairs for s in method.score_pair(model, pair).values()])


def check_forgotten(family: Family, weights, rows):
    """Each feature, left out, moves some sequence's summed log-probability by ten times the tolerance or more."""
    truth = summed_log_probs(load(family.config, weights), rows)
    for feature, edit in family.forgotten.items():
        model = load(family.config | edit if isinstance(edit, dict) else family.config, weights)
        if callable(edit):
            edit(model)
        moved = (summed_log_probs(model, rows) - truth).abs()
        print(f"  without {feature:32} log-probability moves by up to {moved.max():8.3f}, {moved.mean():8.3f} in mean")
        assert moved.max() > 10 * LOG_PROB_TOLERANCE, f"nobody would notice if {feature} were forgotten"


def check_folder(folder: Path, family: Family, weights, rows):
    """transformers reads what was written, with either configuration."""
    truth = summed_log_probs(load(family.config, weights, torch.float32), rows)
    for name in ("config.json", "config.v4.json"):
        config = transformers.AutoConfig.from_pretrained(folder / name)
        model = AutoModelForCausalLM.from_pretrained(folder, config=config, dtype=torch.float32, attn_implementation="eager").eval()
        difference = (summed_log_probs(model, rows) - truth).abs().max().item()
        assert difference < 1e-4, f"{folder / name}: {difference}"


def check_float32(exact: dict, rounded: dict):
    """How far plain float32 is from the recorded numbers, against the tolerances of the test that reads them."""
    relative = lambda a, b: abs(a - b) / max(abs(b), 1e-12)
    largest = lambda difference, pairs: max(difference(a, b) for a, b in pairs)
    absolute = lambda a, b: abs(a - b)
    sides = [(r[model][side], e[model][side]) for r, e in zip(rounded["scores"], exact["scores"]) for model in e for side in e[model]]
    responses = [(r[name], e[name]) for r, e in sides for name in method.RESPONSES]
    both = list(zip(rounded["cases"], exact["cases"]))
    steps = list(zip(rounded["training"]["steps"], exact["training"]["steps"]))
    final = list(zip(rounded["training"]["final"], exact["training"]["final"]))
    flat = lambda pairs, key: [ab for r, e in pairs for ab in zip(r[key], e[key])]
    values = lambda pairs, key: [(r[key], e[key]) for r, e in pairs]
    of_cases = [(r["values"], e["values"]) for r, e in both]
    # What is tiny beside the whole gradient is judged by the whole.
    of_parameters = [
        abs(a - b) / (b + 1e-3 * e["values"]["grad_norm"]) for r, e in both for a, b in zip(r["parameter_grad_norms"], e["parameter_grad_norms"])
    ]
    noise = {
        "token's log-probability": (largest(absolute, flat(responses, "token_log_probs")), 1e-4),
        "summed log-probability": (largest(absolute, values(responses, "log_prob")), LOG_PROB_TOLERANCE),
        "reward gap": (largest(absolute, values(sides, "reward_gap")), 2e-5),
        "hidden state": (largest(absolute, flat(zip(rounded["hidden"], exact["hidden"]), "last")), 5e-5),
        "loss": (largest(relative, values(of_cases, "loss")), 5e-5),
        "gradient norm": (largest(relative, values(of_cases, "grad_norm")), 5e-5),
        "parameter's gradient norm": (max(of_parameters), 2e-4),
        "loss over five steps": (largest(relative, values(steps, "loss")), 2e-4),
        "gradient norm over them": (largest(relative, values(steps, "grad_norm")), 2e-4),
        "final weight": (largest(absolute, flat(final, "elements")), 1e-5),
        "norm of a final tensor": (largest(relative, values(final, "l2")), 1e-6),
        "norm of its change": (largest(relative, values(final, "l2_of_change")), 1e-4),
    }
    for name, (found, tolerance) in noise.items():
        print(f"  float32 differs in {name:26} by {found:.1e} (tolerance {tolerance:.0e})")
        assert found < tolerance / 3, name


def rounded_to_12_digits(value):
    match value:
        case float():
            return float(f"{value:.12g}")
        case dict():
            return {k: rounded_to_12_digits(v) for k, v in value.items()}
        case list() | tuple():
            return [rounded_to_12_digits(v) for v in value]
    return value


def write_json(path: Path, value):
    """Indented, with lists of plain values on one line."""
    text = json.dumps(rounded_to_12_digits(value), indent=1)
    text = re.sub(r"\[\s+([^\[\]{}]*?)\s+\]", lambda m: "[" + re.sub(r",\s+", ", ", m[1]) + "]", text)
    path.write_text(text + "\n")


def write_family(name: str, family: Family, out: Path):
    print(name)
    folder = out / name
    folder.mkdir(parents=True, exist_ok=True)
    weights, rows = random_weights(family), random_rows(family)
    reference_weights = perturbed(weights, family)
    model = load(family.config, weights)
    check_final_norm(model, rows)
    check_forgotten(family, weights, rows)

    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    save_file(reference_weights, folder / "reference.safetensors", metadata={"format": "pt"})
    stored = str(family.dtype).removeprefix("torch.")
    write_json(folder / "config.v4.json", family.config | dict(torch_dtype=stored, transformers_version="4.51.3"))
    model.config.architectures, model.config.dtype = family.config["architectures"], family.dtype
    model.config.save_pretrained(folder)
    check_folder(folder, family, weights, rows)

    exact = record(family, weights, reference_weights, rows)
    check_float32(exact, record(family, weights, reference_weights, rows, torch.float32))
    versions = dict(torch=torch.__version__.split("+")[0], transformers=transformers.__version__)
    write_json(folder / "expected.json", dict(family=name, versions=versions, pad_id=method.PAD_ID, **exact))


def main():
    arguments = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    arguments.add_argument("--only", choices=FAMILIES)
    arguments.add_argument("--out", type=Path, default=Path(__file__).parent.parent / "fixtures")
    arguments = arguments.parse_args()
    torch.set_num_threads(1)
    transformers.utils.logging.disable_progress_bar()
    torch.use_deterministic_algorithms(True)
    for name, family in FAMILIES.items():
        if arguments.only in (None, name):
            write_family(name, family, arguments.out)
    if arguments.only is None:
        write_json(arguments.out / "schedules.json", schedules())


if __name__ == "__main__":
    main()
