#!/usr/bin/env python3
"""Runs whose folder is on a file system across a network (network_disk.py): each rank is a host of its own, which sees late what the
others wrote, without flock, and with calls that fail or do half of what they should. Nothing is lost and nothing is damaged."""
import errno
import os
import shutil
import subprocess
import sys

import network_disk
from test_train import ATHANOR, CONFIG, RANKS_ENVIRONMENT, check, course, main, newest_step, run, write

PLAIN = ("threads=1", "validation.every=0", "samples.every=0", "schedule.kind=constant", "train.steps=20", "checkpoint.every=10", "checkpoint.keep_every=10")


def on_hosts(name, delay=0, faults=(), more=(), folder="run"):
    """A run of two ranks, each with a mount of its own at the same place. Returns the store and what was told."""
    write("net.yaml", CONFIG.format(folder="unused"))
    store = network_disk.Store(f"{name}-store", delay)
    hosts = [network_disk.mount(store, f"{name}-{i}") for i in range(2)]
    os.makedirs(f"{name}", exist_ok=True)
    store.faults = [list(fault) for fault in faults]
    line = ["mpirun"]
    for number, host in enumerate(hosts):
        line += [*([":"] if number else []), "-n", "1", "unshare", "-m", "sh", "-c", 'mount --bind "$0" "$1" && shift && exec "$@"', host.place,
                 os.path.abspath(name), ATHANOR, "train", "net.yaml", f"folder={name}/run", *PLAIN, *more]
    result = subprocess.run(line, capture_output=True, text=True, timeout=240, env=RANKS_ENVIRONMENT)
    for host in hosts:
        host.unmount()
    check(result.returncode == 0, f"{name}: {result.returncode} {result.stderr[-1500:]}")
    check(store.calls.get("lock", 0) > 0, f"{name}: a lock was asked for, and was not there")
    return f"{name}-store/run", store, result.stderr


def whole(folder, name):
    if not os.path.exists("local"):
        run("train", "net.yaml", "folder=local", *PLAIN, ranks=2)
    told = run("checkpoint", "verify", folder)
    check(told.count("  whole") == 2, f"{name}: {told}")
    check(course(folder) == course("local"), f"{name}: the same course as on a local disk")


def test_late():
    folder, store, told = on_hosts("late", delay=1.2)
    check(store.hidden > 0, "something was looked for before it was to be seen")
    check("not saved" not in told and "tried again" not in told, told[-600:])
    whole(folder, "late")


def test_failures():
    """Each passes: the save is tried again, and what was to be saved is. (The kernel tries once more itself where a handle is stale.)"""
    for name, *fault in (("write-eio", "write", "rank-00001.h5", errno.EIO, 1, 0), ("fsync-eio", "fsync", "rank-00000.h5", errno.EIO, 1, 0),
                         ("open-stale", "create", "rank-00001.h5", errno.ESTALE, 3, 0), ("rename-stale", "rename", "step-00000010", errno.ESTALE, 3, 0),
                         ("flip", "read", "rank-00001.h5", "flip", 1, 0), ("full", "write", "rank-00000.h5", errno.ENOSPC, 1, 0)):
        folder, store, told = on_hosts(name, faults=[fault])
        check(store.faults[0][3] == 0 and "is tried again in" in told and "not saved" not in told, f"{name}: {store.faults} {told[-600:]}")
        whole(folder, name)


def test_short():
    """Half of what was asked is written, and read; a handle goes stale while a file is read back."""
    faults = [["read", "rank-00001.h5", errno.ESTALE, 2, 0], ["open", "rank-00000.h5", errno.ESTALE, 2, 0], ["write", ".h5", "short", 9, 2],
              ["read", ".h5", "short", 9, 2]]
    folder, store, told = on_hosts("short", faults=faults)
    check(all(fault[3] == 0 for fault in store.faults), f"short: all happened: {store.faults}")
    check("not saved" not in told, told[-600:])
    whole(folder, "short")


if __name__ == "__main__":
    if not network_disk.can_mount():
        print("no right to mount FUSE: not tested")
        sys.exit(77)
    main(test_late, test_failures, test_short)
