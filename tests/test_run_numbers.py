#!/usr/bin/env python3
"""What a run tells, from the outside, against values known without the program: losses, perplexities, bits per byte, rates and counts of
metrics.jsonl, `eval` and `report`, computed here from the weights in the checkpoint, the token files and the texts; and a model whose
numbers are lost.
"""
import array
import glob
import html
import json
import math
import os
import re
import shutil
import subprocess
import sys
import tempfile
import time

import test_train
from test_train import ATHANOR, check, records, run, write

SKIPPED = 77
MODEL = "{family: llama, layers: 2, width: 16, heads: 4, groups: 2, ffn_width: 24, context: 16}"
CONFIG = """
folder: {folder}
model: {model}
data: {{corpus: corpus, validation: held-out, documents_apart: false}}
train: {{steps: 12, micro_batch: 2, batch_tokens: 64}}
optimizer: {{learning_rate: 2e-2}}
schedule: {{warmup_steps: 3, floor: 0.25}}
validation: {{every: 6, samples: 100000}}
"""


def near(value, expected, what, tolerance=2e-5):
    return check(value is not None and abs(value - expected) <= tolerance * abs(expected), f"{what}: {value}, expected {expected}")


def make_corpora():
    """Two sets, one of which holds out much more than the other; and the same as bytes, which know no end of text."""
    words = "the tree of iron stands in a field where seven birds count \u00e9t\u00e9 and winter by the light of 13 moons".split()
    for folder, sets in (("texts", (("Long", 40, 60), ("Short", 30, 9))), ("held", (("Long", 3, 40), ("Short", 1, 1)))):
        os.mkdir(folder)
        for name, files, count in sets:
            for f in range(files):
                text = " ".join(words[(f * 7 + i * i + len(name)) % len(words)] for i in range(count))
                write(f"{folder}/{name}-{f}.txt", text + ".")
        run("data", "pack", *[a for name, _, _ in sets for a in ("--set", f"{name}={folder}/{name}-*.txt")], "--out", f"packed-{folder}")
    run("tokenizer", "train", "--input", "packed-texts/train/*.jsonl.zst", "--vocab-size", "300", "--out", "tokenizer.json")
    run("tokenizer", "train", "--input", "packed-texts/train/*.jsonl.zst", "--vocab-size", "256", "--out", "bytes.json")
    for tokenizer, texts, out in (("tokenizer", "texts", "corpus"), ("tokenizer", "held", "held-out"), ("bytes", "texts", "bytes"),
                                  ("bytes", "held", "bytes-held-out")):
        run("data", "build", "--input", f"packed-{texts}/train/*.jsonl.zst", "--tokenizer", f"{tokenizer}.json", "--out", out)


def tokens_of(corpus, name):
    return array.array("H", open(f"{corpus}/{name}_text_document.bin", "rb").read()).tolist()


def token_bytes(tokenizer):
    """The bytes of text that each id stands for, by the table of GPT-2's bytes and characters."""
    plain = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    document = json.load(open(tokenizer))
    characters = {chr(b) for b in plain} | {chr(256 + i) for i in range(256 - len(plain))}
    sizes = {i: sum(c in characters for c in text) for text, i in document["model"]["vocab"].items()}
    return {**sizes, **{t["id"]: 0 for t in document["added_tokens"] if t["special"]}}


def read_weights(folder):
    """Every tensor of a checkpoint of one rank, as rows of numbers."""
    manifest, out = json.load(open(f"{folder}/manifest.json")), {}
    for tensor in manifest["tensors"]:
        subprocess.run(["h5dump", "-d", f"/weight/{tensor['name']}", "-b", "LE", "-o", "numbers", f"{folder}/rank-00000.h5"], check=True,
                       stdout=subprocess.DEVNULL)
        numbers, shape = array.array("f", open("numbers", "rb").read()).tolist(), tensor["shape"]
        width = shape[1] if len(shape) > 1 else 1
        rows = [numbers[i:i + width] for i in range(0, math.prod(shape), width)]
        out[tensor["name"]] = rows if len(shape) > 1 else [r[0] for r in rows]
    return out


# ---- LLaMA (Touvron et al. 2023), a sequence at a time

def times(matrix, x):
    return [sum(map(float.__mul__, row, x)) for row in matrix]


def norm(x, weight):
    scale = 1 / math.sqrt(sum(v * v for v in x) / len(x) + 1e-5)
    return [v * scale * w for v, w in zip(x, weight)]


