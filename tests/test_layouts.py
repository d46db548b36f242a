#!/usr/bin/env python3
"""Whole runs in other layouts than one rank: the same losses, the same validation and texts, and checkpoints that go on in any of them."""
import json
import os
import re
import shutil
import subprocess

from test_train import ATHANOR, CONFIG, RANKS_ENVIRONMENT, SANITIZED, check, course, main, records, run, write

STEADY = "schedule.kind=constant"
GPT2 = CONFIG.replace("family: llama, layers: 2, width: 32, heads: 4, groups: 2", "family: gpt2, layers: 2, width: 32, heads: 4")


def layouts():
    """Ranks, and what makes the layout."""
    return ((2, "parallel.tensor=2"), (2, "parallel.tensor=2", "parallel.sequence=false"), (4, "parallel.tensor=2", "parallel.data=2"),
            (2, "parallel.zero=1"), (4, "parallel.zero=1", "parallel.tensor=2"), (2, "parallel.context=2"), (4, "parallel.context=4"),
            (4, "parallel.context=2", "parallel.tensor=2"), (4, "parallel.context=2", "parallel.zero=1"), (4, "parallel.context=2", "parallel.pipeline=2"),
            (4, "parallel.zero=2"), (4, "parallel.zero=2", "parallel.tensor=2"), (2, "parallel.zero=3"), (4, "parallel.zero=3", "parallel.tensor=2"),
            (4, "parallel.zero=3", "parallel.context=2"),
            (2, "parallel.pipeline=2"), (2, "parallel.pipeline=2", "parallel.schedule=zb-h1"), (4, "parallel.pipeline=2", "parallel.data=2"),
            (4, "parallel.pipeline=2", "parallel.data=2", "parallel.zero=1"), (4, "parallel.pipeline=2", "parallel.tensor=2"),
            (4, "parallel.pipeline=2", "parallel.zero=2"), (4, "parallel.pipeline=2", "parallel.zero=3"))


def stages():
    """Ranks and schedules of a pipeline for five layers, which no number of stages here divides."""
    for ranks, schedule in ((2, "zb-v"), (2, "interleaved"), (4, "1f1b"), (4, "zb-h1"), (5, "zb-h1")):
        yield ranks, f"parallel.pipeline={ranks}", f"parallel.schedule={schedule}"
    yield 4, "parallel.pipeline=2", "parallel.tensor=2", "parallel.schedule=zb-v"
    yield 4, "parallel.pipeline=2", "parallel.data=2", "parallel.zero=1", "parallel.schedule=interleaved"
    yield 4, "parallel.pipeline=2", "parallel.data=2", "parallel.zero=2", "parallel.schedule=zb-h1"
    yield 4, "parallel.pipeline=2", "parallel.data=2", "parallel.zero=3", "parallel.schedule=zb-v"


def some(layouts, each=1):
    """One in `each`; under a sanitizer, which is slow, another fifth: tests/ranks_*.c and the gate go through them all."""
    return list(layouts)[::5 if SANITIZED else each]


def validation(folder):
    return [r["loss"] for r in map(json.loads, open(f"{folder}/metrics.jsonl")) if r["kind"] == "valid"]


def check_traffic(folder, layout):
    """What each axis sent and waited is recorded: gradients over data, activations over tensor."""
    groups = [r["groups"] for r in records(folder)]
    axes = {a for a in ("data", "tensor", "pipeline", "context") if f"parallel.{a}=2" in layout or (a == "data" and "parallel.zero=1" in layout)}
    check(all(axes <= {a for name in g for a in name.split(" x ")} for g in groups), f"{layout}: {groups[:1]}")
    check(all(x["sent"] > 0 and 0 <= x["wait"] <= 1 for g in groups[1:] for x in g.values()), f"{layout}: {groups[:2]}")
    check(all(sum(x["wait"] for x in r["groups"].values()) <= r["comm_wait"] + 1e-6 for r in records(folder)), f"{layout}: waits add up")


def worst(a, b):
    return max(abs(x[1] - y[1]) / y[1] for x, y in zip(a, b))


def compare_losses(name, config, layouts, *more):
    write(f"{name}.yaml", config.format(folder=name))
    run("train", f"{name}.yaml", "threads=1", *more)
    alone = course(name)
    for number, (ranks, *layout) in enumerate(layouts):
        folder = f"{name}-{number}"
        run("train", f"{name}.yaml", f"folder={folder}", *layout, *more, ranks=ranks)
        here = course(folder)
        check(len(here) == 60, f"{layout}: {len(here)} records")
        check(abs(here[0][1] - alone[0][1]) / alone[0][1] < 2e-6, f"{layout}: the first loss is {here[0][1]}, not {alone[0][1]}")
        check(abs(here[0][2] - alone[0][2]) / alone[0][2] < 2e-5, f"{layout}: the first norm is {here[0][2]}, not {alone[0][2]}")
        check(worst(here, alone) < 1e-4, f"{layout}: losses differ by {worst(here, alone)}")
        check_traffic(folder, layout)
        ours, theirs = validation(folder), validation(name)
        check(len(ours) == len(theirs) and all(abs(a - b) < 1e-3 for a, b in zip(ours, theirs)), f"{layout}: validation {ours} {theirs}")


