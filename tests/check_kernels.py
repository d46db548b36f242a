#!/usr/bin/env python3
"""Checks what ptxas said of the kernels: no spills, no serialised wgmma, no more registers than each kernel states.

    cmake --preset cards && cmake --build build-cards --clean-first | tests/check_kernels.py

Reads a build's output (option ATHANOR_KERNEL_REPORT) from standard input, passes on what is not ptxas' report, prints one line
per violation and a summary, and exits 1 if there is any. Limits: kernels/cuda/registers.txt, a line
"part-of-the-mangled-name architecture most-registers [spills-allowed]" each; a kernel takes the first line that fits, and one
without a line must only not spill.
"""
import pathlib
import re
import sys

ENTRY = re.compile(r"Compiling entry function '(\S+)' for '(\S+)'")
SPILLS = re.compile(r"(\d+) bytes stack frame, (\d+) bytes spill stores, (\d+) bytes spill loads")
USED = re.compile(r"Used (\d+) registers")
NOISE = re.compile(r"^ptxas info|^\s+\d+ bytes stack frame|^$")
# C7510, C7511 ...: wgmma whose accumulators are touched too early, or that do not fit, wait for each other.
SERIAL = re.compile(r"wgmma.*serializ", re.IGNORECASE)


def read_limits(path):
    limits = []
    for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), 1):
        words = line.split("#")[0].split()
        if not words:
            continue
        if len(words) not in (3, 4) or not words[2].isdigit() or words[3:] not in ([], ["spills-allowed"]):
            sys.exit(f"{path}:{number}: expected: name architecture registers [spills-allowed]")
        limits.append((words[0], words[1], int(words[2]), len(words) == 4))
    return limits


def main():
    root = pathlib.Path(__file__).resolve().parent.parent
    limits = read_limits(root / "kernels/cuda/registers.txt")
    problems, kernels, entry, spilled, used_lines, last = [], {}, None, 0, set(), ""
    for line in sys.stdin:
        line = line.rstrip("\n")
        if not NOISE.match(line):
            print(line)
        if SERIAL.search(line):
            problems.append(f"wgmma is serialised: {line.strip()}")
        match = ENTRY.search(line)
        if match:
            entry, spilled = match.groups(), 0
            continue
        match = SPILLS.search(line)
        if match and entry:
            spilled = int(match.group(2)) + int(match.group(3))
        match = USED.search(line)
        if match and entry:
            kernels[entry] = (int(match.group(1)), spilled)
            entry = None
    for (name, architecture), (registers, spilled) in sorted(kernels.items()):
        fit = [i for i, limit in enumerate(limits) if limit[0] in name and limit[1] in (architecture, "any")]
        used_lines.update(fit[:1])
        most, may_spill = (limits[fit[0]][2], limits[fit[0]][3]) if fit else (255, False)
        if registers > most:
            problems.append(f"{architecture} {name}: {registers} registers, its limit is {most}")
        if spilled and not may_spill:
            problems.append(f"{architecture} {name}: spills {spilled} bytes")
    for problem in problems:
        print(problem)
    architectures = sorted({architecture for _, architecture in kernels})
    stated = sum(any(l[0] in name and l[1] in (architecture, "any") for l in limits) for name, architecture in kernels)
    print(f"{len(kernels)} kernels for {', '.join(architectures)}, {stated} with a stated limit: {len(problems)} problems")
    sys.exit(1 if problems or not kernels else 0)


if __name__ == "__main__":
    main()