def turned(x, position, width):
    out = list(x)
    for i in range(width // 2):
        angle = position * 10000 ** (-2 * i / width)
        c, s = math.cos(angle), math.sin(angle)
        out[i], out[i + width // 2] = x[i] * c - x[i + width // 2] * s, x[i] * s + x[i + width // 2] * c
    return out


def attention(x, weights, layer, heads, groups):
    """x: the normed inputs of a sequence."""
    width = len(x[0]) // heads
    qkv = [times(weights[f"{layer}.attention.qkv.weight"], v) for v in x]
    part = lambda t, at: qkv[t][at * width:(at + 1) * width]
    keys = [[turned(part(t, heads + g), t, width) for t in range(len(x))] for g in range(groups)]
    out = []
    for t in range(len(x)):
        mixed = []
        for h in range(heads):
            g, query = h * groups // heads, turned(part(t, h), t, width)
            scores = [math.exp(sum(map(float.__mul__, query, keys[g][s])) / math.sqrt(width)) for s in range(t + 1)]
            mixed += [sum(w * part(s, heads + groups + g)[i] for s, w in enumerate(scores)) / sum(scores) for i in range(width)]
        out.append(times(weights[f"{layer}.attention.out.weight"], mixed))
    return out


def losses(weights, tokens, targets, layers=2, heads=4, groups=2):
    stream = [weights["embedding.token"][t] for t in tokens]
    for layer in (f"layers.{i}" for i in range(layers)):
        branch = attention([norm(x, weights[f"{layer}.attention.norm.weight"]) for x in stream], weights, layer, heads, groups)
        stream = [[a + b for a, b in zip(x, y)] for x, y in zip(stream, branch)]
        for t, x in enumerate(stream):
            up = times(weights[f"{layer}.mlp.up.weight"], norm(x, weights[f"{layer}.mlp.norm.weight"]))
            half = len(up) // 2
            inner = [g / (1 + math.exp(-g)) * u for g, u in zip(up[:half], up[half:])]
            stream[t] = [a + b for a, b in zip(x, times(weights[f"{layer}.mlp.down.weight"], inner))]
    out = []
    for x, target in zip(stream, targets):
        logits = times(weights["head.weight"], norm(x, weights["final_norm.weight"]))
        out.append(math.log(sum(map(math.exp, logits))) - logits[target])
    return out


def score(weights, corpus, name, length=16):
    """Nats, tokens and bytes of a set."""
    tokens, sizes, sums = tokens_of(corpus, name), token_bytes(f"{corpus}/tokenizer.json"), [0.0, 0, 0]
    for begin in range(0, len(tokens) - 1, length):
        targets = tokens[begin + 1:begin + length + 1]
        sums[0] += sum(losses(weights, tokens[begin:begin + len(targets)], targets))
        sums[1] += len(targets)
        sums[2] += sum(sizes[t] for t in targets)
    return sums


def told_by_eval(*arguments):
    table = [line.split() for line in run("eval", *arguments).splitlines()]
    check(table[0] == "set tokens loss perplexity bits per byte".split(), f"the head of the table: {table[0]}")
    return {row[0]: [float(v) for v in row[1:]] for row in table[1:]}


def test_held_out():
    """The held-out losses of a run, its eval and its report are those of its weights on its held-out texts."""
    write("run.yaml", CONFIG.format(folder="run", model=MODEL))
    run("train", "run.yaml")
    if shutil.which("h5dump") is None:
        return
    weights = read_weights("run/checkpoints/step-00000012")
    sets = {name: score(weights, "held-out", name) for name in ("Long", "Short")}
    check(sets["Long"][1] > 10 * sets["Short"][1] > 0, f"one set is much larger: {sets}")
    sets["all"] = [sum(v) for v in zip(*sets.values())]
    table = told_by_eval("--checkpoint", "run", "--corpus", "held-out")
    valid = {r["set"]: r for r in records("run", "valid") if r["step"] == 12}
    check(set(table) == set(valid) == set(sets), f"sets: {list(table)}, {list(valid)}")
    for name, (nats, tokens, size) in sets.items():
        loss, bits = nats / tokens, nats / math.log(2) / size
        near(valid[name]["loss"], loss, f"{name}: loss on record")
        near(valid[name]["perplexity"], math.exp(loss), f"{name}: perplexity on record", 1e-4)
        near(valid[name]["bits_per_byte"], bits, f"{name}: bits per byte on record")
        for told, expected, what in zip(table[name], (tokens, loss, math.exp(loss), bits), ("tokens", "loss", "perplexity", "bits per byte")):
            near(told, expected, f"{name}: {what} of eval", 1e-4)
    # The page's tiles: held-out loss, bits per byte with the perplexity, training loss, steps.
    run("report", "run")
    page = html.unescape(open("run/report.html", encoding="utf-8").read())
    tiles = dict((words.split(",")[0], (number, words)) for number, words in re.findall(r"<b>([^<]*)</b><span>([^<]*)</span>", page))
    nats, tokens, size = sets["all"]
    near(float(tiles["held-out loss"][0]), nats / tokens, "held-out loss of the report", 5e-4)
    near(float(tiles["bits per byte"][0]), nats / math.log(2) / size, "bits per byte of the report", 5e-4)
    near(float(tiles["bits per byte"][1].split()[-1]), math.exp(nats / tokens), "perplexity of the report", 5e-3)
    told = run("report", "run")
    spent = sum(r["step_seconds"] for r in records("run"))
    shown = re.search(r"steps +12, 768 tokens in .*, ([\d.]+)(k?) tokens/s; [\d.]+k? tokens/s in the median step", told)
    near(shown and float(shown[1]) * (1000 if shown[2] else 1), 768 / spent, "the rate is that of the total beside it", 2e-2)
    check(tiles["steps"][0] == "12" and "768 tokens" in tiles["steps"][1], f"steps and tokens of the report: {tiles['steps']}")


def test_ranks():
    """Two ranks hold out the same as one, and record the same losses."""
    run("train", "run.yaml", "folder=two", ranks=2)
    for one, two in zip(records("run", "valid"), records("two", "valid")):
        check((one["set"], one["step"]) == (two["set"], two["step"]), "the same sets and steps")
        near(two["loss"], one["loss"], f"{one['set']} at {one['step']}: held-out loss of two ranks", 1e-6 if one["step"] == 0 else 1e-4)
        near(two["bits_per_byte"], one["bits_per_byte"], f"{one['set']} at {one['step']}: bits per byte of two ranks", 1e-6 if one["step"] == 0 else 1e-4)


def test_records():
    """Rates by the schedule's formula, counts and speeds by arithmetic."""
    train = records("run")
    check([r["step"] for r in train] == list(range(1, 13)), "a record a step")
    for i, r in enumerate(train):
        progress = (i - 3) / (12 - 1 - 3)
        rate = 2e-2 * ((i + 1) / 3 if i < 3 else 0.25 + 0.75 * 0.5 * (1 + math.cos(math.pi * progress)))
        near(r["lr"], rate, f"rate of step {i + 1}", 1e-6)
        check(r["tokens"] == 64 * (i + 1) and r["skipped"] == 0, f"tokens of step {i + 1}")
        near(r["tokens_per_second"] * r["step_seconds"], 64, f"speed of step {i + 1}", 1e-6)
        check(0 <= r["data_wait"] <= 1 and 0 <= r["comm_wait"] <= 1, f"shares of step {i + 1}")


def test_uniform():
    """A model of zeros foretells all tokens alike: ln V a token, whatever the step, the ranks and the documents, of which bytes mark no end, so
    that the seams between them weigh nothing."""
    config = write("zeros.yaml", CONFIG.format(folder="zeros", model=MODEL.replace("}", ", init_deviation: 0}")).replace("false", "true"))
    for corpus, held, vocabulary, ranks in (("corpus", "held-out", None, 0), ("bytes", "bytes-held-out", 256, 0), ("bytes", "bytes-held-out", 256, 2)):
        folder = f"zeros-{corpus}-{ranks}"
        run("train", config, f"folder={folder}", f"data.corpus={corpus}", f"data.validation={held}", "optimizer.weight_decay=0", ranks=ranks)
        vocabulary = vocabulary or len(token_bytes("tokenizer.json"))
        loss = math.log(vocabulary)
        for r in records(folder):
            near(r["loss"], loss, f"{folder}: loss of step {r['step']}", 1e-6)
            check(r["grad_norm"] == 0, f"{folder}: the gradient is zero")
        for r in records(folder, "valid"):
            near(r["loss"], loss, f"{folder}: held-out loss of {r['set']}", 1e-6)
            near(r["perplexity"], vocabulary, f"{folder}: perplexity of {r['set']}", 1e-5)
            if corpus == "bytes":
                near(r["bits_per_byte"], 8, f"{folder}: a byte is 8 bits", 1e-6)
        table = told_by_eval("--checkpoint", folder, "--corpus", held)
        near(table["all"][1], loss, f"{folder}: loss of eval", 1e-4)
    # Of the bytes of each document all but the first are foretold.
    held = json.load(open("bytes-held-out/manifest.json"))
    for s in held["sets"]:
        check(table[s["name"]][0] == s["tokens"] - s["documents"], f"tokens scored of {s['name']}: {table[s['name']]}")


def test_lost():
    """A model whose weights went beyond all bounds in its last step: one line and exit code 1, wherever it is asked."""
    more = ["optimizer.kind=sgd", "optimizer.learning_rate=1000", "optimizer.weight_decay=10", "optimizer.clip=0", "train.steps=4", "schedule.kind=constant",
            "schedule.warmup_steps=0"]
    run("train", "run.yaml", "folder=lost", "validation.every=0", *more)
    for arguments in (["--prompt", "the tree"], [], ["--temperature", "0", "--prompt", "a"], ["--top-k", "3"]):
        text = run("generate", "--checkpoint", "lost", "--max-tokens", "50", *arguments, code=1, part="the model's logits for token ")
        check(text == "", f"nothing is written: {text!r}")
    text = run("eval", "--checkpoint", "lost", "--corpus", "held-out", code=1, part="set 'Long': the model's loss of token ")
    check("nan" not in text and "inf" not in text, f"no number where there is none: {text}")
    # A run's own looks: before the first step and behind the last they end it, on the way they warn. Two ranks say it once.
    for ranks in (0, 2):
        run("train", "run.yaml", f"folder=lost-{ranks}", *more, code=1, part="the model's loss of token ", ranks=ranks)
    samples = ["samples.every=1", "samples.tokens=5", "samples.prompts=[a, b]"]
    run("train", "run.yaml", "folder=lost-samples", "validation.every=0", *samples, *more, code=1, part="the model's logits for token ")
    for folder in ("lost-0", "lost-samples"):
        check(not glob.glob(f"{folder}/checkpoints/step-*"), f"{folder}: a lost model is no checkpoint")
    line = [ATHANOR, "train", "run.yaml", "folder=lost-way", "validation.every=1", *samples, *more, "train.steps=4"]
    told = subprocess.run(line, capture_output=True, text=True).stderr
    for step in (2, 3):
        for what in ("the model's loss of token ", "the model's logits for token "):
            check(re.search(f"warning: step {step}: .*{what}.* not finite: it begins in layers.0", told), f"{what} at {step}: {told[-2000:]}")
    written = [json.loads(l) for l in open("lost-way/samples.jsonl")]
    check(all("\0" not in s["text"] for s in written), "no zero bytes among the samples")


def test_nothing_to_score():
    """Documents of one byte: nothing is foretold."""
    def build(out, texts):
        write(f"{out}.jsonl", "".join(json.dumps({"text": t, "meta": {"pile_set_name": name}}) + "\n" for name, t in texts))
        run("data", "build", "--input", f"{out}.jsonl", "--tokenizer", "bytes.json", "--out", out)

    build("ones-corpus", [("Ones", "a"), ("Ones", "b")])
    text = run("eval", "--checkpoint", "zeros-bytes-0", "--corpus", "ones-corpus", code=1, part="no token to score")
    check(text == "", "nothing is printed")
    run("train", "zeros.yaml", "folder=none", "data.corpus=bytes", "data.validation=ones-corpus", code=1, part="no token to score")
    # A set without a token beside others is told in words.
    build("some", [("Ones", "a"), ("Long", "several bytes")])
    text = run("eval", "--checkpoint", "zeros-bytes-0", "--corpus", "some")
    check(re.search(r"^Ones +0 +unknown +unknown +unknown$", text, re.M) and "nan" not in text, text)


def test_prompts():
    """The text begins with the prompt, errors come without it, and a prompt beyond the context is said to be cut."""
    text = run("generate", "--checkpoint", "run", "--prompt", "seven birds", "--max-tokens", "4")
    check(text.startswith("seven birds") and text.endswith("\n"), text)
    prompt = "winter by the light of 13 moons " * 20
    line = [ATHANOR, "generate", "--checkpoint", "run", "--prompt", prompt, "--max-tokens", "4"]
    told = subprocess.run(line, capture_output=True, text=True)
    check(told.returncode == 0 and told.stdout.startswith(prompt), "the whole prompt is written")
    check(re.search(r"warning: the prompt has \d+ tokens, the model's context is 16: only its last 16 are read", told.stderr), told.stderr)
    run("generate", "--checkpoint", "run", "--prompt", "\udcff", code=1, part="not valid UTF-8")
    check(run("generate", "--checkpoint", "zeros-bytes-0", "--prompt", "", code=1, part="an empty prompt needs") == "", "no text before the error")
    line[-3:] = ["a", "--max-tokens", "100000000"]  # it stops at the first that cannot be written
    with open("/dev/full", "w") as full:
        told = subprocess.run(line, stdout=full, stderr=subprocess.PIPE, text=True, timeout=60)
    check(told.returncode == 1 and "standard output cannot be written" in told.stderr, f"a full disk: {told.returncode} {told.stderr}")


def main():
    folder = tempfile.mkdtemp(prefix="athanor-numbers-")
    os.chdir(folder)
    try:
        make_corpora()
        for test in (test_held_out, test_ranks, test_records, test_uniform, test_lost, test_nothing_to_score, test_prompts):
            before, start = test_train.failures, time.time()
            test()
            print(f"{test.__name__:22} {'ok' if test_train.failures == before else 'FAILED'}  {time.time() - start:.1f} s", flush=True)
    finally:
        os.chdir("/")
        shutil.rmtree(folder, ignore_errors=True)
    print(f"{test_train.checks} checks, {test_train.failures} failed")
    sys.exit(test_train.failures > 0)


if __name__ == "__main__":
    main()
