#!/usr/bin/env python3
"""Makes small runs that stopped in the middle, for tests/test_old_runs.py: once for each released version, with its program.

    tests/golden/runs/make_runs.py PROGRAM FOLDER        e.g. build/athanor tests/golden/runs/0.1.0

FOLDER gets a corpus, a held-out one, their tokenizer and, for each run, a folder as it is when a run was killed after step 6 of
12: config.yaml (its paths are relative to FOLDER), the checkpoint of step 6 and the record. course.jsonl beside them holds what
the same run wrote to its end, from step 1 on, and machine.json what decides its bits. The CPU computes with the instruction
set that every x86-64 has, whose bits do not depend on the processor. A run of a card needs a program with the simulated card.

The runs of a released version are never made again: what they hold is what users hold.
"""
import json
import os
import random
import shutil
import subprocess
import sys

STEPS, STOP = 12, 6
LLAMA = "family: llama, layers: 2, width: 8, heads: 4, groups: 2, ffn_width: 24, context: 16"
GPT2 = "family: gpt2, layers: 2, width: 8, heads: 2, context: 16"
CARD = "family: llama, layers: 1, width: 16, heads: 2, groups: 1, ffn_width: 32, context: 32, tied_head: true"
RUNS = {  # name: ranks, model, other settings
    "llama": (1, LLAMA, "train.type=fp32"),
    "ranks": (2, LLAMA + ", tied_head: true", "train.type=fp32 parallel.bucket_mib=0.001"),
    "gpt2": (1, GPT2 + ", dropout: 0.1", "train.type=fp32 optimizer.kind=lion optimizer.learning_rate=1e-3"),
    "card": (1, CARD, "device=simulated train.type=bf16 train.masters=false optimizer.moments=8bit train.head_rows=32"),
}
CONFIG = """
folder: {name}
seed: 7
device: cpu
threads: 1
instruction_set: baseline
model: {{{model}}}
data: {{corpus: corpus, validation: held-out}}
train: {{steps: {steps}, micro_batch: 2, batch_tokens: 128, head_rows: 16}}
optimizer: {{learning_rate: 1e-2}}
schedule: {{kind: cosine, warmup_steps: 3}}
checkpoint: {{every: {stop}}}
validation: {{every: 0}}
"""


def write(path, text):
    with open(path, "w") as file:
        file.write(text)


def make_corpus(athanor):
    """Sentences of a small grammar: two sets, and one held-out file."""
    chance = random.Random(3)
    words = ("the a one no each".split(), "fire salt metal vessel stone".split(), "warms holds turns leaves".split())

    def document():
        sentence = lambda: " ".join(chance.choice(words[i]) for i in (0, 1, 2, 0, 1)) + "."
        return " ".join(sentence() for _ in range(chance.randint(2, 6)))
    for name, count in (("Furnace", 40), ("Bench", 24), ("Held", 8)):
        with open(f"{name}.jsonl", "w") as file:
            for _ in range(count):
                file.write(json.dumps({"text": document(), "meta": {"pile_set_name": name}}) + "\n")
    # As few token ids as byte-level pairs allow: rows of the embedding are most of such a model.
    subprocess.run([athanor, "tokenizer", "train", "--input", "Furnace.jsonl", "--vocab-size", "264", "--out", "tokenizer.json"], check=True)
    for out, names in (("corpus", ["Furnace.jsonl", "Bench.jsonl"]), ("held-out", ["Held.jsonl"])):
        inputs = [word for name in names for word in ("--input", name)]
        subprocess.run([athanor, "data", "build", *inputs, "--tokenizer", "tokenizer.json", "--out", out], check=True)
    for name in ("Furnace.jsonl", "Bench.jsonl", "Held.jsonl", "tokenizer.json"):  # corpora and runs have the tokenizer
        os.remove(name)


def make_run(athanor, name, ranks, model, settings):
    write(f"{name}.yaml", CONFIG.format(name=name, model=model, steps=STEPS, stop=STOP))
    command = [athanor, "train", f"{name}.yaml", *settings.split()]
    subprocess.run((["mpirun", "-n", str(ranks)] if ranks > 1 else []) + command, check=True)
    os.remove(f"{name}.yaml")
    shutil.rmtree(f"{name}/checkpoints/step-{STEPS:08d}")
    with open(f"{name}/metrics.jsonl") as file:
        lines = file.readlines()
    write(f"{name}/course.jsonl", "".join(lines))
    write(f"{name}/metrics.jsonl", "".join(l for l in lines if json.loads(l)["step"] <= STOP))
    table = subprocess.run([athanor, "eval", "--checkpoint", name, "--corpus", "held-out"], check=True, capture_output=True, text=True).stdout
    write(f"{name}/held-out.txt", table)


def main():
    athanor, folder = os.path.abspath(sys.argv[1]), sys.argv[2]
    os.makedirs(folder)
    os.chdir(folder)
    make_corpus(athanor)
    for name, (ranks, model, settings) in RUNS.items():
        make_run(athanor, name, ranks, model, settings)


if __name__ == "__main__":
    main()
