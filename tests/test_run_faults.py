#!/usr/bin/env python3
"""What may fail under a run: writes, its folder, its data, its descriptors."""
import errno
import glob
import itertools
import json
import os
import random
import shutil
import signal
import subprocess

from life import LONG, PLAIN, Run, check_course, check_saved, environment, faulty, line_of, main
from test_train import ATHANOR, SANITIZED, check, course, newest_step, records, run, weights


def test_one_failed_line():
    """Metrics and samples that cannot be written for a while end nothing, and nothing is missing afterwards."""
    if SANITIZED:
        return
    for ranks in (0, 2):
        for name in ("metrics.jsonl", "samples.jsonl"):
            for short in (0, 1):
                shutil.rmtree("line", ignore_errors=True)
                # Begins to fail once the file is there.
                env = environment(ranks, FAULT_FOLDER=f"line/{name}", FAULT_ERRNO=errno.ENOSPC,
                                  FAULT_AT=7, FAULT_COUNT=2, FAULT_SHORT=short)
                line = faulty(ranks, line_of(ranks, "life.yaml", "folder=line", "threads=1", "samples.every=5", "validation.every=10"))
                result = subprocess.run(line, capture_output=True, text=True, timeout=60, env=env)
                what = f"{name}, {ranks} ranks, short {short}"
                check(result.returncode == 0, f"{what}: {result.returncode} {result.stderr[-300:]}")
                check(result.stderr.count("No space left") == 1 and result.stderr.count("training goes on") == 1, f"{what}: warned once")
                check(result.stderr.count("is written again") == 1, f"{what}: and told when it was over: {result.stderr[-400:]}")
                check(len(records("line")) == 60, f"{what}: all records")
                text = open(f"line/{name}").read()
                check(text == open(f"line/checkpoints/step-00000060/{name}").read(), f"{what}: as the checkpoint has it")


def test_every_call():
    """Each call that changes a file fails once, with each error; in the end everything that was committed goes on as it was."""
    if SANITIZED:
        return
    random.seed(5)
    errors = [errno.ENOSPC, errno.EROFS, errno.EACCES, errno.EIO, errno.EFBIG, errno.EDQUOT, errno.ESTALE]
    steps = ["train.steps=6", "checkpoint.every=2", "checkpoint.keep_last=2"]
    for ranks in (0, 2):
        shutil.rmtree("whole", ignore_errors=True)
        shutil.rmtree("faulty", ignore_errors=True)
        run("train", *PLAIN, *steps, "folder=whole", ranks=ranks)
        line = faulty(ranks, line_of(ranks, *PLAIN, *steps, "folder=faulty"))
        env = environment(ranks, FAULT_FOLDER="faulty", FAULT_TOTAL="total", FAULT_HURRY="50")
        subprocess.run(line, env=env, check=True, capture_output=True)
        calls = int(open("total").read())
        tried = range(1, calls + 1) if ranks == 0 else random.sample(range(1, calls + 1), 20)
        check(calls > 30, f"{calls} calls were counted")  # of the rank that was last to end
        ends = {0: 0, 1: 0}
        for call in tried:
            shutil.rmtree("faulty", ignore_errors=True)
            number = errors[call % len(errors)]
            count = random.choice((1, 1, 3, 1000))
            faults = {**env, "FAULT_AT": str(call), "FAULT_ERRNO": str(number), "FAULT_COUNT": str(count), "FAULT_SHORT": str(call % 2)}
            result = subprocess.run(line, env=faults, capture_output=True, text=True, timeout=60)
            what = f"{ranks} ranks, call {call} of {calls}, {count} times {errno.errorcode[number]}"
            told = [l for l in result.stderr.splitlines() if "athanor: " in l]
            check(result.returncode in (0, 1) and len(told) == result.returncode, f"{what}: {result.returncode}, {told} {result.stderr[-200:]}")
            ends[result.returncode] = ends.get(result.returncode, 0) + 1
            run("train", *PLAIN, *steps, "folder=faulty", ranks=ranks)
            check(course("faulty") == course("whole") and weights("faulty") == weights("whole"), f"{what}: the same in the end")
        print(f"{ranks} ranks: of {len(tried)} runs {ends[0]} went on, {ends[1]} ended with a line")


