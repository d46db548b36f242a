#!/usr/bin/env python3
"""Checks that nobody but train/model/placement.c computes where a parameter lies.

    tests/check_placement.py [ROOT]

Three things are looked for in product code: the fields of a Place that say where (they belong to placement.c), arithmetic on
the base pointers of a model's arrays (others ask placement for a row's pointer), and a row's logical index used with them.
Prints one line per violation and exits 1 if there is any.
"""
import pathlib
import re
import sys

FOLDERS = ("core", "kernels", "parallel", "data", "train", "launch", "tests", "bench")
OWNERS = {"train/model/placement.c", "train/model/placement.h", "tests/test_placement.c"}
PLACES = re.compile(r"(?:->|\.)(weight_at|scale_at|gradient_at|state_at|unit_at|sum_at|slot_at)\b")
# The arrays of ModelWeights, whatever the variable is called; `weights` and `scales` are words that others use too.
BASES = r"(?:\w+(?:->|\.))+(?:masters|grads|moment1|moment2|scale1|scale2)\b|\bweights(?:->|\.)(?:weights|scales)\b"
ARITHMETIC = re.compile(rf"(?:{BASES})\s*(?:\[|\+)|\+\s*(?:\([^()]*\)\s*)?(?:\w+(?:->|\.))*(?:{BASES})")
# The flat gradients as a whole belong to those that reduce them, in pieces: they know of no row.
WHOLE = {"parallel/buckets.c"}


def problems(root):
    for path in sorted(p for folder in FOLDERS for p in (root / folder).rglob("*") if p.suffix in (".c", ".h", ".cu", ".cpp")):
        name = str(path.relative_to(root))
        if name in OWNERS or name in WHOLE or name.startswith("build"):
            continue
        for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), 1):
            code = line.split("//")[0]
            if PLACES.search(code):
                yield f"{name}:{number}: a place within the arrays; ask placement.h for the row's pointer"
            elif name.startswith(("train/", "launch/")) and ARITHMETIC.search(code):
                yield f"{name}:{number}: arithmetic on an array of all parameters; ask placement.h for the row's pointer"


def main():
    root = pathlib.Path(sys.argv[1] if len(sys.argv) > 1 else __file__).resolve()
    root = root if root.is_dir() else root.parent.parent
    found = list(problems(root))
    for line in found:
        print(line)
    sys.exit(1 if found else 0)


if __name__ == "__main__":
    main()
