#!/usr/bin/env python3
"""Makes tests/golden/checkpoint/version1: a checkpoint as athanor wrote it before manifests had version 2.

    tests/golden/checkpoint/make_version1.py ATHANOR

ATHANOR is a program of that time, with MPI. Two ranks train a tiny model for three steps, so their slices are ragged. Beside the
checkpoint, version1.digests gets the digest (core/digest.h) of every tensor and kind, computed here, element by element, from
what h5dump reads of the files.
"""
import json
import os
import pathlib
import shutil
import struct
import subprocess
import sys
import tempfile

HERE = pathlib.Path(__file__).resolve().parent
MASK = (1 << 64) - 1
CONFIG = """
folder: run
seed: 3
model: {family: gpt2, layers: 1, width: 12, heads: 2, context: 8, ffn_width: 22, attention_bias: false, norm_bias: false, qkv_bias: false,
        ffn_bias: false}
data: {corpus: corpus}
train: {steps: 3, micro_batch: 2, batch_tokens: 64}
optimizer: {kind: lion}
checkpoint: {every: 0}
"""


def mix(z):
    z = (z ^ z >> 30) * 0xBF58476D1CE4E5B9 & MASK
    z = (z ^ z >> 27) * 0x94D049BB133111EB & MASK
    return z ^ z >> 31


def digest(first, numbers):
    """Of 32-bit words that lie from row-major index `first` on."""
    return sum(mix(((first + i) * 0x9E3779B97F4A7C15 + bits * 0xD1B54A32D192ED03) & MASK) for i, bits in enumerate(numbers)) & MASK


def train(athanor):
    def run(*command):
        subprocess.run([athanor, *command], check=True)
    source = HERE.parent.parent.parent
    run("data", "pack", "--set", f"C={source}/core/error.*", "--out", "packed", "--shards", "1", "--valid", "0.3")
    run("tokenizer", "train", "--input", "packed/train/*.jsonl.zst", "--vocab-size", "257", "--out", "tokenizer.json")
    run("data", "build", "--input", "packed/train/*.jsonl.zst", "--tokenizer", "tokenizer.json", "--out", "corpus")
    pathlib.Path("run.yaml").write_text(CONFIG)
    subprocess.run(["mpirun", "-n", "2", athanor, "train", "run.yaml", "parallel.data=2", "threads=1"], check=True)


def main():
    athanor = os.path.abspath(sys.argv[1])
    target = HERE / "version1"
    with tempfile.TemporaryDirectory() as folder:
        os.chdir(folder)
        train(athanor)
        shutil.rmtree(target, ignore_errors=True)
        shutil.copytree("run/checkpoints/step-00000003", target)
        manifest = json.loads((target / "manifest.json").read_text())
        sums = {}
        for part in manifest["slices"]:
            subprocess.run(["h5dump", "-d", part["dataset"], "-b", "LE", "-o", "numbers", str(target / part["file"])], check=True,
                           stdout=subprocess.DEVNULL)
            numbers = pathlib.Path("numbers").read_bytes()
            numbers = struct.unpack(f"<{len(numbers) // 4}I", numbers)
            assert len(numbers) == part["end"] - part["begin"]
            key = part["tensor"], part["kind"]
            sums[key] = (sums.get(key, 0) + digest(part["begin"], numbers)) & MASK
        (HERE / "version1.digests").write_text("".join(f"{t} {k} {s:016x}\n" for (t, k), s in sorted(sums.items())))


if __name__ == "__main__":
    main()