def test_losses():
    for name, config in (("llama", CONFIG), ("gpt2", GPT2)):
        compare_losses(name, config, some(layouts(), 2 if name == "llama" else 3))


def test_stages():
    """Schedules of pipelines, one to eight micro-batches a step, with recomputation and without."""
    for name, config in (("llama-deep", CONFIG), ("gpt2-deep", GPT2)):
        deep = config.replace("layers: 2", "layers: 5")
        compare_losses(name, deep, some(stages(), 1 if name == "llama-deep" else 2), "train.micro_batch=1")
        compare_losses(f"{name}-full", deep, some(stages(), 4), "train.micro_batch=2", "train.recompute=full")


def test_resume():
    """A run goes on in any other layout, and in the same one bit for bit."""
    write("cut.yaml", CONFIG.format(folder="cut"))
    tensor = "parallel.tensor=2"
    run("train", "cut.yaml", tensor, STEADY, ranks=2)
    run("train", "cut.yaml", "folder=half", "train.steps=30", tensor, STEADY, ranks=2)
    whole = course("cut")
    for name, ranks, *layout in (("same", 2, tensor), ("one", 0), ("data", 2), ("zero", 2, "parallel.zero=1"), ("weights", 2, "parallel.zero=3"), ("both", 4, tensor), ("all", 4, tensor, "parallel.zero=1"), ("three", 3), ("rows", 2, tensor, "parallel.sequence=false"), ("stages", 2, "parallel.pipeline=2"),
                                  ("stages-zero", 4, "parallel.pipeline=2", "parallel.zero=1")):
        shutil.copytree("half", name)
        run("train", "cut.yaml", f"folder={name}", STEADY, *layout, ranks=ranks)
        here = course(name)
        check(len(here) == 60, f"{name}: {len(here)} records")
        check(worst(here, whole) < 1e-4, f"{name}: losses differ by {worst(here, whole)}")
        check(name != "same" or here == whole, "stopped and resumed: not the same bits")


def test_resume_context():
    """Sequences shared by ranks: begun so and resumed on one rank, and back; the same layout bit for bit."""
    write("shared.yaml", CONFIG.format(folder="shared"))
    context = "parallel.context=2"
    run("train", "shared.yaml", context, STEADY, ranks=2)
    whole = course("shared")
    run("train", "shared.yaml", "folder=begun-shared", "train.steps=30", context, STEADY, ranks=2)
    run("train", "shared.yaml", "folder=begun-alone", "train.steps=30", STEADY)
    for begun, name, ranks, *layout in (("begun-shared", "shared-same", 2, context), ("begun-shared", "shared-one", 0), ("begun-alone", "shared-back", 2, context),
                                        ("begun-shared", "shared-more", 4, context, "parallel.zero=1"), ("begun-shared", "shared-four", 4, "parallel.context=4")):
        shutil.copytree(begun, name)
        run("train", "shared.yaml", f"folder={name}", STEADY, *layout, ranks=ranks)
        here = course(name)
        check(len(here) == 60, f"{name}: {len(here)} records")
        check(worst(here, whole) < 1e-4, f"{name}: losses differ by {worst(here, whole)}")
        check(name != "shared-same" or here == whole, "stopped and resumed: not the same bits")


def test_shards():
    """Weights in shards: gone on with on the same ranks bit for bit; one rank goes on with what they saved, and they with what it saved."""
    write("shards.yaml", CONFIG.format(folder="shards"))
    for level in (2, 3):
        layout = [f"parallel.zero={level}", STEADY]
        whole, half = f"shards-{level}", f"shards-{level}-half"
        run("train", "shards.yaml", f"folder={whole}", *layout, ranks=2)
        run("train", "shards.yaml", f"folder={half}", "train.steps=30", *layout, ranks=2)
        shutil.copytree(half, f"{half}-alone")
        run("train", "shards.yaml", f"folder={half}", *layout, ranks=2)
        check(course(half) == course(whole), f"zero {level}, stopped and resumed: not the same bits")
        run("train", "shards.yaml", f"folder={half}-alone", "train.steps=45", STEADY)
        run("train", "shards.yaml", f"folder={half}-alone", *layout, ranks=4)
        here = course(f"{half}-alone")
        check(len(here) == 60 and worst(here, course(whole)) < 1e-4, f"zero {level} through one rank: losses differ by {worst(here, course(whole))}")


