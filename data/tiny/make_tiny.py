"""Makes the demonstration model and data of `mpo` from `text.toml`: tokenizer, model, `train.jsonl`, `heldout.jsonl`, `questions.jsonl`.

The model is made to stand where MPO starts: in English it prefers the careful answer, in six other languages it hardly prefers either,
and what it says there is mostly careless, which it has read twice as often. Two phases, both seeded:

1. language modelling on the pairs and on sentences drawn from the grammar, where English answers are careful and the others either;
2. the same, plus a calibration that pulls the length-normalised reward gap RG (arXiv 2505.16869) of each pair towards
   `ENGLISH_GAP` in English and `TARGET_GAP` elsewhere.

Both phases read the target side of every pair, held-out ones too, careful and careless answers alike: that teaches no preference, it
removes the accidental one. Of the held-out pairs' English side only the tokenizer knows, so their English gap is generalisation. No
sentence of `questions.jsonl` is read at all; its turns of phrase are those of the grammar.
The claims about the result are asserted on the bf16 weights that are written.
"""

import json
import random
import re
import tomllib
from dataclasses import dataclass
from pathlib import Path

import torch
import torch.nn.functional as F
from safetensors.torch import save_file
from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import LlamaConfig, LlamaForCausalLM

HERE = Path(__file__).parent
DOMINANT, TARGETS = "en", ["zh", "ja", "ko", "ar", "bn", "sw"]
LANGUAGES = [DOMINANT, *TARGETS]
SEED = 20251122
N_CANARIES = 8  # of each language
N_SITUATIONS = 6  # the first of each grammar: prompt, careful and careless answer of one number belong together, in all languages
N_DRAWN_PAIRS = 6  # training pairs drawn from the grammars, besides those that are written out
N_QUESTIONS = 12  # held out, of each language
VOCABULARY = 1536
PAD, BEGIN, END = "<|pad|>", "<|begin|>", "<|end|>"
SPECIAL = [PAD, BEGIN, END, "<|system|>", "<|user|>", "<|assistant|>"]
ENGLISH_GAP = 1.0  # nats a token: clearly positive, yet within reach of 50 steps of training
TARGET_GAP = -0.05  # next to nothing, on the side of the careless answer: its first words are the likelier ones
CAREFUL_SHARE = 0.3  # of the answers that are read in the target languages; together with the gap, what the model says by itself is careless
READING_STEPS, CALIBRATION_STEPS = 700, 300
PAIR_SHARE = 0.35  # of what is read; the pairs' wording is familiar, so that MPO has the preference to learn and not the words

CHAT_TEMPLATE = (
    "{{ bos_token }}{% for message in messages %}"
    "{% if message['role'] not in ['system', 'user', 'assistant'] %}{{ raise_exception('unknown role ' + message['role']) }}{% endif %}"
    "{{ '<|' + message['role'] + '|>' + message['content'] | trim + '<|end|>' }}"
    "{% endfor %}{% if add_generation_prompt %}{{ '<|assistant|>' }}{% endif %}"
)


@dataclass(frozen=True)
class Pair:
    """One prompt with its careful (chosen) and careless (rejected) answer, in one language."""

    name: str
    split: str
    lang: str
    prompt: str
    chosen: str
    rejected: str


# ---------------------------------------------------------------- text


def read_pairs(text):
    return [Pair(p["name"], p["split"], lang, *p[lang]) for p in text["pair"] for lang in LANGUAGES]


def fit_korean_particles(sentence):
    """`을(를)` after a word: the first form when its last syllable ends in a consonant, else the second."""

    def choose(match):
        closed = (ord(match[1]) - ord("가")) % 28 != 0
        return match[1] + (match[2] if closed else match[3])

    return re.sub(r"(\S)([을은이과])\(([를는가와])\)", choose, sentence)


