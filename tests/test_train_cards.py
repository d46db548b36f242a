#!/usr/bin/env python3
"""athanor train on the simulated card, from the outside: it agrees with the CPU, two ranks agree with one, a resumed run is the
same to the bit, and what can go wrong with a card is one line.

With ATHANOR_TEST_DEVICE=cuda the first real card instead (one rank).
"""
import json
import math
import os
import subprocess
import sys
import tempfile
import time

import test_train
from test_train import check, course, make_corpus, newest_step, records, run, weights, write

DEVICE = "cuda" if os.environ.get("ATHANOR_TEST_DEVICE") == "cuda" else "simulated"
CONFIG = """
folder: {folder}
seed: 7
model: {{family: llama, layers: 2, width: 32, heads: 2, groups: 1, context: 32}}
data: {{corpus: corpus, validation: held-out}}
train: {{steps: 8, micro_batch: 2, batch_tokens: 128, head_rows: 32, type: {type}}}
optimizer: {{learning_rate: 3e-3}}
schedule: {{warmup_steps: 2}}
checkpoint: {{every: 4}}
validation: {{every: 8, samples: 2}}
samples: {{every: 8, tokens: 6, prompts: ["int "]}}
parallel: {{bucket_mib: 0.01}}
device: {device}
"""


def configure(name, device=DEVICE, kind="auto"):
    return write(f"{name}.yaml", CONFIG.format(folder=name, device=device, type=kind))


def worst(one, two):
    pairs = list(zip(course(one), course(two)))
    check(len(pairs) == 8, f"8 records in {one} and {two}")
    return max(abs(a[1] - b[1]) / a[1] for a, b in pairs)


def test_types():
    """fp32 within rounding of the CPU, bf16 and fp16 near it; the held-out loss too."""
    run("train", configure("cpu", device="cpu"))
    for kind, most in (("fp32", 1e-4), ("bf16", 2e-2), ("fp16", 5e-3)):
        run("train", configure(kind, kind=kind))
        check(worst("cpu", kind) < most, f"{kind}: losses are off by {worst('cpu', kind):.2e}")
        ours, theirs = (records(f, "valid")[-1]["loss"] for f in (kind, "cpu"))
        check(abs(ours - theirs) < most * theirs, f"{kind}: held-out loss {ours}, on the CPU {theirs}")
        check(len(records(kind, "valid")) == len(records("cpu", "valid")), f"{kind}: as many validations")
    # What a card trained can be read by all that read runs.
    run("generate", "--checkpoint", "bf16", "--prompt", "int ", "--max-tokens", "5")
    run("inspect", "bf16")


def test_again():
    """The same bits without a graph, and when stopped and resumed; with dropout, which cannot be recorded, too."""
    run("train", configure("plain", kind="bf16"), "train.graph=false")
    check(course("plain") == course("bf16") and weights("plain") == weights("bf16"), "a recorded step computes the same bits")
    for name, more in (("bf16", []), ("few", ["train.masters=false", "optimizer.moments=8bit", "model.dropout=0.1"])):
        whole = f"{name}-whole"
        run("train", configure(whole, kind="bf16"), *more)
        parts = configure(f"{name}-parts", kind="bf16")
        run("train", parts, *more, "train.steps=4", "schedule.kind=constant")
        run("train", configure(f"{name}-constant", kind="bf16"), *more, "schedule.kind=constant")
        run("train", parts, *more, "schedule.kind=constant")
        check(course(f"{name}-parts") == course(f"{name}-constant"), f"{name}: the same course after a resume")
        check(weights(f"{name}-parts") == weights(f"{name}-constant"), f"{name}: the same weights after a resume")
        check(newest_step(whole) == 8, f"{name}: eight steps")


def test_masters():
    """Masters are there unless the key says no."""
    for more in ([], ["train.masters=false"]):
        command = [test_train.ATHANOR, "train", configure(f"masters-{len(more)}", kind="bf16"), "train.steps=1", *more]
        told = subprocess.run(command, capture_output=True, text=True).stderr
        check(("fp32 parameters" in told) == (not more), f"masters in the plan, {more}")


def test_ranks():
    """Two ranks: gradients summed on the card, by NCCL's calls; as one rank within rounding, and the same bits again."""
    if DEVICE == "cuda":
        return
    run("train", configure("two", kind="fp32"), ranks=2)
    check(worst("fp32", "two") < 1e-5, f"two ranks: losses are off by {worst('fp32', 'two'):.2e}")
    run("train", configure("two-again", kind="fp32"), ranks=2)
    check(course("two") == course("two-again"), "two ranks: the same bits again")
    # On one card: what it has is divided, and so is what is taken of it.
    test_train.RANKS_ENVIRONMENT["ATHANOR_SIMULATED_CARDS"] = "1"
    run("train", configure("shared", kind="fp32"), "train.steps=1", ranks=2)
    del test_train.RANKS_ENVIRONMENT["ATHANOR_SIMULATED_CARDS"]
    record = json.load(open("shared/run.json"))
    check(0 < record["memory_peak"] <= record["memory_planned"], f"two ranks on a card: {record['memory_peak']} bytes of it at most")


