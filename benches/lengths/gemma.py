#!/usr/bin/env python3
"""Reconstructs the token lengths of the released Gemma file from those of the Llama file, for whoever has the latter only.

    python gemma.py TABLE > gemma.json        # TABLE: `cargo bench --bench step -- lengths llama_mpo_data.json …` with Gemma's tokenizer and template

Both files have the same 100 English prompts and rejected answers, and the same translated prompts; those lengths are kept. In the Gemma file the chosen
English answer is cut at 128 tokens, and the target answers are translations of the English ones; in the Llama file they are another model's own.
So a target answer gets the English one's length times the language's tokens per English token, measured on the 600 pairs of prompts.
"""
import json
import sys

TOKENS_PER_ENGLISH_TOKEN = dict(zh=0.89, ja=1.13, ko=1.32, ar=1.31, bn=1.14, sw=1.58)
CHOSEN, END_OF_TURN = 128, 1
ABOUT = (
    "10 pairs x 6 languages with the token lengths of circle-hit/MPO data/gemma_mpo_data.json, reconstructed by gemma.py: prompts and rejected English"
    " answers counted with Gemma 3's tokenizer and template, chosen English answers at that file's cap of 128 tokens, target answers estimated from these"
)

rows = json.load(open(sys.argv[1]))["rows"]
for row in rows:
    dominant, target = row["dominant"], row["target"]
    dominant["chosen"] = CHOSEN + END_OF_TURN
    for answer in ("chosen", "rejected"):
        target[answer] = round(TOKENS_PER_ENGLISH_TOKEN[row["language"]] * (dominant[answer] - END_OF_TURN)) + END_OF_TURN
lines = ",\n".join(json.dumps(row, separators=(",", ":")) for row in rows)
print(f'{{"about": {json.dumps(ABOUT)}, "rows": [\n{lines}\n]}}')
