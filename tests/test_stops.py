#!/usr/bin/env python3
"""How a run is stopped from the outside: signals, limits, readers and launchers that go or are slow."""
import os
import resource
import shutil
import signal
import subprocess
import time

from life import LONG, PLAIN, Run, check_course, check_saved, environment, faulty, line_of, main
from test_train import SANITIZED, check, newest_step, records, run


def test_signals():
    """Whatever the world outside sends to end a run saves it first."""
    for name in ("TERM", "INT", "HUP", "USR1", "USR2", "ALRM", "XCPU", "PWR"):
        running = Run("signal")
        running.process.send_signal(getattr(signal, f"SIG{name}"))
        running.end()
        check_saved(running, f"SIG{name}")
        check(f"SIG{name} asks to stop" in running.told, f"SIG{name} is named")
    check_course("signal", 0, "stopped by SIGPWR")
    for name in ("TERM", "INT", "HUP", "USR1", "USR2", "ALRM"):
        running = Run("signal-2", 2)
        running.process.send_signal(getattr(signal, f"SIG{name}"))
        running.end()
        check_saved(running, f"SIG{name} to mpirun")
    check_course("signal-2", 2, "stopped by mpirun")
    running = Run("signal-1", 1)
    running.process.send_signal(signal.SIGTERM)
    running.end()
    check_saved(running, "SIGTERM to mpirun with one rank")
    # Asked of one rank only, all save and stop.
    for rank, name in ((0, "TERM"), (1, "TERM"), (1, "HUP")):
        running = Run("signal-2", 2)
        os.kill(running.rank(rank), getattr(signal, f"SIG{name}"))
        running.end()
        check_saved(running, f"SIG{name} to rank {rank} alone")


def test_impatience():
    """A second Ctrl-C or SIGTERM kills; what comes by itself a second time does not."""
    if SANITIZED:
        return  # the faults cannot be preloaded there
    slow = environment(LD_PRELOAD=os.path.abspath("faults.so"), FAULT_FOLDER="signal", FAULT_FSYNC_MS=300)
    for name, kills in (("TERM", True), ("INT", True), ("HUP", False), ("USR1", False), ("XCPU", False)):
        running = Run("signal", env=slow)
        for _ in range(2):
            running.process.send_signal(getattr(signal, f"SIG{name}"))
            time.sleep(0.3)
        code = running.end()
        if kills:
            check(code == -getattr(signal, f"SIG{name}"), f"the second SIG{name} kills: {code}")
        else:
            check_saved(running, f"SIG{name} twice")
    running = Run("signal", env=slow)  # a limit's warning and then the limit; a terminal that closes
    for name in ("USR1", "HUP", "TERM", "HUP"):
        running.process.send_signal(getattr(signal, f"SIG{name}"))
        time.sleep(0.2)
    running.end()
    check_saved(running, "one signal after another")
    # A batch system sends SIGTERM to all, and mpirun sends its own a little later.
    running = Run("signal-2", 2, env={**slow, "OMPI_MCA_odls_base_sigkill_timeout": "6", "FAULT_FSYNC_MS": "600"})
    for rank in (0, 1):
        os.kill(running.rank(rank), signal.SIGTERM)
    running.process.send_signal(signal.SIGTERM)
    running.end()
    check_saved(running, "SIGTERM to the ranks and to mpirun")


def test_nohup():
    """Under nohup a terminal that closes is no reason to stop."""
    running = Run("signal", before=lambda: signal.signal(signal.SIGHUP, signal.SIG_IGN))
    running.process.send_signal(signal.SIGHUP)
    size = os.path.getsize("signal/metrics.jsonl")
    running.wait_for(lambda: os.path.getsize("signal/metrics.jsonl") > size + 3000)
    check(running.process.poll() is None, "an ignored SIGHUP stays ignored")
    running.process.send_signal(signal.SIGTERM)
    running.end()
    check_saved(running, "SIGTERM after an ignored SIGHUP")


def test_reader_gone():
    """A run whose log nobody reads, or nobody reads any more, goes on."""
    for command in ("exec \"$@\" 2>&1 | head -1", "exec \"$@\" 2>&1 | head -c 1", "exec \"$@\" 2>/dev/full", "exec \"$@\" 2>&-"):
        shutil.rmtree("piped", ignore_errors=True)
        line = line_of(0, *PLAIN, "folder=piped", "train.steps=40", "log.every=1")
        result = subprocess.run(["bash", "-o", "pipefail", "-c", command, "sh", *line], stdout=subprocess.DEVNULL, timeout=60)
        check(result.returncode == 0 and newest_step("piped") == 40, f"{command}: {result.returncode}")
    check_course("piped", 0, "without a reader")
    # A reader that is there but does not read: more lines than a pipe holds.
    running = Run("piped", 0, [*PLAIN, "train.steps=3000", "checkpoint.every=0", "log.every=1"])
    running.wait_for(lambda: False)
    check(running.process.poll() == 0 and newest_step("piped") == 3000, f"a log that is not read: {running.process.poll()}")
    running.end()
    # mpirun itself ends where its reader is gone; the ranks save before.
    shutil.rmtree("piped", ignore_errors=True)
    line = line_of(2, *LONG, "folder=piped", "log.every=1", "checkpoint.every=50")
    subprocess.run(["bash", "-c", "\"$@\" 2>&1 | head -1", "sh", *line], stdout=subprocess.DEVNULL, timeout=120, env=environment(2))
    time.sleep(1)
    check(newest_step("piped") > 0, "two ranks without a reader: something is saved")
    check_course("piped", 2, "two ranks without a reader")


