#!/usr/bin/env python3
"""The gate of layouts: every gradient of any layout is that of one rank. See tests/gate/gate.c for what is compared, and how.

    python3 tests/test_layouts_gate.py                    a part drawn by a seed (ATHANOR_GATE_SEED, ATHANOR_GATE_CASES)
    python3 tests/test_layouts_gate.py --all              the whole product, within an hour on two cores
    python3 tests/test_layouts_gate.py --list             its cases
    python3 tests/test_layouts_gate.py --model CONFIG.yaml KEY=VALUE ...     any configuration in any layout, on as many ranks

The product: {data 1,2,4} x {tensor 1,2,4} x {pipeline 1,2,4} x {context 1,2} x {ZeRO 0-3} x {schedules}, up to 8 ranks, over
models with odd vocabularies, heads that are no power of two and layers that stages do not divide, each with recompute on and
off in turn. A value that this build's configuration does not know (athanor train --keys) joins when it does.
"""
import itertools
import os
import random
import re
import subprocess
import sys
import tempfile

from test_train import ATHANOR, RANKS_ENVIRONMENT, SANITIZED, SOURCE, check, run, write
import test_train

GATE = os.path.join(os.environ["ATHANOR_BUILD"], "tests", "layouts_gate")
RANKS = 8

MODELS = {
    # Learned positions, biases, a tied head; 12 heads; 9 layers that no number of stages divides.
    "gpt2": "family: gpt2, layers: 9, width: 48, heads: 12, context: 32, vocabulary: 301",
    # Grouped queries, a gate, rotary positions, a head of its own; channels that 4 does not divide, layers that 4 and 8 stages do not.
    "llama": "family: llama, layers: 10, width: 72, heads: 12, groups: 4, ffn_width: 130, context: 32, vocabulary: 307",
    # The bits of dropout must be those of the sample, not of the rank.
    "dropout": "family: gpt2, layers: 8, width: 48, heads: 4, context: 32, vocabulary: 301, dropout: 0.2",
}
CONFIG = """
folder: run
seed: 7
device: {device}
threads: 1
model: {{{model}}}
data: {{corpus: corpus, documents_apart: true}}
train: {{steps: 20, micro_batch: 2, batch_tokens: 1024, head_rows: 16, z_loss: 1e-3}}
optimizer: {{learning_rate: 1e-3}}
schedule: {{warmup_steps: 5}}
checkpoint: {{every: 0}}
validation: {{every: 0}}
parallel: {{bucket_mib: 0.01}}
"""


def known():
    """The values that the configuration accepts, from its own table."""
    keys = dict(re.findall(r"^\| `(parallel\.\w+)` \|(.*)$", run("train", "--keys"), re.M))
    axis = lambda name, values: values if name in keys and "not yet supported" not in keys[name] else (1,)
    choices = lambda name: re.findall(r"`([\w-]+)`", keys[name].split("One of")[1]) if name in keys and "One of" in keys[name] else []
    most = max(int(level) for level in re.findall(r"(?<![\d.])([0-3]) (?=\w)", keys["parallel.zero"]))
    return {"data": (1, 2, 4), "tensor": axis("parallel.tensor", (1, 2, 4)), "pipeline": axis("parallel.pipeline", (1, 2, 4)),
            "context": axis("parallel.context", (1, 2)), "zero": range(most + 1), "schedule": choices("parallel.schedule")}


def layouts():
    """Each layout as words, on two ranks or more, and some only once."""
    values = known()
    for data, tensor, pipeline, context in itertools.product(values["data"], values["tensor"], values["pipeline"], values["context"]):
        ranks = data * tensor * pipeline * context
        if not 2 <= ranks <= RANKS:
            continue
        for zero in values["zero"] if data * context > 1 else (0,):
            for schedule in values["schedule"] if pipeline > 1 else (None,):
                words = [f"parallel.{k}={v}" for k, v in (("data", data), ("tensor", tensor), ("pipeline", pipeline), ("context", context))
                         if v > 1 or k == "data"]
                words += [f"parallel.zero={zero}"] * (zero > 0)
                if schedule not in (None, "1f1b"):
                    chunks = 1 if schedule == "zb-h1" else 2
                    words += [f"parallel.schedule={schedule}"] + [f"parallel.chunks={chunks}"] * (chunks > 1)
                yield words


