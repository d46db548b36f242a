#!/usr/bin/env python3
"""The rules about sources hold, and the scripts that check them see what breaks them."""
import os
import pathlib
import shutil
import subprocess
import sys
import tempfile

ROOT = pathlib.Path(os.environ["ATHANOR_SOURCE"])
FOLDERS = ("core", "kernels", "parallel", "data", "train", "launch", "tests", "bench")
# A script, a file, a line of code that breaks its rule, and a part of what it then says.
BREAKS = [
    ("check_includes.py", "core/box.c", '#include "kernels/kernels.h"', "core/ may not include kernels/"),
    ("check_includes.py", "train/trainer.c", '#include "log.h"', "must start with the folder"),
    ("check_placement.py", "train/model/block.c", "int64_t at(const Place *p) { return p->gradient_at; }", "a place within the arrays"),
    ("check_placement.py", "train/trainer.c", "float *at(Model *m) { return m->weights.grads + 5; }", "arithmetic on an array"),
    ("check_placement.py", "train/model/step.c", "float at(ModelWeights *weights) { return weights->masters[7]; }", "arithmetic on an array"),
    ("check_placement.py", "train/look.c", "float *at(const ModelWeights *w, int64_t n) { return w->moment1 + n; }", "arithmetic on an array"),
    ("check_placement.py", "train/resume.c", "char *at(int64_t n, Model *m) { return n + (char *)m->weights.weights; }", "arithmetic on an array"),
]


def run(script, root):
    return subprocess.run([sys.executable, ROOT / "tests" / script, root], capture_output=True, text=True)


def main():
    failures = 0
    for script in ("check_includes.py", "check_placement.py"):
        told = run(script, ROOT)
        if told.returncode != 0:
            print(f"FAILED: {script} of the tree:\n{told.stdout}")
            failures += 1
    with tempfile.TemporaryDirectory() as folder:
        for name in FOLDERS:
            shutil.copytree(ROOT / name, pathlib.Path(folder, name), ignore=shutil.ignore_patterns("golden", "corpus", "__pycache__"))
        for script, file, line, expected in BREAKS:
            path = pathlib.Path(folder, file)
            text = path.read_text()
            path.write_text(text + line + "\n")
            told = run(script, folder)
            if told.returncode != 1 or expected not in told.stdout:
                print(f"FAILED: {script} does not see {line!r} in {file}: {told.stdout}{told.stderr}")
                failures += 1
            path.write_text(text)
    print(f"{2 + len(BREAKS)} checks, {failures} failed")
    sys.exit(1 if failures else 0)


if __name__ == "__main__":
    main()