def test_limits():
    """A file size limit that no save fits is an error, not a signal; a limit of processor time is a stop."""
    for ranks in (0, 2):
        shutil.rmtree("limit", ignore_errors=True)
        limit = lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (100 << 10, 100 << 10))
        options = {"preexec_fn": limit} if not ranks else {}
        line = line_of(ranks, *PLAIN, "folder=limit", "train.steps=7")
        if ranks:  # mpirun's own files are larger
            line[3:3] = ["bash", "-c", "ulimit -f 100; exec \"$@\"", "sh"]
        result = subprocess.run(line, capture_output=True, text=True, timeout=60, env={**environment(ranks), "ASAN_OPTIONS": "detect_leaks=0"},
                                **options)
        told = [l for l in result.stderr.splitlines() if "athanor: " in l]
        check(result.returncode == 1 and len(told) == 1 and "no checkpoint could be saved in limit/checkpoints" in told[0], f"SIGXFSZ: {result.returncode} {told}")
        check("File too large" in told[0], "SIGXFSZ: says what")
        run("train", *PLAIN, "folder=limit", "train.steps=7", ranks=ranks)
    running = Run("limit", before=lambda: resource.setrlimit(resource.RLIMIT_CPU, (2, 30)))
    running.end()
    check_saved(running, "SIGXCPU of a limit")


def test_slow_steps():
    """Steps that last longer than a second: mpirun's limit is told, and a larger one is enough."""
    slow = [*LONG, "train.batch_tokens=131072", "model.width=64", "model.context=128", "train.micro_batch=32", "data.sequence_length=128"]
    if SANITIZED:
        return
    # The steps' length is the machine's: one that takes 1.5 s here on two ranks, and longer on one.
    run("train", *slow, "folder=measured", "train.steps=2", ranks=2)
    seconds = records("measured")[-1]["step_seconds"]
    tokens = max(1, round(1.5 / seconds * 131072 / 8192)) * 8192
    slow = [a if not a.startswith("train.batch_tokens") else f"train.batch_tokens={tokens}" for a in slow]
    for ranks in (1, 2):
        running = Run("slow", ranks, slow, size=600, env=environment(ranks, OMPI_MCA_odls_base_sigkill_timeout=8))
        running.process.send_signal(signal.SIGTERM)
        running.end()
        check_saved(running, f"slow steps, {ranks} ranks")
        check("mpirun kills" not in running.told, "a limit that is long enough is not worth a word")
    running = Run("slow", 2, slow, size=600, env={**environment(2), "OMPI_MCA_odls_base_sigkill_timeout": "1"})
    running.process.send_signal(signal.SIGUSR1)
    running.end()
    check_saved(running, "slow steps and SIGUSR1 have no limit")
    check("mpirun kills its ranks 1 s after" in running.told, f"the limit is told: {running.told[-500:]}")


def test_slow_start():
    """MPI that takes long to start, or a host that looks for its own name, is explained; one rank of a host speaks."""
    if SANITIZED:
        return
    for ranks in (1, 2):
        line = faulty(ranks, line_of(ranks, *PLAIN, "folder=begun", "train.steps=2"))
        result = subprocess.run(line, capture_output=True, text=True, timeout=60, env=environment(ranks, FAULT_INIT_MS=5600))
        check(result.returncode == 0 and result.stderr.count("warning: MPI on") == 1 and "/etc/hosts" in result.stderr,
              f"slow start: {result.returncode} {result.stderr[:500]}")
        # The run does not wait for the look-up; it lasts longer here.
        line = faulty(ranks, line_of(ranks, *LONG, "folder=begun"))
        process = subprocess.Popen(line, stderr=subprocess.PIPE, text=True, env=environment(ranks, FAULT_LOOKUP_MS=2600))
        time.sleep(5)
        process.send_signal(signal.SIGUSR1)
        told = process.communicate(timeout=60)[1]
        check(told.count("took 3 s to look up its own name") == 1, f"slow look-up: {told[:300]}")
    shutil.rmtree("begun")


if __name__ == "__main__":
    main((test_signals, test_impatience, test_nohup, test_reader_gone, test_limits, test_slow_steps, test_slow_start))