def cases():
    """All of the product, each with what is switched in turn."""
    turn = 0
    for model in MODELS:
        for words in layouts():
            recompute = ("none", "full", "selective")[turn % 3]
            more = [f"train.recompute={recompute}"] * (recompute != "none")
            more += ["parallel.sequence=false"] * (turn % 4 == 3 and any("tensor" in w for w in words))
            more += ["train.micro_batch=1"] * (turn % 5 == 4)
            yield [f"{model}.yaml", *words, *more]
            turn += 1
        # A step that the ranks cannot share evenly.
        yield [f"{model}.yaml", "parallel.data=3"]
        yield [f"{model}.yaml", "parallel.data=3", "parallel.tensor=2", "parallel.zero=1", "train.micro_batch=1"]


def make(device="cpu"):
    """Configurations and a corpus of documents, most of them shorter than a sample: ranks have unequal numbers of targets."""
    chance = random.Random(5)
    os.makedirs("texts")
    words = re.findall(r"\w+", open(f"{SOURCE}/core/keys.h").read())
    for i in range(300):
        write(f"texts/{i:03}.txt", " ".join(chance.choices(words, k=chance.choice((1, 2, 3, 5, 8, 30)))))
    run("data", "pack", "--set", "T=texts/*.txt", "--out", "packed", "--shards", "1")
    run("tokenizer", "train", "--input", "packed/train/*.jsonl.zst", "--vocab-size", "301", "--out", "tokenizer.json")
    run("data", "build", "--input", "packed/train/*.jsonl.zst", "--tokenizer", "tokenizer.json", "--out", "corpus")
    for name, model in MODELS.items():
        write(f"{name}.yaml", CONFIG.format(model=model, device=device))


def gate(chosen, ranks=RANKS, expect=0):
    """Runs cases in one start; returns their lines."""
    write("cases", "".join(" ".join(c) + "\n" for c in chosen))
    environment = {**RANKS_ENVIRONMENT, "OMPI_MCA_mpi_yield_when_idle": "1"}
    lines = []
    with open("told", "w+") as told:
        with subprocess.Popen(["mpirun", "-n", str(ranks), GATE, "@cases"], stdout=subprocess.PIPE, stderr=told, text=True, env=environment) as process:
            for line in process.stdout:
                print(line, end="", flush=True)
                lines.append(line.rstrip())
        told.seek(0)
        if not check(process.returncode == expect, f"exit code {process.returncode} of the gate, expected {expect}"):
            print("\n".join(l for l in told.read().splitlines() if not l.startswith(("  ", "memory plan")))[-3000:], file=sys.stderr)
    return lines


def size(case):
    product = 1
    for word in case:
        name, _, value = word.partition("=")
        product *= int(value) if name in ("parallel.data", "parallel.tensor", "parallel.pipeline", "parallel.context") else 1
    return product


def drawn(count):
    """A part of the product in which every value of every axis is, for each of the models in turn."""
    chance = random.Random(os.environ.get("ATHANOR_GATE_SEED", "1"))
    everything = list(cases())
    chance.shuffle(everything)
    chosen, seen = [], set()
    for case in everything:  # first what shows a value for the first time
        new = {(case[0], w) for w in case[1:] if w != "parallel.data=1"} - seen
        if len(new) > 1 and len(chosen) < count:
            chosen.append(case)
            seen |= {(case[0], w) for w in case[1:]}
    chosen += [c for c in everything if c not in chosen][:max(0, count - len(chosen))]
    return chosen


def main():
    folder = tempfile.mkdtemp(prefix="athanor-gate-")
    if sys.argv[1:2] == ["--model"]:
        config, *words = sys.argv[2:]
        environment = {**RANKS_ENVIRONMENT, "OMPI_MCA_mpi_yield_when_idle": "1"}
        sys.exit(subprocess.run(["mpirun", "-n", str(size(words)), GATE, config, *words], env=environment).returncode)
    os.chdir(folder)
    everything = list(cases())
    if sys.argv[1:] == ["--list"]:
        print("\n".join(" ".join(c) for c in everything))
        return
    make()
    chosen = everything if sys.argv[1:] == ["--all"] else drawn(int(os.environ.get("ATHANOR_GATE_CASES", 3 if SANITIZED else 20)))
    lines = gate(chosen)
    check(sum(l.endswith(" ok") for l in lines) == len(chosen), f"not all of {len(chosen)} layouts ran and passed")
    os.chdir("/")
    subprocess.run(["rm", "-rf", folder])
    print(f"{test_train.checks} checks, {test_train.failures} failed")
    sys.exit(test_train.failures > 0)


if __name__ == "__main__":
    main()