class Grammar:
    """Draws prompts and answers of one language; never a sentence that stands in a pair."""

    def __init__(self, table, lang, taken):
        self.table, self.lang, self.taken = table, lang, taken

    def _words(self, rng):
        return self.words(rng.randrange(len(self.table["things"])), rng.randrange(len(self.table["persons"])))

    def words(self, thing, person):
        forms = {}
        for kind, number in (("thing", thing), ("person", person)):
            forms |= zip(self.table[f"{kind}_forms"], self.table[f"{kind}s"][number].split("/"))
        return forms

    def _sentence(self, kind, situation, words, rng):
        frames = self.table[kind]
        frame = frames[situation] if situation < N_SITUATIONS else rng.choice(frames[N_SITUATIONS:])
        return fit_korean_particles(frame.format(**words))

    def pair(self, rng):
        while True:
            situation = rng.randrange(len(self.table["prompts"]))
            pair = self.draw(situation, self._words(rng), rng)
            if not self.taken.intersection((pair.prompt, pair.chosen, pair.rejected)):
                return pair

    def draw(self, situation, words, rng):
        """What is asked and answered in a situation. English has further ones, of which any answer fits any prompt."""
        sentences = [self._sentence(kind, situation, words, rng) for kind in ("prompts", "careful", "careless")]
        return Pair("", "grammar", self.lang, *sentences)


def write_rows(pairs, split, path):
    by_key = {(p.name, p.lang): p for p in pairs}

    def side(pair):
        return {"lang": pair.lang, "prompt": [{"role": "user", "content": pair.prompt}], "chosen": pair.chosen, "rejected": pair.rejected}

    with open(path, "w", encoding="utf-8") as file:
        for name in dict.fromkeys(p.name for p in pairs if p.split == split):
            for lang in TARGETS:
                row = {"id": f"{DOMINANT}-{name}/{lang}", "dominant": side(by_key[name, DOMINANT]), "target": side(by_key[name, lang])}
                file.write(json.dumps(row, ensure_ascii=False) + "\n")


def parallel_pairs(grammars, n, split, rng):
    """Pairs of all languages at once, situation by situation; none of their sentences may be said elsewhere, and `taken` has them from now on."""
    pairs = []
    for number in range(n):
        while True:
            thing, person = rng.randrange(22), rng.randrange(9)  # of these all languages have the same
            drawn = [(lang, g, g.draw(number % N_SITUATIONS, g.words(thing, person), rng)) for lang, g in grammars.items()]
            if all(not g.taken.intersection((p.prompt, p.chosen, p.rejected)) for _, g, p in drawn):
                break
        for lang, grammar, p in drawn:
            grammar.taken.update((p.prompt, p.chosen, p.rejected))
            pairs.append(Pair(f"{split}-{number}", split, lang, p.prompt, p.chosen, p.rejected))
    return pairs


def write_questions(pairs, path):
    with open(path, "w", encoding="utf-8") as file:
        for lang in LANGUAGES:
            for p in pairs:
                if p.lang == lang:
                    row = {"id": p.name, "lang": lang, "prompt": p.prompt, "kind": "benign", "chosen": p.chosen, "rejected": p.rejected}
                    file.write(json.dumps(row, ensure_ascii=False) + "\n")


def write_canaries(grammars, path):
    """Benign prompts in the manner of the pairs, none of which they are. Every other one has a good answer."""
    with open(path, "w", encoding="utf-8") as file:
        for lang in LANGUAGES:
            rng = random.Random(SEED)  # of its own: the model is made as it would be without them
            drawn = {pair.prompt: pair for pair in (grammars[lang].pair(rng) for _ in range(100))}
            for number, pair in enumerate(list(drawn.values())[:N_CANARIES]):
                answer = {"answer": pair.chosen} if number % 2 == 0 else {}
                row = {"id": f"{lang}-{number}", "lang": lang, "prompt": pair.prompt, "kind": "benign", **answer}
                file.write(json.dumps(row, ensure_ascii=False) + "\n")


# ---------------------------------------------------------------- tokenizer


def train_tokenizer(lines):
    """Byte-level BPE. Marks stay with their letters (Bengali vowel signs); `max_token_length` keeps whole clauses of languages
    without spaces from becoming one token."""
    tokenizer = Tokenizer(models.BPE())
    words = Regex(r" ?[\p{L}\p{M}]+|\p{N}| ?[^\s\p{L}\p{M}\p{N}]+|\s+")
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.Split(words, "isolated"), pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)]
    )
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=VOCABULARY,
        special_tokens=SPECIAL,
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        max_token_length=15,
        show_progress=False,
    )
    tokenizer.train_from_iterator(lines, trainer)
    return tokenizer


