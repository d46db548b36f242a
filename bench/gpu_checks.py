#!/usr/bin/env python3
"""Checks a card part by part, each under a time limit of its own: called by bench/gpu.

    bench/gpu_checks.py [--rehearse] [--folder FOLDER] --part smoke|checks [--only PATTERN] [--seconds N] BUILT

The part smoke is check_gpu's smoke checks: a small shape of every kind of kernel. The part checks is check_gpu's others, in the
sizes of training, then the programs of tests/ that hold every operation, product and classifier against float64. BUILT is the
folder that has these programs. A check that fails, ends its program or hangs costs itself, is named, and the rest goes on; after N
seconds none is begun. Every line also goes to FOLDER/checks.txt as it comes; the last one sums up, and FOLDER/checked-PART keeps it
for the tables. Exit code 1 where anything was wrong or not done.
"""
import argparse
import os
import pathlib
import re
import subprocess
import sys
import time

import gpu_table

CHECK_SECONDS = 25  # one check of check_gpu; the longest, the classifier's, computes about 5 s on the host
PROGRAM_SECONDS = 75  # one program of tests/, most of it plain loops of the host
REHEARSAL_SECONDS = 1800
PROGRAMS = ("test_matmul", "test_classifier", "test_ops_cards")


class Report:
    """Lines as they come, to the screen and the folder."""

    def __init__(self, options):
        self.options, self.began, self.bad, self.good = options, time.monotonic(), [], 0

    def tell(self, line):
        print(line, flush=True)
        if self.options.folder:
            with open(self.options.folder / "checks.txt", "a", encoding="utf-8") as file:
                file.write(line + "\n")

    def add(self, name, verdict, detail, seconds):
        """verdict: "ok", "absent" (there is nothing to check here) or what is wrong."""
        self.good += verdict == "ok"
        if verdict not in ("ok", "absent"):
            self.bad.append(name)
        self.tell(f"{verdict:6} {seconds:6.1f} s  {name}: {detail}")

    def left(self):
        return self.options.seconds - (time.monotonic() - self.began)

    def close(self):
        card = "the simulated card" if self.options.rehearse else "this card"
        parts = [f"{self.options.part}: {self.good} right on {card} in {time.monotonic() - self.began:.0f} s"]
        if self.bad:
            parts.append(f"**{len(self.bad)} WRONG, HANGING OR NOT DONE: {', '.join(self.bad)}**")
        line = "; ".join(parts)
        self.tell(line)
        if self.options.folder:
            (self.options.folder / f"checked-{self.options.part}").write_text(line + "\n", encoding="utf-8")
        return 1 if self.bad else 0


def find(built, name):
    """A program of BUILT; in a build folder of CMake's the tests have a folder of their own."""
    for path in (built / name, built / "tests" / name):
        if os.access(path, os.X_OK):
            return path
    return None


def check_server(report, options, names):
    """What check_gpu can check. It is started again where a check ended it."""
    limit = REHEARSAL_SECONDS if options.rehearse else CHECK_SECONDS
    program = [str(find(options.built, "check_gpu"))] + (["--rehearse"] if options.rehearse else [])
    server = gpu_table.Server("check_gpu", program + ["--serve"])
    for name in names:
        start = time.monotonic()
        if report.left() < 1:
            report.add(name, "LATE", "not checked: time was up", 0)
            continue
        try:
            verdict, _, detail = server.ask(name, min(limit, report.left())).partition(": ")
        except gpu_table.Absent as error:
            verdict, detail = "FAILED", str(error)
        report.add(name, verdict, detail, time.monotonic() - start)
    server.stop()


def check_program(report, options, name):
    path, start = find(options.built, name), time.monotonic()
    limit = REHEARSAL_SECONDS if options.rehearse else PROGRAM_SECONDS
    if path is None:
        report.add(name, "FAILED", f"it is not in {options.built}", 0)
        return
    if report.left() < 1:
        report.add(name, "LATE", "not checked: time was up", 0)
        return
    environment = {**os.environ, "ATHANOR_TEST_DEVICE": "simulated" if options.rehearse else "cuda"}
    log = (options.folder or options.built) / f"{name}.log"
    with open(log, "wb") as out:
        process = subprocess.Popen([path], stdout=out, stderr=subprocess.STDOUT, stdin=subprocess.DEVNULL, env=environment)
        try:
            code = process.wait(min(limit, report.left()))
        except subprocess.TimeoutExpired:
            process.kill()
            try:
                process.wait(20)
            except subprocess.TimeoutExpired:  # in a driver that does not answer
                pass
            report.add(name, "FAILED", f"took longer than {limit:.0f} s; see {log}", time.monotonic() - start)
            return
    lines = log.read_text(errors="replace").splitlines() or ["it said nothing"]
    report.add(name, "ok" if code == 0 else "FAILED", lines[-1] if code == 0 else f"exit code {code}: {lines[-1]}; see {log}",
               time.monotonic() - start)


def read_options():
    parser = argparse.ArgumentParser(prog="gpu_checks.py", description="Checks a card part by part.")
    parser.add_argument("--rehearse", action="store_true", help="on the simulated card")
    parser.add_argument("--folder", type=pathlib.Path, help="where lines are written as they come")
    parser.add_argument("--part", choices=("smoke", "checks"), required=True)
    parser.add_argument("--only", default=os.environ.get("CHECKS", "."), metavar="PATTERN", help="do the checks that match")
    parser.add_argument("--seconds", type=float, default=300, help="begin no check later than this")
    parser.add_argument("built", metavar="BUILT", type=pathlib.Path)
    options = parser.parse_args()
    try:
        options.pattern = re.compile(options.only)
    except re.error as error:
        sys.exit(f"bench/gpu: CHECKS is '{options.only}', no regular expression: {error}")
    return options


def main():
    options = read_options()
    program = find(options.built, "check_gpu")
    if program is None:
        sys.exit(f"bench/gpu: no {options.built}/check_gpu")
    listed = subprocess.run([program] + (["--rehearse"] if options.rehearse else []) + ["--list"], capture_output=True, text=True,
                            check=True).stdout.split()
    smoke = options.part == "smoke"
    report = Report(options)
    check_server(report, options, [n for n in listed if n.startswith("smoke/") == smoke and options.pattern.search(n)])
    for name in PROGRAMS:
        if not smoke and options.pattern.search(name):
            check_program(report, options, name)
    sys.exit(report.close())


if __name__ == "__main__":
    main()
