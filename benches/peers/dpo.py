#!/usr/bin/env python3
"""An optimizer step of TRL's DPO trainer: the tool that a user would pick otherwise. A peer of `../step`.

The batch is both pairs of a row (dominant and target), the same four sequences that the MPO step sees, through the trainer's own data path. The
reference's log-probabilities are precomputed before the clock starts. DPO is another loss: it has no retention term, and its head runs on all four
sequences. Gradient checkpointing, the trainer's default, is off, since it costs time; the optimizer is the fused AdamW.
"""
import logging
import sys
import tempfile

import torch
import trl
from common import Clock, read_job
from datasets import Dataset
from datasets.utils.logging import disable_progress_bar
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import AutoModelForCausalLM, LlamaConfig, PreTrainedTokenizerFast, TrainerCallback
from trl import DPOConfig, DPOTrainer


def number_tokenizer(n_vocab: int) -> PreTrainedTokenizerFast:
    """Token i is written as i; the first three are special."""
    special = dict(unk_token="<unk>", eos_token="<eos>", pad_token="<pad>")
    words = list(special.values()) + [str(i) for i in range(3, n_vocab)]
    tokenizer = Tokenizer(models.WordLevel({word: i for i, word in enumerate(words)}, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, **special)


def random_pair(generator, n_vocab: int, lengths: dict) -> dict:
    """Text whose tokens are as many as asked for; the trainer adds the end of a response."""
    words = lambda n: "".join(f" {token}" for token in torch.randint(3, n_vocab, (n,), generator=generator).tolist())
    return dict(prompt=words(lengths["prompt"]), chosen=words(lengths["chosen"] - 1), rejected=words(lengths["rejected"] - 1))


class StepClock(TrainerCallback):
    """Times what lies between the trainer's own marks of an optimizer step."""

    def __init__(self, clock: Clock, warm_up: int):
        self.clock, self.warm_up = clock, warm_up

    def on_step_begin(self, args, state, control, **kwargs):
        self.clock.start()

    def on_step_end(self, args, state, control, **kwargs):
        if state.global_step > self.warm_up:
            self.clock.stop()


def main():
    job = read_job()
    config = LlamaConfig(**job["config"])
    model = AutoModelForCausalLM.from_config(config, attn_implementation="sdpa", dtype=torch.float32)
    generator = torch.Generator().manual_seed(0)
    pairs = [random_pair(generator, config.vocab_size, row[side]) for row in job["rows"] for side in ("dominant", "target")]
    n_steps = job["warm_up"] + job["passes"]
    disable_progress_bar()
    logging.disable(logging.WARNING)
    with tempfile.TemporaryDirectory() as folder:
        arguments = DPOConfig(
            output_dir=folder, per_device_train_batch_size=len(pairs), max_steps=n_steps, bf16=job["dtype"] == "bf16", use_cpu=True,
            precompute_ref_log_probs=True, gradient_checkpointing=False, optim="adamw_torch_fused", weight_decay=0.0, learning_rate=6e-7,
            max_length=None, logging_strategy="no", save_strategy="no", report_to="none", disable_tqdm=True, dataloader_pin_memory=False,
        )
        clock = Clock()
        trainer = DPOTrainer(
            model, args=arguments, train_dataset=Dataset.from_list(n_steps * pairs), processing_class=number_tokenizer(config.vocab_size),
            callbacks=[StepClock(clock, job["warm_up"])],
        )
        batch = next(iter(trainer.get_train_dataloader()))["input_ids"]
        longest = max(row[side]["prompt"] + max(row[side]["chosen"], row[side]["rejected"]) for row in job["rows"] for side in ("dominant", "target"))
        assert list(batch.shape) == [2 * len(pairs), longest], f"the trainer made a batch of {list(batch.shape)}"
        output, sys.stdout = sys.stdout, sys.stderr  # the trainer prints a summary
        trainer.train()
        sys.stdout = output
    clock.report(trl=trl.__version__)


if __name__ == "__main__":
    main()
