"""What the tests of a run's life share: runs that work and are then disturbed, with one rank and with two.

Whatever happens, a run goes on, or it ends with one line, and what it goes on from later is what an undisturbed run had, bit
for bit.
"""
import glob
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time

import test_train
from test_train import ATHANOR, CONFIG, RANKS_ENVIRONMENT, SOURCE, check, course, descendants, make_corpus, newest_step, records, run, write

# mpirun hands SIGTERM and SIGINT on after this many seconds, and kills after as many again.
GRACE = 2
# A constant rate, so that the course does not depend on the number of steps.
PLAIN = ["life.yaml", "threads=1", "validation.every=0", "samples.every=0", "schedule.kind=constant"]
LONG = [*PLAIN, "train.steps=200000", "checkpoint.every=0"]


def line_of(ranks, *arguments):
    return (["mpirun", "-n", str(ranks)] if ranks else []) + [ATHANOR, "train", *arguments]


def environment(ranks=0, **more):
    base = RANKS_ENVIRONMENT if ranks else os.environ
    return {**base, "OMPI_MCA_odls_base_sigkill_timeout": str(GRACE), **{k: str(v) for k, v in more.items()}}


class Run:
    """A run that works, with some steps behind it."""

    def __init__(self, folder, ranks=0, arguments=LONG, before=None, env=None, size=3000, **options):
        shutil.rmtree(folder, ignore_errors=True)
        self.folder, self.ranks, self.arguments = folder, ranks, arguments
        self.process = subprocess.Popen(line_of(ranks, *arguments, f"folder={folder}"), stderr=subprocess.PIPE, text=True, errors="replace",
                                        preexec_fn=before, env=env or environment(ranks), **options)
        self.wait_for(lambda: os.path.getsize(f"{folder}/metrics.jsonl") > size)

    def wait_for(self, ready, seconds=60):
        end = time.time() + seconds
        while time.time() < end and self.process.poll() is None:
            try:
                if ready():
                    return
            except OSError:
                pass
            time.sleep(0.02)

    def rank(self, number):
        for pid in descendants(self.process.pid):
            try:
                text = open(f"/proc/{pid}/environ", "rb").read().split(b"\0")
                if b"OMPI_COMM_WORLD_RANK=%d" % number in text:
                    return pid
            except OSError:
                pass

    def end(self):
        try:
            self.told = self.process.communicate(timeout=60)[1]
        except subprocess.TimeoutExpired:
            for pid in reversed(descendants(self.process.pid)):
                os.kill(pid, signal.SIGKILL)
            self.told = self.process.communicate()[1]
            check(False, f"{self.folder}: hangs: {self.told[-500:]}")
        self.lines = [l for l in self.told.splitlines() if "athanor: " in l]
        return self.process.returncode


def check_saved(running, what):
    """The stopped run said so in one line, saved its last step, and goes on from it."""
    code, folder = running.process.returncode, running.folder
    check(code == 1 and len(running.lines) == 1 and "stopped by a signal with everything saved" in running.lines[0],
          f"{what}: {code} {running.told[-600:]}")
    if not check(glob.glob(f"{folder}/checkpoints/step-*"), f"{what}: a checkpoint"):
        return
    step = newest_step(folder)
    check(records(folder)[-1]["step"] == step, f"{what}: the last step is saved")
    check(f"saved after step {step} and ends" in running.told, f"{what}: says at which step: {running.told[-300:]}")
    check(not glob.glob(f"{folder}/**/*.partial", recursive=True), f"{what}: nothing half-written")


def check_course(folder, ranks, what, steps=None):
    """Goes on, and then equals a run that was left alone."""
    steps = steps or newest_step(folder) + 3
    run("train", *PLAIN, f"folder={folder}", f"train.steps={steps}", ranks=ranks)
    reference = f"reference-{ranks}"
    if not os.path.exists(reference) or newest_step(reference) < steps:
        shutil.rmtree(reference, ignore_errors=True)
        run("train", *PLAIN, f"folder={reference}", f"train.steps={steps + 100}", "checkpoint.every=0", ranks=ranks)
    check(course(folder) == course(reference)[:steps],
          f"{what}: the same course as an undisturbed run")


def faulty(ranks, line):
    """The command with faults.c preloaded into the program, not into mpirun."""
    at = 3 if ranks else 0
    return [*line[:at], "env", f"LD_PRELOAD={os.path.abspath('faults.so')}", *line[at:]]


def main(tests):
    folder = tempfile.mkdtemp(prefix="athanor-life-")
    os.chdir(folder)
    try:
        make_corpus()
        write("life.yaml", CONFIG.format(folder="life"))
        subprocess.run([os.environ.get("CC", "cc"), "-O1", "-shared", "-fPIC", "-o", "faults.so", f"{SOURCE}/tests/faults.c", "-ldl"], check=True)
        for test in tests:
            if len(sys.argv) > 1 and test.__name__ not in sys.argv[1:]:
                continue
            before, start = test_train.failures, time.time()
            test()
            print(f"{test.__name__:24} {'ok' if test_train.failures == before else 'FAILED'}  {time.time() - start:.1f} s", flush=True)
    finally:
        os.chdir("/")
        shutil.rmtree(folder, ignore_errors=True)
    print(f"{test_train.checks} checks, {test_train.failures} failed")
    sys.exit(test_train.failures > 0)