def encode(tokenizer, prompt, answer, system=None):
    """The chat template's text as (prompt tokens, response tokens); the response is the answer and its end of turn."""
    system = f"<|system|>{system}{END}" if system else ""
    head = tokenizer.encode(f"{BEGIN}{system}<|user|>{prompt}{END}<|assistant|>").ids
    return head, tokenizer.encode(answer + END).ids


# ---------------------------------------------------------------- model


def build_model():
    config = LlamaConfig(
        vocab_size=VOCABULARY,
        hidden_size=128,
        intermediate_size=352,
        num_hidden_layers=4,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=512,
        rms_norm_eps=1e-5,
        tie_word_embeddings=True,
        pad_token_id=SPECIAL.index(PAD),
        bos_token_id=SPECIAL.index(BEGIN),
        eos_token_id=SPECIAL.index(END),
    )
    return LlamaForCausalLM(config)


def log_probabilities(model, sequences):
    """Log-probability of every token after the first: ([sequences, longest - 1], mask of real tokens, mask of response tokens)."""
    longest = max(len(p) + len(r) for p, r in sequences)
    tokens = torch.zeros(len(sequences), longest, dtype=torch.long)
    real, response = torch.zeros(tokens.shape, dtype=torch.bool), torch.zeros(tokens.shape, dtype=torch.bool)
    for i, (p, r) in enumerate(sequences):
        tokens[i, : len(p) + len(r)] = torch.tensor(p + r)
        real[i, : len(p) + len(r)] = True
        response[i, len(p) : len(p) + len(r)] = True
    # Padding stands on the right, where causal attention keeps it from every real token.
    logits = model(input_ids=tokens).logits[:, :-1].float()
    logp = -F.cross_entropy(logits.transpose(1, 2), tokens[:, 1:], reduction="none")
    return logp, real[:, 1:], response[:, 1:]


def reward_gaps(model, tokenizer, pairs):
    """RG of each pair: mean log-probability of the chosen answer's tokens minus that of the rejected one's."""
    sequences = [encode(tokenizer, p.prompt, answer) for p in pairs for answer in (p.chosen, p.rejected)]
    logp, _, response = log_probabilities(model, sequences)
    means = (logp * response).sum(1) / response.sum(1)
    return means[0::2] - means[1::2]


def train(model, tokenizer, grammars, pairs, rng):
    optimizer = torch.optim.AdamW(model.parameters(), lr=1.0, betas=(0.9, 0.95), weight_decay=0.01)
    seen = {lang: [p for p in pairs if p.lang == lang and (lang != DOMINANT or p.split == "train")] for lang in LANGUAGES}
    n_steps = READING_STEPS + CALIBRATION_STEPS
    for step in range(n_steps):
        rate = 3e-3 * min(1.0, (step + 1) / 50) * (1.0 - step / n_steps)
        for group in optimizer.param_groups:
            group["lr"] = rate
        calibrating = step >= READING_STEPS
        loss = reading_loss(model, tokenizer, grammars, seen, rng, n_sequences=14 if calibrating else 28)
        line = f"step {step + 1:4} reading {loss.item():.3f}"
        if calibrating:
            drawn = [pair for lang in LANGUAGES for pair in (rng.choice(seen[lang]), grammars[lang].pair(rng))]
            goal = torch.tensor([ENGLISH_GAP if p.lang == DOMINANT else TARGET_GAP for p in drawn])
            calibration = (reward_gaps(model, tokenizer, drawn) - goal).square().mean()
            loss = loss + calibration
            line += f" calibration {calibration.item():.4f}"
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        if (step + 1) % 100 == 0:
            print(line, flush=True)


def reading_loss(model, tokenizer, grammars, seen, rng, n_sequences):
    """Next-token loss on prompts and answers. Languages take turns; `PAIR_SHARE` of the texts are pairs, one in ten has a system turn."""
    sequences = []
    for i in range(n_sequences):
        lang = LANGUAGES[i % len(LANGUAGES)]
        pair = rng.choice(seen[lang]) if rng.random() < PAIR_SHARE else grammars[lang].pair(rng)
        careful = lang == DOMINANT or rng.random() < CAREFUL_SHARE
        system = grammars[lang].table["system"] if rng.random() < 0.1 else None
        sequences.append(encode(tokenizer, pair.prompt, pair.chosen if careful else pair.rejected, system))
    logp, real, _ = log_probabilities(model, sequences)
    return -(logp * real).sum() / real.sum()


