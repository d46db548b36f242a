#!/usr/bin/env python3
"""What a call leaves behind: one that does nothing, one that goes on, and the checkpoints that are to be kept."""
import glob
import hashlib
import json
import os
import shutil
import subprocess
import time

from life import PLAIN, environment, faulty, line_of, main
from test_train import SANITIZED, check, run


def state_of(folder):
    """Every file below with its content and time."""
    found = {}
    for path in [folder, *glob.glob(f"{folder}/**", recursive=True)]:
        info = os.stat(path)
        found[path] = (info.st_mtime_ns, info.st_ino, os.path.isdir(path) or hashlib.sha256(open(path, "rb").read()).hexdigest())
    return found


def test_nothing_done():
    """A call that has nothing to do, or is refused, changes nothing in the run folder; one that goes on keeps when it all began."""
    for ranks in (0, 2):
        shutil.rmtree("done", ignore_errors=True)
        # With validation and samples; the record of the end has the peak.
        done = ["life.yaml", "threads=1", "folder=done"]
        run("train", *done, "train.steps=6", ranks=ranks)
        first = json.load(open("done/run.json"))
        # But for the lock, which says who held it last, and the folder in which it was seen that a save can succeed.
        before = {k: v for k, v in state_of("done").items() if k not in ("done/checkpoints", "done/checkpoints/lock")}
        for again, code in ((["train.steps=6"], 0), (["train.steps=3"], 0), (["train.steps=6", "log.every=1"], 0),
                            (["train.steps=9", "seed=8"], 1), (["train.steps=9", "model.width=64"], 1), (["train.steps=9", "train.stpes=9"], 1)):
            got = subprocess.run(line_of(ranks, *done, *again), capture_output=True, env=environment(ranks)).returncode
            check((got != 0) == (code != 0), f"{again}: {got}")
            after = {k: v for k, v in state_of("done").items() if k not in ("done/checkpoints", "done/checkpoints/lock")}
            check(after == before, f"{again}, {ranks} ranks: the folder is as it was: {[k for k in before if after.get(k) != before[k]]}")
        time.sleep(1.1)
        for times in (1, 2):
            run("train", *done, f"train.steps={6 + 2 * times}", ranks=ranks)
            record = json.load(open("done/run.json"))
            check(record["started"] == first["started"] and record["resumed"] == times and record["continued"] > first["started"],
                  f"the record of a run that went on: {record['started']}, {record.get('resumed')}")
        check("resumed" not in first and "memory_peak" in record, "the first record")


def test_kept():
    """A save due by checkpoint.keep_every is not left out while the one before is still being written."""
    if SANITIZED:
        return
    for ranks in (0, 2):
        shutil.rmtree("kept", ignore_errors=True)
        line = line_of(ranks, *PLAIN, "folder=kept", "train.steps=40", "checkpoint.every=1", "checkpoint.keep_every=10", "checkpoint.keep_last=1")
        result = subprocess.run(faulty(ranks, line), capture_output=True, text=True, timeout=120, env=environment(ranks, FAULT_FOLDER="kept", FAULT_FSYNC_MS=60))
        kept = [int(os.path.basename(p)[5:]) for p in sorted(glob.glob("kept/checkpoints/step-*"))]
        check(result.returncode == 0 and kept == [10, 20, 30, 40], f"kept: {kept}")
        check("this one is left out" in result.stderr and "this one is to be kept" in result.stderr, "both are told")


if __name__ == "__main__":
    main((test_nothing_done, test_kept))
