#!/usr/bin/env python3
"""LoRA adapters between PEFT and mpo, both ways. Made with torch 2.15.0, transformers 5.23.0, peft 0.21.2.

    python peft_lora.py make                     # writes tests/fixtures/peft: adapters that PEFT made, and what PyTorch says under them
    python peft_lora.py check --base DIR --adapter RUN/final --data ROWS.jsonl --gaps GAPS.jsonl

`make` takes the tiny models of `make_fixtures.py`, gives each an adapter with values in A and B, saves it with `save_pretrained`, and records in float64
the log-probabilities of answers and the gradient norms of A and B.

`check` loads an adapter that mpo trained, in PEFT and in float64, and compares the log-probability of every answer with what mpo says of it in f32:
`mpo gaps --model DIR --adapter RUN/final --data ROWS.jsonl --out GAPS.jsonl`. Answers are tokenised here with the tokenizer and template beside the
adapter, and must have as many tokens. It fails above 1e-3 nats.
"""
import argparse
import json
import shutil
from pathlib import Path

import peft
import torch
import transformers
from peft import LoraConfig, PeftModel, get_peft_model
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM, AutoTokenizer

import method
from families import FAMILIES
from make_fixtures import TRAINED
from models import load

FIXTURES = Path(__file__).parent.parent / "fixtures"

# Every projection; some of the upper layers, scaled by the root of the rank; a pattern, beside biases.
ADAPTERS = {
    "llama": dict(r=4, lora_alpha=8, target_modules="all-linear"),
    "gemma2": dict(r=3, lora_alpha=5, use_rslora=True, target_modules=["q_proj", "v_proj", "up_proj"], layers_to_transform=[1, 2]),
    "qwen2": dict(r=2, lora_alpha=3, target_modules=r".*layers\.1\.(self_attn\.k_proj|mlp\.down_proj)"),
}


def base(family: str, file: str):
    """The fixture's model in float64, with its weights as the file has them."""
    return load(FAMILIES[family].config, {name: w.double() for name, w in load_file(FIXTURES / family / file).items()})


def make(family: str) -> None:
    folder = FIXTURES / "peft" / family
    shutil.rmtree(folder, ignore_errors=True)
    model, reference = base(family, "model.safetensors"), base(family, "reference.safetensors")
    torch.manual_seed(FAMILIES[family].seed)
    adapted = get_peft_model(model, LoraConfig(task_type="CAUSAL_LM", **ADAPTERS[family]))
    with torch.no_grad():
        for name, parameter in adapted.named_parameters():
            if "lora_B" in name:
                parameter.normal_(std=0.3)
            if "lora_" in name:
                # Exact in the float32 that the file will have.
                parameter.copy_(parameter.float())
    adapted.to(torch.float32).save_pretrained(folder)
    (folder / "README.md").unlink(missing_ok=True)
    adapted.to(torch.float64).eval()

    rows = json.loads((FIXTURES / family / "expected.json").read_text())["rows"]
    with torch.no_grad():
        pair = lambda model, ids: {n: s.token_log_probs.sum().item() for n, s in method.score_pair(model, ids).items()}
        scores = [{side: pair(model, row[side]) for side in ("dominant", "target")} for row in rows]
        with adapted.disable_adapter():
            plain = pair(model, rows[0]["target"])
    moved = max(abs(scores[0]["target"][answer] - plain[answer]) for answer in plain)
    assert moved > 0.1, f"the adapter of {family} hardly does anything: {moved}"
    _, _, loss = method.losses(model, reference, rows, **TRAINED)
    loss.backward()
    gradients = {name.removeprefix("base_model.model.").replace(".default", ""): p.grad.norm().item() for name, p in adapted.named_parameters() if p.requires_grad}
    versions = dict(torch=torch.__version__.split("+")[0], transformers=transformers.__version__, peft=peft.__version__)
    rounded = lambda value: float(f"{value:.12g}")
    expected = dict(
        versions=versions,
        scores=[{side: {n: rounded(v) for n, v in s.items()} for side, s in row.items()} for row in scores],
        loss=rounded(loss.item()),
        gradient_norms={name: rounded(norm) for name, norm in gradients.items()},
    )
    (folder / "expected.json").write_text(json.dumps(expected, indent=1) + "\n")
    print(f"{family}: {len(gradients)} adapter tensors, log-probabilities moved by up to {moved:.2f} nats")


def check(base_dir: str, adapter: str, data: str, gaps: str) -> None:
    tokenizer = AutoTokenizer.from_pretrained(adapter)
    model = AutoModelForCausalLM.from_pretrained(base_dir, dtype=torch.float64, attn_implementation="eager")
    adapted = PeftModel.from_pretrained(model, adapter, autocast_adapter_dtype=False).to(torch.float64).eval()
    rows = {row["id"]: row for row in map(json.loads, Path(data).read_text().splitlines())}
    said = [json.loads(line) for line in Path(gaps).read_text().splitlines()]
    largest, n_answers, effect = 0.0, 0, 0.0

    def log_prob(pair, answer):
        prompt = pair["prompt"] if isinstance(pair["prompt"], list) else [{"role": "user", "content": pair["prompt"]}]
        before = tokenizer.apply_chat_template(prompt, add_generation_prompt=True, tokenize=False)
        whole = tokenizer.apply_chat_template(prompt + [{"role": "assistant", "content": pair[answer]}], tokenize=False)
        assert whole.startswith(before)
        ids = [tokenizer(text, add_special_tokens=False)["input_ids"] for text in (before, whole[len(before):])]
        scores = method.score(model, *ids)
        with adapted.disable_adapter():
            plain = method.score(model, *ids)
        return scores.token_log_probs.sum().item(), len(ids[1]), plain.token_log_probs.sum().item()

    with torch.no_grad():
        for line in said:
            for side in ("dominant", "target"):
                for answer in ("chosen", "rejected"):
                    theirs, n_tokens, plain = log_prob(rows[line["id"]][side], answer)
                    ours = line[side][answer]
                    assert ours["tokens"] == n_tokens, f"row {line['id']}, {side} {answer}: {ours['tokens']} tokens here, {n_tokens} in transformers"
                    largest, n_answers, effect = max(largest, abs(ours["logp"] - theirs)), n_answers + 1, max(effect, abs(theirs - plain))
    print(f"{n_answers} answers: the adapter moves a log-probability by up to {effect:.3f} nats; mpo and PEFT {peft.__version__} differ by up to {largest:.2e}")
    assert n_answers > 0 and effect > 0.1 and largest < 1e-3


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    commands = parser.add_subparsers(dest="command", required=True)
    commands.add_parser("make")
    checking = commands.add_parser("check")
    for name in ("base", "adapter", "data", "gaps"):
        checking.add_argument(f"--{name}", required=True)
    arguments = parser.parse_args()
    if arguments.command == "make":
        for family in ADAPTERS:
            make(family)
    else:
        check(arguments.base, arguments.adapter, arguments.data, arguments.gaps)


if __name__ == "__main__":
    main()
