#!/usr/bin/env python3
"""Any checkpoint goes on in any layout: the same weights, the same next losses, and one that is wrong is refused by name.

A new layout is a line of LAYOUTS. Of all ordered pairs some are tried, such that each layout writes for three others and reads from
three; ATHANOR_ALL_PAIRS=1 tries all.
"""
import json
import os
import re
import shutil
import subprocess

from test_train import ATHANOR, CONFIG, RANKS_ENVIRONMENT, SANITIZED, check, course, main, newest_step, run, write

try:
    import xxhash
except ImportError:
    xxhash = None

LAYOUTS = {
    "one": (0,),
    "data": (2,),
    "tensor": (2, "parallel.tensor=2"),
    "zero-1": (2, "parallel.zero=1"),
    "zero-2": (2, "parallel.zero=2"),
    "zero-3": (2, "parallel.zero=3"),
    "pipeline": (2, "parallel.pipeline=2"),
    "context": (2, "parallel.context=2"),
    "tensor-zero": (4, "parallel.tensor=2", "parallel.zero=1"),
    "tensor-pipeline": (4, "parallel.tensor=2", "parallel.pipeline=2"),
    "data-three": (3, "train.micro_batch=2"),
}
BEGIN, END = 12, 15
KEYS = ("schedule.kind=constant", "validation.every=0", "samples.every=0", "checkpoint.every=0", "train.micro_batch=1")


def train(folder, layout, steps, *more):
    ranks, *keys = LAYOUTS[layout]
    run("train", "layouts.yaml", f"folder={folder}", f"train.steps={steps}", *KEYS, *keys, *more, *(["threads=1"] if not ranks else []), ranks=ranks)


def digests(folder, kinds):
    path = f"{folder}/checkpoints/step-{newest_step(folder):08d}"
    return {(t["name"], k): t["digests"][k] for t in json.load(open(f"{path}/manifest.json"))["tensors"] for k in kinds}


def saved(layout):
    """A run of BEGIN steps in that layout."""
    write("layouts.yaml", CONFIG.format(folder="unused").replace("batch_tokens: 256", "batch_tokens: 384"))
    if not os.path.exists(f"from-{layout}"):
        train(f"from-{layout}", layout, BEGIN)
    return f"from-{layout}"


def pairs():
    names = list(LAYOUTS)
    for i, source in enumerate(names):
        for k, target in enumerate(names):
            if i != k and (os.environ.get("ATHANOR_ALL_PAIRS") or (k - i) % len(names) in (1, 3, 7)):
                yield source, target, (k - i) % len(names) == 1


def test_pairs():
    for source, target, still in pairs():
        name = f"{source}-to-{target}"
        shutil.copytree(saved(source), name)
        if not os.path.exists(f"alone-{source}"):
            shutil.copytree(saved(source), f"alone-{source}")
            train(f"alone-{source}", "one", END)  # goes on on one rank: what others must do
        train(name, target, END)
        here, there = course(name), course(f"alone-{source}")
        check(len(here) == END and here[:BEGIN] == there[:BEGIN], f"{name}: the history came along")
        worst = max(abs(a[1] - b[1]) / b[1] for a, b in zip(here, there))
        check(worst < 2e-5, f"{name}: losses differ by {worst}")
        if still:  # a step that changes no weight: the next checkpoint has those of the first
            shutil.copytree(saved(source), f"{name}-still")
            train(f"{name}-still", target, BEGIN + 1, "optimizer.learning_rate=0")
            check(digests(f"{name}-still", ["weight"]) == digests(saved(source), ["weight"]), f"{name}: the same weights")
        shutil.rmtree(name)


def spoil(folder, tensor, kind):
    """Gives a tensor another digest in a record that is otherwise as it should be."""
    path = f"{folder}/checkpoints/step-{BEGIN:08d}/manifest.json"
    record = json.load(open(path))
    record.pop("checksum")
    next(t for t in record["tensors"] if t["name"] == tensor)["digests"][kind] = "00000000000004d2"
    text = json.dumps(record, sort_keys=True, separators=(",", ":"), ensure_ascii=False)
    record["checksum"] = xxhash.xxh3_64_hexdigest(text.encode())
    json.dump(record, open(path, "w"))


def test_wrong():
    """What is loaded is compared with what was saved, whoever holds which part of it: a tensor that is another is named."""
    for source, target, tensor, kind in (("zero-1", "tensor", "layers.1.mlp.up.weight", "moment1"), ("tensor", "zero-3", "embedding.token", "weight"),
                                         ("one", "pipeline", "layers.1.attention.qkv.weight", "moment2"), ("data", "context", "final_norm.weight", "weight")):
        if xxhash is None:
            print("no xxhash for Python: records are not spoiled")
            return
        folder = f"wrong-{source}-{target}"
        shutil.copytree(saved(source), folder)
        spoil(folder, tensor, kind)
        ranks, *keys = LAYOUTS[target]
        line = [*(["mpirun", "-n", str(ranks)] if ranks else []), ATHANOR, "train", "layouts.yaml", f"folder={folder}", f"train.steps={END}", *KEYS, *keys]
        result = subprocess.run(line, capture_output=True, text=True, timeout=300, env=RANKS_ENVIRONMENT)
        told = [l for l in result.stderr.splitlines() if f"{kind} {tensor} was not loaded as it was saved" in l]
        check(result.returncode == 1 and len(told) == 1 and "none of its 1 checkpoints" in result.stderr, f"{folder}: {result.stderr[-600:]}")
        told = run("checkpoint", "verify", folder, code=1, part="not all")
        check(f"{kind} {tensor}" in told, told)


def peak(told):
    """MiB that the largest rank took, as a run says at its end."""
    number, unit = re.search(r"peak ([0-9.]+) (\w+) a rank", told).groups()
    return float(number) * {"MiB": 1, "GiB": 1024}[unit]


def test_memory():
    """A rank that loads holds its share and a buffer: going on from a checkpoint that one rank wrote takes next to nothing more than
    beginning anew, however the share is cut out of it."""
    if SANITIZED:
        return
    write("large.yaml", CONFIG.format(folder="large").replace("width: 32", "width: 512").replace("layers: 2", "layers: 6"))
    short = ("train.micro_batch=2", "validation.every=0", "samples.every=0", "checkpoint.every=0", "schedule.kind=constant")
    run("train", "large.yaml", *short, "train.steps=1", "threads=1")
    whole = os.path.getsize("large/checkpoints/step-00000001/rank-00000.h5") / 2**20
    for layout in (("parallel.tensor=2", "parallel.zero=1", "parallel.data=2"), ("parallel.zero=3",)):
        peaks = []
        for folder, steps in (("fresh", 1), ("large", 2)):
            shutil.rmtree("loading", ignore_errors=True)
            if folder == "large":
                shutil.copytree(folder, "loading")
            result = subprocess.run(["mpirun", "-n", "4", ATHANOR, "train", "large.yaml", "folder=loading", *short, *layout, f"train.steps={steps}"],
                                    capture_output=True, text=True, timeout=300, env=RANKS_ENVIRONMENT)
            check(result.returncode == 0, f"{layout}: {result.stderr[-600:]}")
            peaks.append(peak(result.stderr))
        print(f"{layout}: {peaks[0]:.0f} MiB begun anew, {peaks[1]:.0f} MiB gone on from {whole:.0f} MiB")
        check(peaks[1] - peaks[0] < 48 and whole > 4 * 48, f"{layout}: {peaks} of {whole} MiB")


if __name__ == "__main__":
    main(test_pairs, test_wrong, test_memory)
