"""Values and gradients of every loss that MPO is compared with, from TRL's own code where TRL has it.

    python3 -m venv /tmp/trl && /tmp/trl/bin/pip install torch==2.15.0 transformers==5.23.0 trl==1.16.0
    /tmp/trl/bin/python objectives.py        # seconds; writes ../fixtures/objectives.json

Made with Python 3.11, torch 2.15.0, transformers 5.23.0, trl 1.16.0. `tests/it/objectives.rs` reads the fixture; no test runs Python.

A model is a table: it knows of each sequence of token ids the log-probability of every answer token, random and requiring gradients, and
answers with `log_probs` or with logits whose log-softmax they are. TRL's trainers are classes whose loss methods are called here without an
instance of them, on a namespace that holds their settings. Everything is float64. `source` of a case says whose code gave its numbers:

    sft                    transformers' `fixed_cross_entropy`, as SFTTrainer reaches it, in two micro-batches of one optimizer batch
    dpo, ipo, robust_dpo   `DPOTrainer._compute_loss` (TRL reads no `label_smoothing` under `sigmoid`: see next line)
    dpo, e > 0; ipo, sums  the authors' formulas: `preference_loss` of eric-mitchell/direct-preference-optimization
    r_dpo                  the paper's formula (eq. 9), which TRL does not have
    cpo, simpo             `CPOTrainer.get_batch_loss_metrics`
    orpo                   `ORPOTrainer.odds_ratio_loss`; its other half is here -avg_w, the paper's, where TRL's covers the prompt too
    kto                    `KTOTrainer._compute_loss`, z included
"""
import json
import random
from collections import defaultdict
from functools import partial
from pathlib import Path
from types import SimpleNamespace

import torch
import torch.nn.functional as F
from transformers.loss.loss_utils import fixed_cross_entropy
from trl import DPOTrainer, KTOTrainer
from trl.experimental.cpo import CPOTrainer
from trl.experimental.orpo import ORPOTrainer

from models import Float64

VOCAB, PAD, IGNORED = 11, 0, -100
ANSWERS = ("chosen", "rejected")
N_ROWS = 5


class Table:
    """Answer log-probabilities of sequences of token ids; the policy's are leaves, the reference's constants."""

    training = True

    def __init__(self):
        self.answers = {}

    def add(self, prompt, answer, log_probs, requires_grad):
        leaf = torch.tensor(log_probs, dtype=torch.float64, requires_grad=requires_grad)
        self.answers[tuple(prompt + answer)] = leaf
        return leaf

    def _rows(self, input_ids):
        for ids in input_ids.tolist():
            ids = tuple(token for token in ids if token != PAD)
            yield len(ids), self.answers[ids]

    def log_probs(self, input_ids):
        length = input_ids.shape[1] - 1
        rows = [F.pad(answer, (n - 1 - len(answer), length - (n - 1))) for n, answer in self._rows(input_ids)]
        return torch.stack(rows)

    def logits(self, input_ids):
        """[B, T, V]: at each position that predicts an answer token, logits that are normalised log-probabilities already."""
        batch = []
        for ids, (n, answer) in zip(input_ids, self._rows(input_ids)):
            rest = torch.log1p(-answer.exp()) - torch.log(torch.tensor(VOCAB - 1.0, dtype=torch.float64))
            targets = F.one_hot(ids[n - len(answer) : n], VOCAB).double()
            known = targets * answer[:, None] + (1 - targets) * rest[:, None]
            batch.append(F.pad(known, (0, 0, n - 1 - len(answer), input_ids.shape[1] - (n - 1))))
        return torch.stack(batch)

    def __call__(self, input_ids, labels=None, **_):
        if labels is None:
            return SimpleNamespace(logits=self.logits(input_ids))
        zeros = torch.zeros(input_ids.shape[0], input_ids.shape[1] - 1)
        return SimpleNamespace(log_probs=self.log_probs(input_ids), entropy=zeros, mean_logits=zeros, is_top1=zeros.bool())