def test_layouts():
    """Layers or sequences shared by ranks, and the optimizer's state in parts: as one rank within rounding, recorded or not, over NCCL's calls or the host."""
    if DEVICE == "cuda":
        return
    heads = ["model.heads=4", "model.groups=2"]
    for kind, most in (("fp32", 1e-5), ("bf16", 1e-2)):
        alone = f"alone-{kind}"
        run("train", configure(alone, kind=kind), *heads)
        for name, *layout in (("tensor", "parallel.tensor=2"), ("whole-rows", "parallel.tensor=2", "parallel.sequence=false"), ("zero", "parallel.zero=1"),
                              ("gradients", "parallel.zero=2"), ("weights", "parallel.zero=3"), ("context", "parallel.context=2"),
                              ("pipeline", "parallel.pipeline=2"), ("zero-bubble", "parallel.pipeline=2", "parallel.schedule=zb-h1")):
            if (name, kind) == ("context", "fp32"):  # every gradient of it: tests/ranks_context.c
                continue
            run("train", configure(f"{name}-{kind}", kind=kind), *heads, *layout, ranks=2)
            check(worst(alone, f"{name}-{kind}") < most, f"{name} {kind}: losses are off by {worst(alone, f'{name}-{kind}'):.2e}")
    for name, layout in (("tensor", "parallel.tensor=2"), ("context", "parallel.context=2"), ("weights", "parallel.zero=3"), ("pipeline", "parallel.pipeline=2")):
        run("train", configure(f"unrecorded-{name}", kind="bf16"), *heads, layout, "train.graph=false", ranks=2)
        check(course(f"unrecorded-{name}") == course(f"{name}-bf16"), f"{name}: a recorded step computes the same bits")
    same = ["train.reproducible=true", "train.micro_batch=1", "train.reproducible_parts=4"]
    run("train", configure("same", kind="bf16"), *heads, *same)
    for name, layout in (("same-data", "parallel.data=2"), ("same-weights", "parallel.zero=3")):
        run("train", configure(name, kind="bf16"), *heads, *same, layout, ranks=2)
        check(course(name) == course("same"), f"{name}: sums in order are the same bits")
    test_train.RANKS_ENVIRONMENT["ATHANOR_SIMULATED_CARDS"] = "1"
    for axis in ("tensor", "context"):
        run("train", configure(f"one-card-{axis}", kind="bf16"), *heads, f"parallel.{axis}=2", ranks=2)
        check(worst(f"{axis}-bf16", f"one-card-{axis}") < 1e-3, f"{axis} on one card: losses are off by {worst(f'{axis}-bf16', f'one-card-{axis}'):.2e}")
    del test_train.RANKS_ENVIRONMENT["ATHANOR_SIMULATED_CARDS"]


def test_other_types():
    """A run goes on in another type; the loss scale is fp16's alone."""
    def scale(folder, step):
        return json.load(open(f"{folder}/checkpoints/step-{step:08d}/manifest.json"))["state"]["loss_scale"]

    run("train", configure("steady", device="cpu"), "schedule.kind=constant")
    for first, then in (("fp16", "bf16"), ("bf16", "fp16"), ("fp16", "fp16")):
        name = f"{first}-{then}"
        config = configure(name)
        run("train", config, "schedule.kind=constant", "train.steps=4", f"train.type={first}")
        run("train", config, "schedule.kind=constant", f"train.type={then}")
        check([scale(name, step) for step in (4, 8)] == [65536 if kind == "fp16" else 1 for kind in (first, then)], f"{name}: loss scales")
        check(worst("steady", name) < 5e-3, f"{name}: losses are off by {worst('steady', name):.2e}")


def test_records():
    """The results of a step come back while the next one runs; what is on record beside them is that step's own."""
    run("train", configure("rates", kind="fp32"), "train.steps=30", "schedule.warmup_steps=7", "schedule.floor=0.5")
    for i, r in enumerate(records("rates")):
        rate = 3e-3 * ((i + 1) / 7 if i < 7 else 0.5 + 0.25 * (1 + math.cos(math.pi * (i - 7) / (30 - 1 - 7))))
        check(abs(r["lr"] - rate) < 1e-6 * rate and r["step"] == i + 1 and r["tokens"] == 128 * (i + 1), f"step {i + 1}: rate {r['lr']}, not {rate}")
        check(abs(r["tokens_per_second"] * r["step_seconds"] - 128) < 1e-3 and 0 <= r["data_wait"] <= 1, f"step {i + 1}: {r}")


