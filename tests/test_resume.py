#!/usr/bin/env python3
"""What a run goes on from, and with whom: ranks that are of one run, checkpoints with which all is well, models that learned."""
import ctypes
import ctypes.util
import glob
import json
import os
import re
import shutil
import subprocess

from test_train import ATHANOR, CONFIG, RANKS_ENVIRONMENT, check, course, main, newest_step, run, write


def make_runs():
    """A run of one rank and one of two, to damage."""
    write("one.yaml", CONFIG.format(folder="one"))
    run("train", "one.yaml", "threads=1")
    run("train", "one.yaml", "folder=two", ranks=2)


def test_ranks_of_two_runs():
    """Ranks that were not started alike are told before the first step, with what differs and where."""
    config = write("unlike.yaml", CONFIG.format(folder="unlike"))
    shutil.copytree("corpus", "corpus-2")
    other = "./other-build"
    shutil.copy(ATHANOR, other)
    with open(other, "ab") as file:
        file.write(b"x")
    for program, override, told in (
            (ATHANOR, "optimizer.learning_rate=1e-2", "optimizer.learning_rate is 0.003 on rank 0 but not on rank 1 (0.01)"),
            (ATHANOR, "data.corpus=corpus-2", 'data.corpus is "corpus" on rank 0 but not on rank 1 ("corpus-2")'),
            (ATHANOR, "parallel.data=1", "parallel.data is 0 on rank 0 but not on rank 1 (1)"),
            (other, "seed=7", "the build is ")):
        result = subprocess.run(["mpirun", "-n", "1", ATHANOR, "train", config, ":", "-n", "1", program, "train", config, override],
                                capture_output=True, text=True, timeout=120, env=RANKS_ENVIRONMENT)
        lines = [l for l in result.stderr.splitlines() if "athanor: " in l]
        check(result.returncode == 1 and len(lines) == 1 and told in lines[0], f"{override}: {result.returncode}, {lines}")
        check(not os.path.exists("unlike"), f"{override}: a folder was made")
    # The same words, other files: each rank in a folder of its own.
    for place in ("here", "there"):
        os.mkdir(place)
        shutil.copytree("corpus", f"{place}/corpus")
        shutil.copytree("held-out", f"{place}/held-out")
    for prefix in ("corpus", "held-out"):
        shutil.move(f"there/{prefix}", "there/kept")
        run("data", "build", "--input", "packed/train/*.jsonl.zst" if prefix == "held-out" else "packed/val.jsonl.zst", "--tokenizer", "tokenizer.json", "--out", f"there/{prefix}")
        result = subprocess.run(["mpirun", "-n", "1", "--wdir", "here", ATHANOR, "train", config := os.path.abspath("unlike.yaml"), ":",
                                 "-n", "1", "--wdir", "there", ATHANOR, "train", config],
                                capture_output=True, text=True, timeout=120, env=RANKS_ENVIRONMENT)
        lines = [l for l in result.stderr.splitlines() if "athanor: " in l]
        name = {"corpus": "data.corpus", "held-out": "data.validation"}[prefix]
        check(result.returncode == 1 and len(lines) == 1 and f"{name} is {prefix}, of fingerprint" in lines[0], f"{prefix}: {lines}")
        shutil.rmtree(f"there/{prefix}")
        shutil.move("there/kept", f"there/{prefix}")


def seal(path, change):
    """Changes a checkpoint's record and gives it the checksum that belongs to it: what only comparing with the rest can find."""
    manifest = json.load(open(path))
    change(manifest)
    manifest.pop("checksum", None)
    text = json.dumps(manifest, sort_keys=True, separators=(",", ":"), ensure_ascii=False).encode()
    xxh3 = ctypes.CDLL(ctypes.util.find_library("xxhash")).XXH3_64bits
    xxh3.restype, xxh3.argtypes = ctypes.c_uint64, (ctypes.c_char_p, ctypes.c_size_t)
    manifest["checksum"] = f"{xxh3(text, len(text)):016x}"
    json.dump(manifest, open(path, "w"))


