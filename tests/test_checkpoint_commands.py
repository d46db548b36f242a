#!/usr/bin/env python3
"""athanor checkpoint verify, list, prune and reshard: what they find, what they keep, and what they refuse in one line."""
import json
import os
import shutil
import subprocess

from test_train import ATHANOR, CONFIG, check, course, main, run, write


KEYS = ("checkpoint.every=0", "checkpoint.keep_last=4", "optimizer.moments=8bit", "schedule.kind=constant", "validation.every=0", "samples.every=0")


def made():
    """A run of two ranks with four checkpoints; the same for all tests, each of which works on a copy."""
    if not os.path.exists("made"):
        write("made.yaml", CONFIG.format(folder="made"))
        for steps in (2, 4, 6, 8):  # one after the other: a save that comes while another is written is left out
            run("train", "made.yaml", f"train.steps={steps}", *KEYS, ranks=2)
    return "made"


def copy(name):
    shutil.rmtree(name, ignore_errors=True)
    shutil.copytree(made(), name)
    return name


def step(folder, number):
    return f"{folder}/checkpoints/step-{number:08d}"


def left(folder):
    return sorted(int(n[5:]) for n in os.listdir(f"{folder}/checkpoints") if n.startswith("step-"))


def change(path, at, bits=1):
    data = bytearray(open(path, "rb").read())
    data[at] ^= bits
    open(path, "wb").write(data)


def manifest(path):
    return json.load(open(f"{path}/manifest.json"))


def place(path, tensor, kind):
    """The file of a part, and where in it the part's numbers begin: what h5dump says."""
    for part in manifest(path)["parts"]:
        if (part["tensor"], part["kind"]) == (tensor, kind):
            file = f"{path}/{part['file']}"
            told = subprocess.run(["h5dump", "-pH", "-d", f"/{kind}/{tensor}", file], capture_output=True, text=True, check=True).stdout
            return file, int(told.split("OFFSET ")[1].split()[0])


def test_verify():
    folder = copy("verify")
    told = run("checkpoint", "verify", folder)
    check(told.count("  whole\n") == 4 and told.count("\n") == 4, told)
    for tensor, kind in (("embedding.token", "weight"), ("layers.1.mlp.up.weight", "moment1"), ("final_norm.weight", "moment2")):
        folder = copy("verify")
        file, at = place(step(folder, 6), tensor, kind)
        change(file, at + 5)
        told = run("checkpoint", "verify", folder, step(folder, 4), code=1, part="not all checkpoints are whole")
        lines = told.splitlines()
        check(told.count("  whole") == 4 and told.count("DAMAGED") == 1, told)
        at = lines.index(f"{step(folder, 6)}  DAMAGED")
        check(file in lines[at + 1] and "checksum" in lines[at + 1] and lines[at + 2].strip() == f"{kind} {tensor} differs", told)
        check("verify" in lines[at + 3] and "whole" in lines[at + 3], told)
    folder = copy("verify")
    path = step(folder, 2)
    change(f"{path}/rank-00001.h5", 8)  # the structure: what HDF5 needs to find anything
    change(f"{path}/metrics.jsonl", 0)
    told = run("checkpoint", "verify", path, code=1, part="not all")
    check("rank-00001.h5" in told and "metrics.jsonl" in told and "rank-00000" not in told and "cannot be read" in told, told)
    os.remove(f"{path}/rank-00000.h5")
    told = run("checkpoint", "verify", path, code=1, part="not all")
    check("rank-00000.h5" in told, told)
    shutil.copy(f"{step(folder, 4)}/rank-00000.h5", f"{path}/rank-00000.h5")  # of another step
    check("rank-00000.h5" in run("checkpoint", "verify", path, code=1, part="not all"), "another step's file")
    for text in (b"", b"{", b"[" * 100000, b'{"format": "athanor checkpoint", "version": 99}', os.urandom(3000)):
        open(f"{path}/manifest.json", "wb").write(text)
        check("manifest.json" in run("checkpoint", "verify", path, code=1, part="not all"), f"{text[:20]}")
    run("checkpoint", "verify", "nowhere", code=1, part="nowhere/manifest.json cannot be opened")


def test_list():
    folder = copy("list")
    lines = run("checkpoint", "list", folder).splitlines()
    check(len(lines) == 5 and [l.split()[0] for l in lines[1:]] == ["2", "4", "6", "8"], lines)
    check(all("2 ranks (data 2)" in l and "whole" in l and manifest(step(folder, 8))["created"][:10] in l for l in lines[1:]), lines)
    os.mkdir(f"{folder}/checkpoints/step-00000009.partial")
    change(f"{step(folder, 4)}/rank-00000.h5", 5000)
    check("unfinished" in run("checkpoint", "list", folder), "the sizes are right")
    told = run("checkpoint", "list", folder, "--verify", code=1, part="not all of its checkpoints are whole")
    check([l.split()[0] for l in told.splitlines() if "DAMAGED" in l] == ["4"] and told.count("whole") == 3, told)
    open(f"{step(folder, 6)}/rank-00001.h5", "ab").write(b"x")
    told = run("checkpoint", "list", folder, code=1, part="not all")
    check([l.split()[0] for l in told.splitlines() if "DAMAGED" in l] == ["6"], told)
    os.makedirs("empty/checkpoints", exist_ok=True)
    for nothing in ("empty", "nowhere"):
        run("checkpoint", "list", nothing, code=1, part="holds no checkpoint")


