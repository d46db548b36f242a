#!/usr/bin/env python3
"""Sums in order (train.reproducible): one rank, several, ZeRO and pipelines compute the same bits."""
import os

from test_layouts import GPT2, STEADY
from test_train import CONFIG, check, course, main, run, write


def test_reproducible():
    """Sums in order: the same bits with any number of ranks, ZeRO and pipeline, also where another layout goes on; the order is what makes them."""
    same = ["train.reproducible=true", "train.micro_batch=1", "train.reproducible_parts=4", "train.steps=16", STEADY]
    for name, config, layouts in (
            ("llama-same", CONFIG, ((2,), (4, "parallel.zero=3"), (4, "parallel.pipeline=2", "parallel.zero=1", "parallel.schedule=zb-h1"))),
            ("gpt2-same", GPT2, ((4,), (2, "parallel.zero=2"), (2, "parallel.pipeline=2"), (2, "parallel.pipeline=2", "parallel.schedule=zb-v"),
                                 (4, "parallel.pipeline=2", "parallel.zero=3")))):
        write(f"{name}.yaml", config.replace("layers: 2", "layers: 5").format(folder=name))
        run("train", f"{name}.yaml", *same)
        for number, (ranks, *layout) in enumerate(layouts):
            run("train", f"{name}.yaml", f"folder={name}-{number}", *same, *layout, ranks=ranks)
            check(course(f"{name}-{number}") == course(name), f"{name}, {layout} on {ranks} ranks: not the same bits")
    run("train", "gpt2-same.yaml", "folder=gpt2-begun", *same, "train.steps=8", "parallel.zero=3", ranks=4)
    run("train", "gpt2-same.yaml", "folder=gpt2-begun", *same, "parallel.pipeline=2", ranks=2)
    check(course("gpt2-begun") == course("gpt2-same"), "gone on with in another layout: not the same bits")
    for ranks in (0, 4):
        run("train", "gpt2-same.yaml", f"folder=any-order-{ranks}", *same, "train.reproducible=false", ranks=ranks)
    check(course("any-order-0") != course("any-order-4"), "in any order these are other bits, or the check above says nothing")
    for ranks, code, told, *overrides in (
            (0, 2, "train.reproducible_parts 3 must be a power of two that divides the 8 micro-batches of a step: 8 at most", "train.reproducible_parts=3"),
            (2, 1, "train.reproducible_parts 1 cannot be shared by 2 data-parallel ranks", "train.reproducible_parts=1"),
            (2, 1, "it needs parallel.context=1", "parallel.context=2")):
        run("train", "gpt2-same.yaml", "folder=refused", *same, *overrides, code=code, part=told, ranks=ranks)
        check(not os.path.exists("refused"), f"{overrides}: a folder was made")


if __name__ == "__main__":
    main(test_reproducible)