def test_late_damage():
    """What is found wrong only while a checkpoint is loaded, on any rank, leads to the one before, which is told."""

    parts = [p["tensor"] for p in json.load(open("two/checkpoints/step-00000060/manifest.json"))["parts"] if p["kind"] == "moment1"]
    cut = next(name for name in parts if parts.count(name) > 1)  # no rank of two holds its moments

    def another_digest(kind):
        def change(manifest):
            tensor = next(t for t in manifest["tensors"] if kind in t["digests"] and (kind == "weight" or t["name"] == cut))
            tensor["digests"][kind] = f"{int(tensor['digests'][kind], 16) ^ 1:016x}"
        return change

    def state(key, value):
        return lambda manifest: manifest["state"].update({key: value})

    def exchange(manifest):
        del manifest["state"]["corpus"]

    cases = [("weight", another_digest("weight"), "weight"), ("moment", another_digest("moment1"), "moment1"),
             ("updates", lambda manifest: manifest["state"].update(updates=59, good_steps=59), "do not agree"), ("scale", state("loss_scale", -1.0), "loss_scale"),
             ("skips", state("skipped", 2**40), "skipped"), ("good", state("good_steps", 2**62), "good_steps"),
             ("samples", state("samples", 1), "samples"), ("length", state("sequence_length", 0), "sequence_length"),
             ("lost", exchange, "corpus")]
    for ranks in (0, 2):
        for name, change, told in cases if not ranks else cases[:3]:
            folder = f"late-{name}-{ranks}"
            shutil.copytree("one", folder)
            before = min(int(p[-8:]) for p in glob.glob(f"{folder}/checkpoints/step-*"))
            seal(f"{folder}/checkpoints/step-00000060/manifest.json", change)
            line = (["mpirun", "-n", "2"] if ranks else []) + [ATHANOR, "train", "one.yaml", f"folder={folder}", "threads=1"]
            result = subprocess.run(line, capture_output=True, text=True, env=RANKS_ENVIRONMENT)
            check(result.returncode == 0 and told in result.stderr and "the checkpoint before is tried" in result.stderr and
                  f"after step {before}\n" in result.stderr, f"{folder}: {result.returncode} {result.stderr[:900]}")
            if not ranks:
                check(course(folder) == course("one"), f"{folder} ends the same")
            # None is left alone: it is an error that removes nothing and advises no such thing.
            for record in glob.glob(f"{folder}/checkpoints/step-*/manifest.json"):
                seal(record, another_digest("moment2"))
            result = subprocess.run([*line, "train.steps=70"], capture_output=True, text=True, env=RANKS_ENVIRONMENT)
            lines = [l for l in result.stderr.splitlines() if "athanor: " in l]
            check(result.returncode == 1 and len(lines) == 1 and "can be taken; restore one from a copy" in lines[0],
                  f"{folder}: {result.returncode} {result.stderr[-900:]}")
            check(len(glob.glob(f"{folder}/checkpoints/step-*/manifest.json")) == 2, f"{folder}: checkpoints are gone")


def test_lost_model():
    """Steps without a finite gradient: told once, with where it was well, and never a good end, whatever the ranks."""
    config = write("lost.yaml", CONFIG.format(folder="lost"))
    wild = ("optimizer.learning_rate=1000", "optimizer.clip=0", "validation.every=0", "samples.every=0")
    for ranks in (0, 2):
        run("train", config, *wild, f"folder=lost-{ranks}", "schedule.warmup_steps=0", "train.steps=100", "train.most_skipped=20", code=1, ranks=ranks,
            part="the last 20 steps, to step 2")
        run("train", config, *wild, f"folder=short-{ranks}", "schedule.warmup_steps=0", "train.steps=14", code=1, ranks=ranks, part="to step 14, had no finite gradient")
        check(newest_step(f"short-{ranks}") == 14, "the end is saved")
        run("train", config, *wild, f"folder=short-{ranks}", "schedule.warmup_steps=0", "train.steps=14", code=1, ranks=ranks, part="to step 14, had no finite gradient")
    # A rate that rises without end: what was saved before the streak stays when its end is saved too.
    rising = (*wild, "schedule.warmup_steps=3000", "checkpoint.every=2", "checkpoint.keep_last=1")
    result = subprocess.run([ATHANOR, "train", config, *rising, "folder=rise", "train.steps=1000", "train.most_skipped=30"],
                            capture_output=True, text=True, timeout=300)
    well = re.search(r"the last 30 steps, to step \d+, .* move the checkpoints after step (\d+) out", result.stderr)
    if not check(result.returncode == 1 and well, result.stderr[-900:]):
        return
    well = int(well[1])
    run("train", config, *rising, "folder=end", f"train.steps={well + 20}", code=1, part=f"to step {well + 20}, had no finite gradient")
    kept = [json.load(open(m)) for m in glob.glob("end/checkpoints/step-????????/manifest.json")]
    streaks = {m["step"]: m["state"]["skipped_in_a_row"] for m in kept}
    check(streaks[well + 20] == 20 and any(s <= well and streaks[s] == 0 for s in streaks), f"kept: {streaks}")


def test_changes():
    """A resume says which settings are not those that the run had."""
    shutil.copytree("one", "other-settings")
    result = subprocess.run([ATHANOR, "train", "one.yaml", "folder=other-settings", "train.steps=64", "optimizer.learning_rate=1e-3",
                             "data.documents_apart=false", "schedule.kind=linear", "threads=1"], capture_output=True, text=True)
    line = [l for l in result.stderr.splitlines() if l.startswith("changed ")]
    check(result.returncode == 0 and len(line) == 1, result.stderr[-900:])
    for told in ("train.steps was 60 and is 64", "optimizer.learning_rate was 0.003 and is 0.001", "data.documents_apart was true and is false",
                 "schedule.kind was cosine and is linear"):
        check(told in line[0], f"{told}: {line}")
    check(line[0].count(" was ") == 4, line)
    result = subprocess.run([ATHANOR, "train", "one.yaml", "folder=one", "threads=1"], capture_output=True, text=True)
    check(result.returncode == 0 and "changed " not in result.stderr, result.stderr[-900:])


if __name__ == "__main__":
    main(make_runs, test_ranks_of_two_runs, test_late_damage, test_lost_model, test_changes)
