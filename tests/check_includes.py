#!/usr/bin/env python3
"""Checks who includes whom: each folder may include only itself and what stands below it.

    tests/check_includes.py [ROOT]

Project headers are written with their folder, in quotes ("core/error.h"); everything else in angle brackets. Prints one line
per violation and exits 1 if there is any.
"""
import pathlib
import re
import sys

ALLOWED = {
    "launch": {"train", "parallel", "data", "kernels", "core"},
    "train": {"parallel", "data", "kernels", "core"},
    "parallel": {"kernels", "core"},
    "data": {"core"},
    "kernels": {"core"},
    "core": set(),
    "tests": {"launch", "train", "parallel", "data", "kernels", "core", "bench"},
    "bench": {"launch", "train", "parallel", "data", "kernels", "core"},
}
INCLUDE = re.compile(r'^\s*#\s*include\s*(["<])([^">]+)[">]')


def problems(root):
    for path in sorted(p for folder in ALLOWED for p in (root / folder).rglob("*") if p.suffix in (".c", ".h", ".cu", ".cuh")):
        name = path.relative_to(root)
        folder = name.parts[0]
        for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), 1):
            match = INCLUDE.match(line)
            if not match:
                continue
            bracket, header = match.groups()
            target = header.split("/")[0]
            if bracket == "<":
                if target in ALLOWED and (root / header).exists():
                    yield f"{name}:{number}: <{header}> is ours: write it in quotes"
            elif "/" not in header or target not in ALLOWED:
                yield f'{name}:{number}: "{header}" must start with the folder it lies in'
            elif target != folder and target not in ALLOWED[folder]:
                yield f"{name}:{number}: {folder}/ may not include {target}/ ({header})"
            elif header != "core/version.h" and not (root / header).exists():
                yield f'{name}:{number}: there is no "{header}"'


def main():
    root = pathlib.Path(sys.argv[1] if len(sys.argv) > 1 else __file__).resolve()
    root = root if root.is_dir() else root.parent.parent
    found = list(problems(root))
    for line in found:
        print(line)
    sys.exit(1 if found else 0)


if __name__ == "__main__":
    main()