def test_resume_stages():
    """A pipeline's run goes on bit for bit, with another schedule, and without a pipeline."""
    write("staged.yaml", GPT2.replace("layers: 2", "layers: 5").format(folder="staged"))
    layout = ("parallel.pipeline=2", "parallel.data=2", "parallel.zero=1", "parallel.schedule=zb-v", "train.micro_batch=1")
    run("train", "staged.yaml", *layout, STEADY, ranks=4)
    run("train", "staged.yaml", "folder=begun", "train.steps=30", *layout, STEADY, ranks=4)
    whole = course("staged")
    for name, ranks, *other in (("again", 4, *layout), ("other", 3, "parallel.pipeline=3", "parallel.schedule=zb-h1"), ("single", 0)):
        shutil.copytree("begun", name)
        run("train", "staged.yaml", f"folder={name}", STEADY, *other, ranks=ranks)
        here = course(name)
        check(len(here) == 60 and worst(here, whole) < 1e-4, f"{name}: {len(here)} records, losses differ by {worst(here, whole)}")
        check(name != "again" or here == whole, "stopped and resumed: not the same bits")


def test_refused():
    """What cannot work is one line before anything is made, and names what would; what it names works."""
    write("refused.yaml", CONFIG.format(folder="refused"))
    for ranks, told, *overrides in (
            (3, "4 key/value heads (model.groups) cannot be divided among 3 tensor-parallel ranks: 2 can", "parallel.tensor=3",
             "model.heads=12", "model.groups=4", "model.width=48", "train.batch_tokens=192"),
            (2, "4 tensor-parallel ranks cannot be had of 2 ranks", "parallel.tensor=4"),
            (3, "parallel.tensor=2 cannot be made of 3 ranks; parallel.data=3 parallel.tensor=1 on 3 ranks would do", "parallel.tensor=2",
             "train.batch_tokens=192"),
            (4, "parallel.data=3 cannot be made of 4 ranks; parallel.data=4 ", "parallel.data=3"),
            (4, "2 key/value heads (model.groups) cannot be divided among 4 tensor-parallel ranks: 2 can", "parallel.tensor=4"),
            (2, "tokens of a micro-batch cannot be divided", "parallel.tensor=2", "data.sequence_length=31", "train.micro_batch=1",
             "train.batch_tokens=248"),
            (3, "parallel.context: sequences of 32 tokens cannot be cut into 6 equal parts, two for each of 3 context-parallel ranks: 30 or 36 tokens can, or 2 ranks",
             "parallel.context=3"),
            (2, "4 context-parallel ranks cannot be had of 2 ranks", "parallel.context=4"),
            (2, "goes through blocks of 256 quantised values", "parallel.tensor=2", "optimizer.moments=8bit"),
            (4, "2 layers cannot be cut into 4 stages (4 ranks with 1 each)", "parallel.pipeline=4"),
            (2, "schedule zb-v has 2 stages a rank, not 1", "parallel.pipeline=2", "parallel.schedule=zb-v", "parallel.chunks=1", "model.layers=4"),
            (4, "has 2 micro-batches, too few for 4 data-parallel ranks; parallel.data=2 parallel.context=2 or parallel.data=2 parallel.pipeline=2 or parallel.data=2 parallel.tensor=2 on 4 ranks would do",
             "train.batch_tokens=64", "train.micro_batch=1")):
        result = subprocess.run(["mpirun", "-n", str(ranks), ATHANOR, "train", "refused.yaml", *overrides], capture_output=True, text=True,
                                env=RANKS_ENVIRONMENT)
        lines = [l for l in result.stderr.splitlines() if "athanor: " in l]
        check(result.returncode in (1, 2) and len(lines) == 1 and told in lines[0], f"{overrides}: {result.returncode} {lines}")
        check(not os.path.exists("refused"), f"{overrides}: a folder was made")
        advice = re.search(r"; (parallel\.[^;]*) on (\d+) ranks? would do", lines[0] if lines else "")
        check(advice is not None, f"{overrides}: nothing is advised: {lines}")
        for layout in advice.group(1).split(" or ")[:1 if SANITIZED else 3] if advice else ():
            run("train", "refused.yaml", *overrides, *layout.split(), "train.steps=1", "folder=advised", "checkpoint.every=0", ranks=int(advice.group(2)))
            shutil.rmtree("advised", ignore_errors=True)


def test_auto():
    """The layout is searched where that is asked for, told in a line, and trains as any other."""
    write("auto.yaml", CONFIG.format(folder="auto"))
    run("train", "auto.yaml", "folder=alone", "train.steps=3", STEADY)
    for ranks, *given in ((1,), (4,), (4, "parallel.tensor=2"), (3,)):
        line = ["mpirun", "-n", str(ranks), ATHANOR, "train", "auto.yaml", "parallel.layout=auto", "train.steps=3", STEADY, *given]
        result = subprocess.run(line, capture_output=True, text=True, env=RANKS_ENVIRONMENT)
        told = re.findall(r"^layout    (.*?): .*of \d+ that work \d+ fit", result.stderr, re.M)
        check(result.returncode == 0 and len(told) == 1, f"{ranks} {given}: {result.stderr[-500:]}")
        check(not given or "tensor 2" in told[0], f"{ranks} {given}: {told}")
        check(worst(course("auto"), course("alone")) < 1e-5, f"{ranks} {given}: {course('auto')} {course('alone')}")
        shutil.rmtree("auto")


if __name__ == "__main__":
    main(test_losses, test_stages, test_resume, test_resume_context, test_resume_stages, test_shards, test_refused, test_auto)