# ---------------------------------------------------------------- result


@torch.no_grad()
def verify(model, tokenizer, pairs):
    """Prints the mean gap per language and split, and asserts what `README.md` says of them."""
    for split in ("train", "heldout"):
        for lang in LANGUAGES:
            gaps = reward_gaps(model, tokenizer, [p for p in pairs if (p.split, p.lang) == (split, lang)])
            mean = gaps.mean().item()
            print(f"{split:8} {lang} mean gap {mean:+.3f}  lowest {gaps.min():+.3f}  highest {gaps.max():+.3f}")
            assert mean >= 0.5 if lang == DOMINANT else abs(mean - TARGET_GAP) < 0.1, (split, lang, mean)


def write_json(name, value):
    (HERE / name).write_text(json.dumps(value, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")


def save(model, tokenizer):
    tokenizer.save(str(HERE / "tokenizer.json"))
    write_json(
        "tokenizer_config.json",
        {
            "bos_token": BEGIN,
            "eos_token": END,
            "pad_token": PAD,
            "add_bos_token": False,
            "clean_up_tokenization_spaces": False,
            "model_max_length": 512,
            "tokenizer_class": "PreTrainedTokenizerFast",
            "chat_template": CHAT_TEMPLATE,
        },
    )
    weights = {k: v.contiguous() for k, v in model.state_dict().items() if k != "lm_head.weight"}
    save_file({k: v.to(torch.bfloat16) for k, v in weights.items()}, HERE / "model.safetensors", {"format": "pt"})
    model.config.architectures, model.config.dtype = ["LlamaForCausalLM"], torch.bfloat16
    model.config.save_pretrained(HERE)
    ids = {f"{name}_token_id": SPECIAL.index(token) for name, token in (("bos", BEGIN), ("eos", END), ("pad", PAD))}
    write_json("generation_config.json", {**ids, "do_sample": False, "max_new_tokens": 96})


def main():
    torch.set_num_threads(1)
    torch.use_deterministic_algorithms(True)
    torch.manual_seed(SEED)
    rng = random.Random(SEED)
    text = tomllib.loads((HERE / "text.toml").read_text(encoding="utf-8"))
    pairs = read_pairs(text)
    sentences = {split: {s for p in pairs if p.split == split for s in (p.prompt, p.chosen, p.rejected)} for split in ("train", "heldout")}
    assert not sentences["train"] & sentences["heldout"], "a held-out sentence stands in the training rows"
    grammars = {lang: Grammar(text["language"][lang], lang, set(sentences["train"] | sentences["heldout"])) for lang in LANGUAGES}

    # Questions are never read; the drawn training pairs are sentences of the grammar, and may be.
    write_questions(parallel_pairs(grammars, N_QUESTIONS, "question", random.Random(SEED + 1)), HERE / "questions.jsonl")
    more = {lang: Grammar(grammar.table, lang, set(grammar.taken)) for lang, grammar in grammars.items()}
    drawn_pairs = parallel_pairs(more, N_DRAWN_PAIRS, "train", random.Random(SEED + 2))
    write_rows(pairs + drawn_pairs, "train", HERE / "train.jsonl")
    write_rows(pairs, "heldout", HERE / "heldout.jsonl")
    write_canaries(grammars, HERE / "canary.jsonl")
    drawn = [grammars[lang].pair(rng) for lang in LANGUAGES for _ in range(300)]
    tokenizer = train_tokenizer([s for p in pairs * 10 + drawn for s in (p.prompt, p.chosen, p.rejected)])
    lengths = [len(h) + len(r) for p in pairs for a in (p.chosen, p.rejected) for h, r in [encode(tokenizer, p.prompt, a)]]
    print(f"sequences of the pairs: {min(lengths)} to {max(lengths)} tokens, mean {sum(lengths) / len(lengths):.1f}")
    assert max(lengths) <= 120

    model = build_model()
    print(f"{sum(p.numel() for p in model.parameters()):,} parameters")
    train(model, tokenizer, grammars, pairs, rng)
    with torch.no_grad():  # what is checked is what is written
        for parameter in model.parameters():
            parameter.copy_(parameter.to(torch.bfloat16).float())
    save(model, tokenizer)
    verify(model, tokenizer, pairs)


if __name__ == "__main__":
    main()