def settings(**more):
    """A trainer's attributes, as a namespace."""
    accelerator = SimpleNamespace(device=torch.device("cpu"), gather=lambda x: x, gather_for_metrics=lambda x: x)
    return SimpleNamespace(
        model=SimpleNamespace(training=True), accelerator=accelerator, aux_loss_enabled=False, precompute_ref_logps=True,
        is_encoder_decoder=False, pad_token_id=PAD, _metrics={"train": defaultdict(list)}, _total_train_tokens=0, _tp_size=1, **more,
    )


def make_rows(rng):
    """Random rows: prompt, answers, their lengths, the policy's and the reference's log-probabilities."""
    rows = []
    for number in range(N_ROWS):
        tokens = lambda n: [rng.randrange(1, VOCAB) for _ in range(n)]
        # A prompt begins with its number in unary, so that no two sequences are the same.
        row = {"prompt": tokens(2) + [number + 1] * 2, "policy": {}, "reference": {}}
        for answer in ANSWERS:
            row[answer] = tokens(rng.randrange(2, 9))
            row["policy"][answer] = [-rng.uniform(0.05, 3.5) for _ in row[answer]]
            row["reference"][answer] = [-rng.uniform(0.05, 3.5) for _ in row[answer]]
        rows.append(row)
    return rows


def padded(sequences, value=PAD):
    longest = max(len(sequence) for sequence in sequences)
    return torch.tensor([sequence + [value] * (longest - len(sequence)) for sequence in sequences])


class Batch:
    """The rows as a policy table with fresh leaves, and as TRL's inputs."""

    def __init__(self, rows):
        self.rows = rows
        self.policy = Table()
        self.leaves = [{a: self.policy.add(row["prompt"], row[a], row["policy"][a], True) for a in ANSWERS} for row in rows]

    def sums(self, answer):
        return torch.stack([leaf[answer].sum() for leaf in self.leaves])

    def averages(self, answer):
        return torch.stack([leaf[answer].mean() for leaf in self.leaves])

    def lengths(self, answer):
        return torch.tensor([float(len(row[answer])) for row in self.rows], dtype=torch.float64)

    def reference(self, answer):
        return torch.tensor([sum(row["reference"][answer]) for row in self.rows], dtype=torch.float64)

    def ratios(self, answer):
        return self.sums(answer) - self.reference(answer)

    def inputs(self, answers):
        """Of the given answers one after another: input_ids, attention_mask, completion_mask."""
        sequences = [(row["prompt"], row[a]) for a in answers for row in self.rows]
        return {
            "input_ids": padded([prompt + answer for prompt, answer in sequences]),
            "attention_mask": padded([[1] * len(prompt + answer) for prompt, answer in sequences]),
            "completion_mask": padded([[0] * len(prompt) + [1] * len(answer) for prompt, answer in sequences]),
        }

    def side_by_side(self):
        """CPO's and ORPO's batch."""
        batch = {}
        for a in ANSWERS:
            batch[f"{a}_input_ids"] = padded([row["prompt"] + row[a] for row in self.rows])
            batch[f"{a}_attention_mask"] = (batch[f"{a}_input_ids"] != PAD).long()
            batch[f"{a}_labels"] = padded([[IGNORED] * len(row["prompt"]) + row[a] for row in self.rows], IGNORED)
        return batch


def mean_metrics(trainer):
    return {key: values[-1] for key, values in trainer._metrics["train"].items() if key.split("/")[0] in ("rewards", "logps")}


def dpo_family(batch, loss_type, beta, label_smoothing=0.0):
    trainer = settings(
        beta=beta, label_smoothing=label_smoothing, loss_types=[loss_type], loss_weights=[1.0], ld_alpha=None, use_weighting=False,
        f_divergence_type="reverse_kl",
    )
    inputs = batch.inputs(ANSWERS) | {f"ref_{a}_logps": batch.reference(a) for a in ANSWERS}
    return DPOTrainer._compute_loss(trainer, batch.policy, inputs, False), mean_metrics(trainer)


