#!/usr/bin/env python3
"""Runs that released versions began go on with this one: tests/golden/runs/VERSION, made by make_runs.py there.

Each run was killed after step 6 of 12. It is resumed, and what it then loses at steps 7 to 12 is compared with the course that the
released version itself took to the end. What a resume of an older version's run keeps:

  one rank, CPU            the same bits, where the same compiler built both for the same processor family (the runs take the
                           instruction set that every x86-64 has); otherwise the same losses within rounding
  another number of ranks  the same losses within rounding: sums over ranks are added in another order
  16-bit weights without   losses within the noise that such a run has by itself: where a parameter lies in memory decides which
  masters, 8-bit moments   random number rounds it and which block of moments it shares a scale with, and that may change

Rounding is 1e-6 of a loss: sums in another order (other instruction sets, other ranks) change these runs' losses by 6e-9 at most,
and lost moments by 1e-4 and more. The noise of the last kind is a fifth of the mean change of the loss from one step to the next
(0.02 here): keeping masters, which is to round otherwise at each update, changes the losses by less than half of that, losing
moments by several times that.
"""
import glob
import json
import os
import platform
import shutil
import subprocess
import sys
import tempfile
import time

import test_train
from test_train import check, records, run

GOLDEN = f"{os.environ['ATHANOR_SOURCE']}/tests/golden/runs"
STOP, STEPS = 6, 12
ROUNDING = 1e-6


def losses(path):
    with open(path) as file:
        return [r["loss"] for r in map(json.loads, file) if r["kind"] == "train"]


def lines(path, steps):
    """What the record says of those steps, without the clock."""
    with open(path) as file:
        train = [r for r in map(json.loads, file) if r["kind"] == "train"]
    return [(r["step"], r["loss"], r["grad_norm"], r["lr"], r["skipped"]) for r in train if r["step"] in steps]


def compiler(name):
    with open(f"{name}/run.json") as file:
        return json.load(file)["compiler"]


def resume(name, ranks=1):
    """Goes on with a copy of the run; False where this program has no such device."""
    shutil.copytree(name, "resumed")
    command = ["train", f"{name}/config.yaml", "folder=resumed"]
    if name == "card":
        told = subprocess.run([test_train.ATHANOR, *command, f"train.steps={STOP}"], capture_output=True, text=True)
        if "has no simulated card" in told.stderr:
            return False
    run(*command, ranks=ranks if ranks > 1 else 0)
    check(records("resumed", "resume")[0]["step"] == STOP, f"{name} goes on after step {STOP}")
    ours = lines("resumed/metrics.jsonl", range(STOP + 1))
    check(ours == lines(f"{name}/course.jsonl", range(STOP + 1)), f"{name}: the record of what was before is kept")
    check(len(losses("resumed/metrics.jsonl")) == STEPS, f"{name} runs to its end")
    return True


def compare(what, name, exact, most):
    """The course of the resumed run against the released version's own, `most` apart (absolute)."""
    ours, theirs = losses("resumed/metrics.jsonl")[STOP:], losses(f"{name}/course.jsonl")[STOP:]
    worst = max((abs(a - b) for a, b in zip(ours, theirs)), default=0)
    check(worst <= most, f"{what}: losses are off by {worst:.2e}, at most {most:.2e} is rounding")
    if exact:
        later = range(STOP + 1, STEPS + 1)
        check(lines("resumed/metrics.jsonl", later) == lines(f"{name}/course.jsonl", later), f"{what}: the same bits")
    print(f"  {what:30} off by {worst:.1e} of {0 if exact else most:.1e}")
    shutil.rmtree("resumed")


def fluctuation(name):
    course = losses(f"{name}/course.jsonl")[STOP - 1:]
    return sum(abs(a - b) for a, b in zip(course, course[1:])) / (len(course) - 1)


def check_resumes(version):
    for name in ("llama", "gpt2"):
        resume(name)
        same_machine = platform.machine() == "x86_64" and compiler(name) == compiler("resumed") and not test_train.SANITIZED
        compare(f"{version} {name}", name, same_machine, ROUNDING * losses(f"{name}/course.jsonl")[-1])
    for name, ranks in (("ranks", 2), ("ranks", 1), ("llama", 2)):
        resume(name, ranks)
        compare(f"{version} {name} by {ranks}", name, False, ROUNDING * losses(f"{name}/course.jsonl")[-1])
    if resume("card"):
        compare(f"{version} card", "card", False, fluctuation("card") / 5)
    else:
        shutil.rmtree("resumed")
        print(f"  {version} card  skipped: this program has no simulated card")


def held_out_loss(table):
    return float(next(line for line in table.splitlines() if line.startswith("all")).split()[2])


def check_uses(version):
    """What reads runs reads old ones."""
    for name in ("llama", "ranks", "gpt2", "card"):
        told = run("inspect", name)
        check("whole       yes" in told and f"step        {STOP}" in told, f"{version} {name} is whole: {told[:400]}")
        text = run("generate", "--checkpoint", name, "--prompt", "the fire ", "--max-tokens", "10", "--seed", "3")
        check(text.startswith("the fire ") and len(text) > 12, f"{version} {name} writes: {text}")
        with open(f"{name}/held-out.txt") as file:
            then = held_out_loss(file.read())
        now = held_out_loss(run("eval", "--checkpoint", name, "--corpus", "held-out"))
        check(abs(now - then) < 2e-4, f"{version} {name}: held-out loss {now}, with {version} it was {then}")


def check_other_model():
    """Another model is still refused, and told by the key that differs."""
    shutil.copytree("llama", "other")
    run("train", "llama/config.yaml", "folder=other", "model.tied_head=true", code=1, part="model.tied_head is false there, true here")
    shutil.rmtree("other")


def main():
    versions = sorted(p for p in glob.glob(f"{GOLDEN}/*") if os.path.isdir(p))
    check(len(versions) > 0, "there is a run of a released version")
    with tempfile.TemporaryDirectory() as folder:
        for path in versions:
            version, start = os.path.basename(path), time.time()
            shutil.copytree(path, f"{folder}/{version}")
            os.chdir(f"{folder}/{version}")
            check_resumes(version)
            check_uses(version)
            check_other_model()
            print(f"{version:20} {'ok' if test_train.failures == 0 else 'FAILED'}  {time.time() - start:.1f} s")
        os.chdir("/")
    print(f"{test_train.checks} checks, {test_train.failures} failed")
    sys.exit(1 if test_train.failures else 0)


if __name__ == "__main__":
    main()