def test_loss_scale():
    """A stopped run goes on with all that it had: after overflows too, when the loss scale is not what it began with."""
    def state(folder, step):
        return {k: v for k, v in json.load(open(f"{folder}/checkpoints/step-{step:08d}/manifest.json"))["state"].items() if k not in ("metrics", "samples")}

    # Gradients grow on their way to a small embedding, so that the first steps overflow.
    more = ["schedule.kind=constant", "model.embedding_scale=0.03", "model.norm_epsilon=1e-12", "checkpoint.every=0"]
    run("train", configure("scaled", kind="fp16"), *more)
    # How many overflow depends on the texts: a stop after a step that counted, behind ones that did not.
    skipped = [0] + [count for _, _, _, _, count in course("scaled")]
    good = [s for s in range(2, 8) if skipped[s] > 0 and skipped[s] == skipped[s - 1]]
    if not check(good, f"overflows, then a good step: {skipped}"):
        return
    for stops in ((good[0],), (2, 6)):
        name = f"scaled-{len(stops)}"
        for steps in (*stops, 8):
            run("train", configure(name, kind="fp16"), *more, f"train.steps={steps}")
            if len(stops) == 1 and steps == good[0]:
                middle = state(name, steps)
                check(1 < middle["loss_scale"] < 65536 and middle["good_steps"] > 0 and middle["skipped"] > 0, f"overflows, then good steps: {middle}")
        check(state(name, 8) == state("scaled", 8), f"{name}: {state(name, 8)}, undisturbed {state('scaled', 8)}")
        check(course(name) == course("scaled") and weights(name) == weights("scaled"), f"{name}: the same course and weights")


def test_choices():
    """The record of kernels: kept, added to, obeyed unless a body is forced; what is damaged is one line."""
    def record():
        return open("chosen/kernels.txt").read()

    config = configure("chosen", kind="bf16")
    run("train", config, "train.steps=2")
    first = record()
    check(first.count("\n") > 10, "a line a product")
    run("train", config, "train.steps=3", "train.micro_batch=1")
    both = record()
    check(both.startswith(first) and len(both) > len(first), "products that are new are added")
    run("train", config, "train.steps=4")
    check(record() == both, "what is known stays as it is")
    for text, part in ((first[:200], "is no choice of a kernel"), (first.replace("m=", "m=-", 1), "line 1 is no choice"), ("\0" * 3000, "no text"),
                       ("\x1b[2J\n", "line 1 is no choice of a kernel: '?[2J'")):
        write("chosen/kernels.txt", text)
        run("train", config, "train.steps=5", code=1, part=part)
        check(record() == text, "a damaged record is left as it is")
    run("train", config, "train.steps=5", "products=sm80")
    check(" : sm80 by rule\n" in record() and " : sm90" not in record(), "a forced body does not ask the record")
    write("chosen/kernels.txt", "")
    run("train", config, "train.steps=6")
    check(record() == first, "an empty record is filled")


def test_errors():
    run("train", configure("bad", kind="bf16", device="cpu"), code=1, part="the CPU computes in fp32")
    run("train", configure("bad"), "products=fast", code=2, part="must be one of: auto, ours, cublas, sm80")
    run("train", configure("bad", device="cpu"), "products=fast", code=2, part="must be one of: auto, ours, cublas, sm80")
    run("train", configure("bad"), "card=63", code=1, part="no card 63" if DEVICE == "cuda" else "card")
    if DEVICE == "cuda":
        return
    for name, value, part in (("ATHANOR_SIMULATED_ARCH", "75", "sm_75"), ("ATHANOR_SIMULATED_MEMORY", "4194304", "memory"),
                              ("ATHANOR_SIMULATED_DRIVER", "11000", "driver")):
        os.environ[name] = value
        run("train", configure("bad"), code=1, part=part)
        del os.environ[name]
    # A kernel goes wrong: before the first step, in a recorded step, in a later one.
    for fail, more in (("0", []), ("200", []), ("600", ["train.graph=false"])):
        os.environ["ATHANOR_SIMULATED_FAIL"] = fail
        run("train", configure("broken"), *more, code=1, part="an illegal memory access was encountered")
        del os.environ["ATHANOR_SIMULATED_FAIL"]
    check(not os.path.exists("bad/checkpoints"), "nothing was begun")


def main():
    with tempfile.TemporaryDirectory() as folder:
        os.chdir(folder)
        make_corpus()
        # A build without the simulated card says so, and that is all there is to see.
        told = subprocess.run([test_train.ATHANOR, "train", configure("probe"), "train.steps=1"], capture_output=True, text=True)
        if "has no simulated card" in told.stderr or "has no CUDA" in told.stderr:
            print("skipped: this build has no such card")
            sys.exit(77)
        for test in (test_types, test_again, test_masters, test_ranks, test_layouts, test_other_types, test_records, test_loss_scale, test_choices, test_errors):
            start = time.time()
            test()
            print(f"{test.__name__:20} {'ok' if test_train.failures == 0 else 'FAILED'}  {time.time() - start:.1f} s")
    print(f"{test_train.checks} checks, {test_train.failures} failed")
    sys.exit(1 if test_train.failures else 0)


if __name__ == "__main__":
    main()