def test_prune():
    folder = copy("prune")
    check("0 of 4" in run("checkpoint", "prune", folder), "the run's own rule keeps four")
    told = run("checkpoint", "prune", folder, "--keep", "1", "--keep-every", "4")
    check("2 of 4" in told and "goes" in told and "give --remove" in told and left(folder) == [2, 4, 6, 8], told)
    run("checkpoint", "prune", folder, "--keep", "1", "--keep-every", "4", "--remove")
    check(left(folder) == [4, 8], left(folder))
    run("checkpoint", "verify", folder)
    # The newest one that is whole stays, however damaged those after it are: found by reading, not by size.
    folder = copy("prune")
    for number in (6, 8):
        change(f"{step(folder, number)}/rank-00000.h5", 5000)
    run("checkpoint", "prune", folder, "--keep", "1", "--keep-every", "0", "--remove")
    check(left(folder) == [4, 6, 8], left(folder))
    run("checkpoint", "verify", step(folder, 4))
    folder = copy("prune")
    for number in (2, 4, 6, 8):
        change(f"{step(folder, number)}/rank-00000.h5", 5000)
    run("checkpoint", "prune", folder, "--keep", "1", "--keep-every", "0", "--remove")
    check(left(folder) == [2, 4, 6, 8], "none is whole: all stay")
    # Of another run: not ours to remove.
    folder = copy("prune")
    write(f"{folder}/run.json", json.dumps({"id": "00000000000000aa"}))
    run("checkpoint", "prune", folder, "--keep", "1", "--keep-every", "0", "--remove")
    check(left(folder) == [2, 4, 6, 8], "of another run: all stay")
    with open(f"{folder}/checkpoints/lock", "a+") as lock:
        import fcntl
        fcntl.flock(lock, fcntl.LOCK_EX)
        run("checkpoint", "prune", folder, "--keep", "1", "--remove", code=1, part="nothing was removed: another run writes to")
        run("checkpoint", "prune", folder, "--keep", "1")
    os.remove(f"{folder}/config.yaml")
    run("checkpoint", "prune", folder, code=1, part="config.yaml")
    run("checkpoint", "prune", "nowhere", "--keep", "1", "--keep-every", "0", code=1, part="holds no checkpoint")


def digests(path):
    return [(t["name"], t["shape"], t["digests"]) for t in manifest(path)["tensors"]]


def test_reshard():
    folder = copy("reshard")
    source = step(folder, 8)
    previous = source
    for files in (1, 3, 7, 64, 2):
        made_path = step(f"resharded-{files}", 8)
        run("checkpoint", "reshard", previous, made_path, "--files", str(files))
        check(sum(n.endswith(".h5") for n in os.listdir(made_path)) == files, f"{files} files")
        check(digests(made_path) == digests(source), f"{files} files: the same tensors")
        types = [sorted({(p["tensor"], p["kind"], p["type"]) for p in manifest(p)["parts"]}) for p in (made_path, source)]
        check(types[0] == types[1], f"{files} files: the same types")
        check(open(f"{made_path}/metrics.jsonl").read() == open(f"{source}/metrics.jsonl").read(), "the record came along")
        check("whole" in run("checkpoint", "verify", made_path), "whole")
        check(manifest(made_path)["layout"].count(", in ") == 1, manifest(made_path)["layout"])
        previous = made_path
    # A run goes on from it as from the source.
    for name in ("from-source", "from-files"):
        shutil.copytree(folder, name)
        for number in (2, 4, 6, 8):
            shutil.rmtree(step(name, number))
        shutil.copytree(source if name == "from-source" else step("resharded-7", 8), step(name, 8))
        run("train", "made.yaml", f"folder={name}", "train.steps=12", *KEYS, ranks=2)
    check(len(course("from-source")) == 12 and course("from-source") == course("from-files"), "the same course")
    # Nothing is left of what failed, and nothing damaged is passed on.
    run("checkpoint", "reshard", source, step("resharded-1", 8), code=1, part="is there already")
    run("checkpoint", "reshard", source, "other/step-00000009", code=1, part="end it in step-00000008")
    run("checkpoint", "reshard", source, "other/step-00000008", "--files", "0", code=2, part="files")
    change(f"{source}/rank-00001.h5", 9000)
    run("checkpoint", "reshard", source, "other/step-00000008", code=1, part="rank-00001.h5: its checksum is not the one")
    check(not os.path.exists("other"), "nothing was made")
    run("checkpoint", "reshard", folder, step("other", 6), "--files", "2")  # of a run: the newest whole one
    check(digests(step("other", 6)) == digests(step(folder, 6)), "the one before")


def test_reshard_memory():
    """A checkpoint of 200 MB goes through a buffer: the peak is far below it."""
    write("large.yaml", CONFIG.format(folder="large").replace("width: 32", "width: 640").replace("layers: 2", "layers: 3"))
    run("train", "large.yaml", "train.steps=1", "validation.every=0", "samples.every=0")
    path = step("large", 1)
    size = sum(f["bytes"] for f in manifest(path)["files"])
    limited = f"ulimit -v {(size // 2 + (64 << 20)) >> 10}; exec \"$@\""
    if os.environ.get("ATHANOR_SANITIZE"):
        return
    result = subprocess.run(["sh", "-c", limited, "sh", ATHANOR, "checkpoint", "reshard", path, step("large-1", 1), "--files", "2"],
                            capture_output=True, text=True)
    check(result.returncode == 0 and size > 160 << 20, f"{size}: {result.returncode} {result.stderr[-300:]}")


if __name__ == "__main__":
    main(test_verify, test_list, test_prune, test_reshard, test_reshard_memory)
