#!/usr/bin/env python3
"""What a run reads of a corpus: whatever of it was changed is found when it is read, in corpora of ours and of others."""
import os
import shutil

from test_train import CONFIG, SOURCE, check, main, run, write


def flip(path, at):
    with open(path, "r+b") as file:
        file.seek(at)
        byte = file.read(1)[0]
        file.seek(at)
        file.write(bytes([byte ^ 2]))


def test_corpus():
    """Whatever of a corpus was changed, a run refuses it when it comes to it, with one line."""
    write("one.yaml", CONFIG.format(folder="one"))
    run("train", "one.yaml", "train.steps=5")
    write("hurt.yaml", CONFIG.format(folder="hurt-run"))
    block, size = 32768, os.path.getsize("corpus/C_text_document.bin")
    ways = {
        **{f"block {b}": lambda b=b: flip("hurt/C_text_document.bin", min(b * block + 999, size - 1)) for b in range(-(-size // block))},
        "swapped": lambda: (os.rename("hurt/C_text_document.bin", "hurt/x"), os.rename("hurt/Headers_text_document.bin",
                            "hurt/C_text_document.bin"), os.rename("hurt/x", "hurt/Headers_text_document.bin")),
        "index": lambda: flip("hurt/C_text_document.idx", 60),
        "sums": lambda: flip("hurt/C_text_document.sums", 20),
        "cut": lambda: os.truncate("hurt/C_text_document.bin", size - 2),
        "end of text": lambda: write("hurt/manifest.json", open("corpus/manifest.json").read().replace('"end_of_text": 399', '"end_of_text": 398')),
        "tokenizer": lambda: shutil.copy("held-out/manifest.json", "hurt/tokenizer.json"),
    }
    for way, change in ways.items():
        shutil.copytree("corpus", "hurt")
        change()
        run("train", "hurt.yaml", "data.corpus=hurt", "train.steps=300", "checkpoint.every=0", code=1, part="hurt/", ranks=2 if way == "block 1" else 0)
        run("inspect", "hurt", code=1, part="hurt/")
        shutil.rmtree("hurt")
        shutil.rmtree("hurt-run", ignore_errors=True)
    shutil.copytree("held-out", "hurt")
    flip("hurt/C_text_document.bin", 100)
    run("train", "hurt.yaml", "data.validation=hurt", "validation.samples=100000", code=1, part="is damaged: its bytes")
    run("eval", "one", "--corpus", "hurt", code=1, part="is damaged: its bytes")
    shutil.rmtree("hurt")

    # A token file of others: what two ranks read first is kept, and found changed when the run goes on.
    run("data", "pack", "--set", f"all={SOURCE}/*/*.[ch]", "--set", f"all={SOURCE}/*/*/*.[ch]", "--out", "wide", "--shards", "1")
    run("data", "build", "--input", "wide/train/*.zst", "--tokenizer", "tokenizer.json", "--out", "wider")
    for kind in ("bin", "idx"):
        shutil.copy(f"wider/all_text_document.{kind}", f"foreign.{kind}")
    foreign = ["train", "hurt.yaml", "folder=kept", "data.corpus=foreign", "data.validation=null", "model.vocabulary=400", "schedule.kind=constant"]
    run(*foreign, "train.steps=40", ranks=2)
    first, second = (open(f"kept/sums/corpus/rank-0000{r}.sums", "rb").read() for r in range(2))
    check(first[:8] == second[:8] == b"ATHKEPT\0" and first[24:] != second[24:], "each rank keeps what it read")
    run(*foreign, "train.steps=50", ranks=2)
    run(*foreign, "train.steps=55")
    size = os.path.getsize("foreign.bin")
    samples = [(size - 4096) // 63 * i for i in range(64)]
    blocks = [int.from_bytes(second[at:at + 8], "little") for at in range(24 + 24, len(second), 16)]
    at = next(p for b in blocks for p in range(b * block, min((b + 1) * block, size)) if not any(s <= p < s + 4096 for s in samples))
    flip("foreign.bin", at)
    run(*foreign, "train.steps=600", code=1, part="when this run first read them")
    flip("foreign.bin", at)
    run(*foreign, "train.steps=60")


if __name__ == "__main__":
    main(test_corpus)
