#!/usr/bin/env python3
"""What a message advises works: a run that is continued on any other number of ranks goes on after at most one advice was followed."""
import os
import re
import shutil
import subprocess

from test_train import ATHANOR, CONFIG, RANKS_ENVIRONMENT, check, main, run, write

SETTINGS = "model.layers=1 model.width=16 model.heads=2 model.groups=2 checkpoint.every=2 validation.every=0 samples.every=0".split()
LENGTH = 32


def train(ranks, *settings):
    line = ["mpirun", "-n", str(ranks), ATHANOR, "train", "advice.yaml", "folder=advice", *SETTINGS, *settings]
    result = subprocess.run(line, capture_output=True, text=True, timeout=300, env=RANKS_ENVIRONMENT)
    told = [l for l in result.stderr.splitlines() if "athanor: " in l]
    return result.returncode, told


def advice(told):
    """What a line of error advises first: settings, and a number of ranks or None."""
    match = re.search(r"give it (.*?), or choose another folder|; (.*?) would do", told)
    if not match:
        return None
    text = match.group(1) or match.group(2)
    ranks = re.search(r" on (\d+) ranks?$", text)
    return re.findall(r"[a-z_.]+=\d+", text.split(" or ")[0]), int(ranks.group(1)) if ranks else None


def test_other_numbers_of_ranks():
    """Begun with and without a batch of its own, on 1 or 2 ranks; continued on 1 to 4 with the same command."""
    for begun in (1, 2):
        for settings in (["train.micro_batch=2"], ["train.micro_batch=3"], ["train.micro_batch=4", f"train.batch_tokens={8 * LENGTH}"]):
            shutil.rmtree("advice", ignore_errors=True)
            code, told = train(begun, *settings, "train.steps=2")
            if not check(code == 0, f"{begun} ranks with {settings}: {told}"):
                continue
            steps = 2
            for ranks in (1, 2, 3, 4):
                steps += 1
                code, told = train(ranks, *settings, f"train.steps={steps}")
                if code == 0:
                    continue
                advised = advice(told[0]) if len(told) == 1 else None
                if not check(code in (1, 2) and advised is not None, f"{begun} to {ranks} ranks with {settings}: one line advises, got {told}"):
                    continue
                again, why = train(advised[1] or ranks, *settings, *advised[0], f"train.steps={steps}")
                check(again == 0, f"{begun} to {ranks} ranks with {settings}: '{told[0]}' was followed and gave {why}")


def test_new_runs():
    """Every size of a step that ranks cannot share: each alternative of the advice works."""
    for batch in [*range(1, 9 * LENGTH, 37), *range(LENGTH, 9 * LENGTH, LENGTH)]:
        for micro in (1, 2, 3):
            line = ["advice.yaml", "folder=advice", *SETTINGS, "train.steps=1", f"train.micro_batch={micro}", f"train.batch_tokens={batch}"]
            shutil.rmtree("advice", ignore_errors=True)
            result = subprocess.run([ATHANOR, "train", *line], capture_output=True, text=True)
            if result.returncode == 0:
                continue
            alternatives = re.findall(r"train\.batch_tokens=(\d+)(?: or (\d+))?", result.stderr)[-1]
            for value in filter(None, alternatives):
                run("train", *line, f"train.batch_tokens={value}")
                shutil.rmtree("advice", ignore_errors=True)
            for value in re.findall(r"; train\.micro_batch=(\d+) would do", result.stderr):
                run("train", *line, f"train.micro_batch={value}")


def make_configuration():
    write("advice.yaml", CONFIG.format(folder="advice").replace(", batch_tokens: 256", ""))


if __name__ == "__main__":
    main(make_configuration, test_other_numbers_of_ranks, test_new_runs)