def cpo_family(batch, loss_type, beta, **more):
    trainer = settings(beta=beta, alpha=0.0, label_smoothing=0.0, loss_type=loss_type, **more)
    for method in ("concatenated_forward", "cpo_loss"):
        setattr(trainer, method, partial(getattr(CPOTrainer, method), trainer))
    trainer.concatenated_inputs, trainer.get_batch_logps = CPOTrainer.concatenated_inputs, CPOTrainer.get_batch_logps
    loss, metrics = CPOTrainer.get_batch_loss_metrics(trainer, batch.policy, batch.side_by_side())
    return loss, {key: value for key, value in metrics.items() if key.split("/")[0] in ("rewards", "logps")}


def sft(batch):
    n_tokens = int(batch.lengths("chosen").sum())
    loss = 0.0
    for rows in (slice(0, 2), slice(2, None)):  # two micro-batches; HF's Trainer hands each the batch's number of tokens
        inputs = batch.side_by_side()
        labels, logits = inputs["chosen_labels"][rows], batch.policy.logits(inputs["chosen_input_ids"][rows])
        loss = loss + fixed_cross_entropy(logits[:, :-1].flatten(0, 1), labels[:, 1:].flatten(), num_items_in_batch=n_tokens)
    return loss, {}


def preference_loss(batch, beta, label_smoothing=0.0, ipo=False):
    """`preference_loss` of the DPO authors' trainers.py, by its formula."""
    logits = batch.ratios("chosen") - batch.ratios("rejected")
    if ipo:
        return ((logits - 1 / (2 * beta)) ** 2).mean(), {}
    losses = -F.logsigmoid(beta * logits) * (1 - label_smoothing) - F.logsigmoid(-beta * logits) * label_smoothing
    return losses.mean(), {}


def r_dpo(batch, beta, length_weight):
    longer = batch.lengths("chosen") - batch.lengths("rejected")
    return -F.logsigmoid(beta * (batch.ratios("chosen") - batch.ratios("rejected")) + length_weight * longer).mean(), {}


def orpo(batch, beta):
    averages = [batch.averages(a) for a in ANSWERS]
    with Float64():  # its `.float()` is for bf16 inputs
        losses, chosen, rejected, *_ = ORPOTrainer.odds_ratio_loss(settings(beta=beta), *averages)
    means = {"rewards/chosen": chosen.mean().item(), "rewards/rejected": rejected.mean().item()}
    return -averages[0].mean() - losses.mean(), means


def kto(batch, beta, desirable_weight, undesirable_weight, drift, rng):
    """Mismatched answers of the policy are the reference's plus `drift` on average, so that z is positive or clamped."""
    mismatched, scores = [], []
    for index, row in enumerate(batch.rows):
        other = batch.rows[(index + 1) % len(batch.rows)]
        for a in ANSWERS:
            reference = [-rng.uniform(0.05, 3.5) for _ in other[a]]
            policy = [-rng.uniform(0.05, 3.5) for _ in other[a]]
            policy[0] += sum(reference) - sum(policy) + drift + rng.uniform(-0.5, 0.5)
            batch.policy.add(row["prompt"], other[a], policy, True)
            mismatched.append((row["prompt"], other[a]))
            scores.append({"policy": sum(policy), "reference": sum(reference), "n_tokens": len(policy)})
    trainer = settings(
        beta=beta, desirable_weight=desirable_weight, undesirable_weight=undesirable_weight, loss_type="kto", calculate_KL=True,
    )
    trainer._compute_kl_logps = partial(KTOTrainer._compute_kl_logps, trainer)
    inputs = batch.inputs(ANSWERS)
    inputs |= {
        "label": torch.tensor([a == "chosen" for a in ANSWERS for _ in batch.rows]),
        "ref_logps": torch.cat([batch.reference(a) for a in ANSWERS]),
        "KL_input_ids": padded([prompt + answer for prompt, answer in mismatched]),
        "KL_completion_mask": padded([[0] * len(prompt) + [1] * len(answer) for prompt, answer in mismatched]),
        "ref_KL_logps": torch.tensor([score["reference"] for score in scores], dtype=torch.float64),
    }
    inputs["KL_attention_mask"] = (inputs["KL_input_ids"] != PAD).long()
    return KTOTrainer._compute_loss(trainer, batch.policy, inputs, False), mean_metrics(trainer), scores