def test_folder_gone():
    """A run folder that is removed, renamed or replaced under a run ends it, with one line."""
    def remove(folder):
        shutil.rmtree(folder, ignore_errors=True)

    def rename(folder):
        os.rename(folder, folder + "-elsewhere")

    def replace(folder):  # by one that looks like it
        shutil.copytree(folder, "other", ignore=shutil.ignore_patterns("step-*"))
        os.rename(folder, folder + "-elsewhere")
        os.rename("other", folder)

    for ranks, (act, word) in itertools.product((0, 2), ((remove, "removed"), (rename, "removed"), (replace, "removed"))):
        shutil.rmtree("gone-elsewhere", ignore_errors=True)
        running = Run("gone", ranks, [*LONG, "checkpoint.every=50"])
        running.wait_for(lambda: glob.glob("gone/checkpoints/step-*0"))
        act("gone")
        code = running.end()
        check(code == 1 and len(running.lines) == 1 and word in running.lines[0], f"{act.__name__}, {ranks} ranks: {code} {running.lines}")
        check(not glob.glob("gone/checkpoints/step-*"), f"{act.__name__}: nothing is saved there any more")
        if act is not remove:
            check_course("gone-elsewhere", ranks, f"{act.__name__}: what was committed")


def test_lost_data():
    """Data that one rank cannot use any more ends the run of all, saved; put right, it goes on as if nothing had been."""
    for ranks, damage in itertools.product((0, 2), ("one", "all")):
        shutil.rmtree("harmed", ignore_errors=True)
        shutil.copytree("corpus", "harmed")
        files = sorted(glob.glob("harmed/*.bin"))
        arguments = [*LONG, "data.corpus=harmed"]
        running = Run("lost", ranks, arguments)
        sound = {f: open(f, "rb").read() for f in files}
        for f in files:
            with open(f, "r+b") as file:
                if damage == "one":
                    file.seek(len(sound[f]) // 2)
                file.write(b"\xff" * (64 if damage == "one" else len(sound[f])))
        code = running.end()
        step = newest_step("lost")
        what = f"{damage} harmed, {ranks} ranks"
        check(code == 1 and len(running.lines) == 1 and f"saved after step {step}" in running.lines[0], f"{what}: {code} {running.lines}")
        check(records("lost")[-1]["step"] == step and records("lost")[-1]["skipped"] == 0, f"{what}: the lost step is no step")
        run("train", *arguments, "folder=lost", f"train.steps={step + 100000}", code=1, part="harmed", ranks=ranks)
        for f in files:
            with open(f, "r+b") as file:
                file.write(sound[f])
        run("train", *arguments, "folder=lost", f"train.steps={newest_step('lost') + 3}", ranks=ranks)
        steps = newest_step("lost")
        run("train", *arguments, "folder=calm", f"train.steps={steps}", ranks=ranks)
        check(course("lost") == course("calm") and weights("lost") == weights("calm"), f"{what}: the same in the end")
        shutil.rmtree("calm")


def test_changed_in_place():
    """What is written into a corpus under a run, though every value be a likely one, ends it, saved, and is not trained on."""
    for suffix, change in itertools.product((".bin", ".idx", ".sums"), ("written", "cut", "touched")):
        shutil.rmtree("changed", ignore_errors=True)
        shutil.copytree("corpus", "changed")
        running = Run("under", 0, [*LONG, "data.corpus=changed"])
        for name in glob.glob(f"changed/*{suffix}"):
            size = os.path.getsize(name)
            if change == "written":
                with open(name, "r+b") as file:
                    file.seek(size // 2)
                    file.write(bytes(size - size // 2))
            elif change == "cut":
                os.truncate(name, size // 2)
            else:
                os.utime(name)
        if change == "touched":
            running.process.send_signal(signal.SIGTERM)
            check(running.end() == 1 and "stopped by a signal" in running.lines[0], f"{suffix} touched: {running.lines}")
            continue
        code = running.end()
        check(code == 1 and len(running.lines) == 1 and suffix in running.lines[0] and "saved after step" in running.lines[0],
              f"{suffix} {change}: {code} {running.lines}")


def test_held_out_lost():
    """Held-out text that cannot be used any more is told at every look; training goes on."""
    for ranks in (0, 2):
        shutil.rmtree("harmed", ignore_errors=True)
        shutil.copytree("held-out", "harmed")
        running = Run("look", ranks, [*LONG, "data.validation=harmed", "validation.every=40"])
        for f in glob.glob("harmed/*.bin"):
            with open(f, "r+b") as file:
                file.write(b"\xff" * os.path.getsize(f))
        size = os.path.getsize("look/metrics.jsonl")
        running.wait_for(lambda: os.path.getsize("look/metrics.jsonl") > size + 40000)
        os.kill(running.rank(0) if ranks else running.process.pid, signal.SIGTERM)
        running.end()
        check_saved(running, f"held-out text lost, {ranks} ranks")
        check(running.told.count("harmed") > 1 and "training goes on" in running.told, f"told: {running.told[-400:]}")


def test_folder_of_others():
    """A run does not begin in a checkpoint, among checkpoints or in a corpus, where it would write over what is there."""
    run("train", *PLAIN, "folder=owner", "train.steps=12")
    def files():
        return {p: open(p, "rb").read() for f in ("owner", "corpus") for p in glob.glob(f"{f}/**", recursive=True) if os.path.isfile(p)}
    before = files()
    for folder in ("owner/checkpoints/step-00000012", "owner/checkpoints", "corpus"):
        run("train", *PLAIN, f"folder={folder}", "train.steps=24", code=1, part=f"{folder} is no folder for a run")
    check(files() == before, "and leaves all as it was")


def test_folder_of_each_rank():
    """Ranks that see other folders under one name end before the first step, not with checkpoints that are never whole."""
    os.mkdir("elsewhere")
    for name in ("corpus", "held-out", "life.yaml"):
        os.symlink(os.path.abspath(name), f"elsewhere/{name}")
    train = [ATHANOR, "train", *PLAIN, "folder=apart", "train.steps=12"]
    line = ["mpirun", "-n", "1", *train, ":", "-n", "1", "-wdir", os.path.abspath("elsewhere"), *train]
    result = subprocess.run(line, capture_output=True, text=True, timeout=60, env=environment(2))
    told = [l for l in result.stderr.splitlines() if "athanor: " in l]
    check(result.returncode == 1 and len(told) == 1 and "rank 1" in told[0] and "is not the one of rank 0" in told[0],
          f"folders apart: {result.returncode} {result.stderr[-400:]}")
    check(os.listdir("apart/checkpoints") == ["lock"] and not os.path.exists("elsewhere/apart"), "nothing was trained or left")


def test_closed_descriptors():
    """Whatever of descriptors 0 to 2 is closed, nothing but what belongs there is in a file, and failed results are errors."""
    run("train", *PLAIN, "folder=open", "train.steps=12")
    for count in (1, 2, 3):
        for closed in itertools.combinations((0, 1, 2), count):
            shutil.rmtree("closed", ignore_errors=True)
            closing = " ".join(f"{d}>&-" for d in closed)
            line = line_of(0, *PLAIN, "folder=closed", "train.steps=12")
            code = subprocess.run(["bash", "-c", f"exec \"$@\" {closing}", "sh", *line], capture_output=True, timeout=60).returncode
            check(code == 0, f"{closing}: {code}")
            check(course("closed") == course("open"), f"{closing}: the course")
            for name in ("samples.jsonl", "config.yaml", "tokenizer.json"):
                same = open(f"closed/{name}").read().replace('"closed"', '"open"')
                check(same == open(f"open/{name}").read(), f"{closing}: {name}")
            check(weights("closed") == weights("open"), f"{closing}: the weights")
            json.load(open("closed/run.json"))
    # What is closed is nowhere while the run works, so that no file of its own gets the number.
    for closed in (0, 1, 2):
        running = Run("closed", before=lambda: os.close(closed))
        for descriptor in (0, 1, 2):
            target = os.readlink(f"/proc/{running.process.pid}/fd/{descriptor}")
            check((target == "/dev/null") >= (descriptor == closed), f"{closed} closed: {descriptor} is {target}")
        running.process.kill()
        running.process.communicate()
    result = subprocess.run(["bash", "-c", "exec \"$0\" train --keys >&-", ATHANOR], capture_output=True, text=True)
    check(result.returncode == 1 and "standard output cannot be written" in result.stderr, f"results nowhere: {result.returncode}")


if __name__ == "__main__":
    main((test_one_failed_line, test_every_call, test_folder_gone, test_lost_data, test_changed_in_place, test_held_out_lost, test_folder_of_others, test_folder_of_each_rank,
          test_closed_descriptors))