def gradients(batch):
    """d loss / d log-probability of an answer token: the same for each token of the answer, as every loss here is one of sums."""
    found = []
    for leaves in batch.leaves:
        of_row = {}
        for answer, leaf in leaves.items():
            gradient = torch.zeros_like(leaf) if leaf.grad is None else leaf.grad
            assert torch.allclose(gradient, gradient[:1].expand_as(gradient), rtol=1e-9, atol=1e-13), gradient
            of_row[answer] = gradient[0].item()
        found.append(of_row)
    return found


def main():
    rng = random.Random(20261122)
    rows = make_rows(rng)
    trl, formula = "trl", "formula"
    runs = [
        ("sft", {}, "transformers", sft),
        ("dpo", {"beta": 0.1}, trl, lambda b: dpo_family(b, "sigmoid", 0.1)),
        ("dpo", {"beta": 0.7}, trl, lambda b: dpo_family(b, "sigmoid", 0.7)),
        ("dpo", {"beta": 0.3, "label_smoothing": 0.15}, formula, lambda b: preference_loss(b, 0.3, 0.15)),
        ("ipo", {"beta": 0.1}, trl, lambda b: dpo_family(b, "ipo", 0.1)),
        ("ipo", {"beta": 0.4, "length_normalized": False}, formula, lambda b: preference_loss(b, 0.4, ipo=True)),
        ("robust_dpo", {"beta": 0.2, "label_smoothing": 0.1}, trl, lambda b: dpo_family(b, "robust", 0.2, 0.1)),
        ("robust_dpo", {"beta": 0.5, "label_smoothing": 0.4}, trl, lambda b: dpo_family(b, "robust", 0.5, 0.4)),
        ("r_dpo", {"beta": 0.2, "length_weight": 0.05}, formula, lambda b: r_dpo(b, 0.2, 0.05)),
        ("cpo", {"beta": 0.1}, trl, lambda b: cpo_family(b, "sigmoid", 0.1, cpo_alpha=1.0)),
        ("cpo", {"beta": 0.3, "nll_weight": 0.25}, trl, lambda b: cpo_family(b, "sigmoid", 0.3, cpo_alpha=0.25)),
        ("simpo", {"beta": 2.0, "gamma_beta_ratio": 0.5}, trl, lambda b: cpo_family(b, "simpo", 2.0, cpo_alpha=0.0, simpo_gamma=1.0)),
        ("simpo", {"beta": 2.5, "gamma_beta_ratio": 0.1}, trl, lambda b: cpo_family(b, "simpo", 2.5, cpo_alpha=0.0, simpo_gamma=0.25)),
        ("orpo", {"beta": 0.1}, trl, lambda b: orpo(b, 0.1)),
        ("orpo", {"beta": 1.0}, trl, lambda b: orpo(b, 1.0)),
        ("kto", {"beta": 0.1}, trl, lambda b: kto(b, 0.1, 1.0, 1.0, 1.5, rng)),
        ("kto", {"beta": 0.3, "desirable_weight": 1.33, "undesirable_weight": 0.75}, trl, lambda b: kto(b, 0.3, 1.33, 0.75, -2.0, rng)),
    ]
    cases = []
    for kind, keys, source, run in runs:
        batch = Batch(rows)
        loss, metrics, *mismatched = run(batch)
        loss.backward()
        case = {"objective": {"kind": kind, **keys}, "source": source, "loss": loss.item(), "metrics": metrics}
        case |= {"mismatched": mismatched[0]} if mismatched else {}
        cases.append(case | {"d_log_prob": gradients(batch)})
    fixture = {"rows": [{"policy": row["policy"], "reference": row["reference"]} for row in rows], "cases": cases}
    path = Path(__file__).parent.parent / "fixtures" / "objectives.json"
    path.write_text(json.dumps(fixture, indent=1) + "\n")
    print(f"{len(cases)} cases, {path.stat().st_size} bytes")


if __name__ == "__main__":
    main()
