#!/usr/bin/env python3
"""athanor train from the outside: several ranks equal one, a resumed run equals one that never stopped, bad input is one line.

ATHANOR names the program. ATHANOR_KILLS sets how many times runs are killed at random moments (default 12).
"""
import array
import glob
import itertools
import json
import math
import os
import random
import re
import resource
import shutil
import signal
import subprocess
import sys
import tempfile
import time

ATHANOR = os.environ["ATHANOR"]
SOURCE = os.environ["ATHANOR_SOURCE"]
KILLS = int(os.environ.get("ATHANOR_KILLS", "12"))
SANITIZED = bool(os.environ.get("ATHANOR_SANITIZE"))
# Open MPI keeps memory in plugins that are unloaded before the leak checker looks, so only runs of one rank are checked for leaks.
RANKS_ENVIRONMENT = {**os.environ, "ASAN_OPTIONS": os.environ.get("ASAN_OPTIONS", "").replace("detect_leaks=1", "detect_leaks=0")}
checks = failures = 0


def check(held, what):
    global checks, failures
    checks += 1
    if not held:
        failures += 1
        print("FAILED:", what, file=sys.stderr)
    return held


def run(*command, code=0, part=None, ranks=0):
    """Runs athanor (under mpirun where ranks), checks exit code and, for failures, that one line with `part` says why."""
    line = [ATHANOR, *command]
    if ranks:
        line = ["mpirun", "-n", str(ranks), *line]
    result = subprocess.run(line, capture_output=True, text=True, errors="replace", timeout=600, env=RANKS_ENVIRONMENT if ranks else None)
    told = [l for l in result.stderr.splitlines() if "athanor: " in l]
    if not check(result.returncode == code, f"{' '.join(line)}: exit code {result.returncode}, expected {code}"):
        print(result.stderr[-3000:], file=sys.stderr)
    if part is not None:
        if not check(len(told) == 1 and part in told[0], f"{' '.join(command)}: expected one line with '{part}', got {told}"):
            print(result.stderr[-3000:], file=sys.stderr)
    return result.stdout


def records(folder, kind="train"):
    with open(f"{folder}/metrics.jsonl") as file:
        return [r for r in map(json.loads, file) if r["kind"] == kind]


def course(folder):
    """What must not depend on interruptions: everything but the clock."""
    return [(r["step"], r["loss"], r["grad_norm"], r["lr"], r["skipped"]) for r in records(folder)]


def newest_step(folder):
    return max(int(os.path.basename(p)[5:]) for p in glob.glob(f"{folder}/checkpoints/step-*") if "partial" not in p)


def weights(folder):
    """The files of the newest checkpoint: weights and moments of all ranks."""
    newest = f"{folder}/checkpoints/step-{newest_step(folder):08d}"
    return newest_step(folder), [open(f, "rb").read() for f in sorted(glob.glob(f"{newest}/rank-*.h5"))]


def descendants(pid):
    """Open MPI gives ranks process groups of their own, so they are found through their parents."""
    found, todo = [], [pid]
    while todo:
        parent = todo.pop()
        try:
            for task in os.listdir(f"/proc/{parent}/task"):
                todo += [int(c) for c in open(f"/proc/{parent}/task/{task}/children").read().split()]
        except FileNotFoundError:
            continue
        found.append(parent)
    return found


def kill_after(command, seconds):
    """Starts a command, kills it with everything below it after so long. True if it had ended by itself."""
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True,
                               env=RANKS_ENVIRONMENT if command[0] == "mpirun" else None)
    try:
        _, told = process.communicate(timeout=seconds)
        if not check(process.returncode == 0, f"{' '.join(command)}: exit code {process.returncode}"):
            print(told[-3000:], file=sys.stderr)
        return True
    except subprocess.TimeoutExpired:
        for pid in reversed(descendants(process.pid)):
            try:
                os.kill(pid, signal.SIGKILL)
            except ProcessLookupError:
                pass
        process.communicate()
        return False


def write(path, text):
    with open(path, "w") as file:
        file.write(text)
    return path


def make_corpus():
    run("data", "pack", "--set", f"C={SOURCE}/core/*.c", "--set", f"Headers={SOURCE}/core/*.h", "--out", "packed", "--shards", "3", "--valid",
        "0.1")
    run("tokenizer", "train", "--input", "packed/train/*.jsonl.zst", "--vocab-size", "400", "--out", "tokenizer.json")
    run("data", "build", "--input", "packed/train/*.jsonl.zst", "--tokenizer", "tokenizer.json", "--out", "corpus")
    run("data", "build", "--input", "packed/val.jsonl.zst", "--tokenizer", "tokenizer.json", "--out", "held-out")


CONFIG = """
folder: {folder}
seed: 7
model: {{family: llama, layers: 2, width: 32, heads: 4, groups: 2, context: 32, dropout: 0.1}}
data: {{corpus: corpus, validation: held-out}}
train: {{steps: 60, micro_batch: 2, batch_tokens: 256, head_rows: 16}}
optimizer: {{learning_rate: 3e-3}}
schedule: {{warmup_steps: 5}}
checkpoint: {{every: 5}}
validation: {{every: 30, samples: 4}}
samples: {{every: 30, tokens: 10, prompts: ["int ", ""]}}
parallel: {{bucket_mib: 0.01}}
"""


def digest(folder, manifest, tensor):
    """The digest of a tensor's first moment, as docs/checkpoints.md says it."""
    code = {}
    for block in re.findall(r"```python\n(def mix.*?)```", open(f"{SOURCE}/docs/checkpoints.md").read(), re.DOTALL):
        exec(block, code)
    bits = [None] * math.prod(tensor["shape"])
    for part in manifest["parts"]:
        if (part["tensor"], part["kind"]) != (tensor["name"], "moment1"):
            continue
        subprocess.run(["h5dump", "-d", f"/moment1/{tensor['name']}", "-b", "LE", "-o", "numbers", f"{folder}/{part['file']}"],
                       check=True, stdout=subprocess.DEVNULL)
        numbers = iter(array.array("I", open("numbers", "rb").read()))
        for box in part["boxes"]:
            for place in itertools.product(*(range(begin, end) for begin, end in box)):
                index = 0
                for at, extent in zip(place, tensor["shape"]):
                    index = index * extent + at
                bits[index] = next(numbers)
    return f"{code['digest'](bits):016x}"


def test_ranks():
    write("one.yaml", CONFIG.format(folder="one"))
    run("train", "one.yaml", "threads=1")
    run("train", "one.yaml", "folder=two", ranks=2)
    run("train", "one.yaml", "folder=threads", "threads=3")
    one, two = course("one"), course("two")
    check(len(one) == 60 and len(two) == 60, "60 records each")
    worst = max(abs(a[1] - b[1]) / a[1] for a, b in zip(one, two))
    check(worst < 1e-4, f"two ranks against one: relative difference of losses {worst}")
    check(abs(one[0][1] - two[0][1]) / one[0][1] < 2e-6, "the first step differs by rounding alone")
    check(course("threads") == one, "threads do not change a bit")
    check(one[-1][1] < 0.85 * one[0][1], f"the loss falls: {one[0][1]} to {one[-1][1]}")
    first, last = (r["loss"] for r in (records("one", "valid")[0], [r for r in records("one", "valid") if r["set"] == "all"][-1]))
    # Which of our own files are held out changes with them, so this one leaves more room.
    check(last < 0.9 * first, f"the held-out loss falls: {first} to {last}")
    samples = [json.loads(l) for l in open("one/samples.jsonl")]
    check(len(samples) == 6 and all(s["step"] in (0, 30, 60) for s in samples), "samples at 0, 30 and 60")
    # What a manifest says of a tensor is what other programs find in the files.
    manifest, record = (json.load(open(f"two/{name}.json")) for name in ("checkpoints/step-00000060/manifest", "run"))
    check(manifest["run"] == record["id"], "the record and the checkpoint have the run's identity")
    check(manifest["run"] != json.load(open("one/run.json"))["id"], "every run has its own")
    if shutil.which("h5dump"):
        for tensor in manifest["tensors"]:
            check(SANITIZED or digest("two/checkpoints/step-00000060", manifest, tensor) == tensor["digests"]["moment1"],
                  f"digest of {tensor['name']}")
    # A checkpoint of two ranks goes on with one, and the other way round.
    shutil.copytree("two", "two-one")
    shutil.rmtree("two-one/checkpoints/step-00000060")
    before = newest_step("two-one")
    run("train", "one.yaml", "folder=two-one")
    worst = max(abs(a[1] - b[1]) / a[1] for a, b in zip(course("two-one"), two))
    check(worst < 1e-5, f"a run of two ranks continued by one: {worst}")
    check(records("two-one", "resume")[0]["step"] == before, f"it went on after step {before}")
    check(json.load(open("two-one/run.json"))["id"] == record["id"], "a run that goes on keeps its identity")


def test_kills():
    """Killed at random moments, again and again, the finished run equals the undisturbed one bit for bit."""
    random.seed(2)
    kills = 0
    for ranks, reference in ((1, "one"), (2, "two")):
        start = time.time()
        command = [ATHANOR, "train", "one.yaml", "folder=timed", "threads=1"]
        if ranks > 1:
            command = ["mpirun", "-n", str(ranks)] + command
        kill_after(command, 600)
        whole = time.time() - start
        shutil.rmtree("timed")
        while kills < KILLS * ranks // 2:
            folder = f"killed-{ranks}"
            shutil.rmtree(folder, ignore_errors=True)
            command = [c.replace("folder=timed", f"folder={folder}") for c in command]
            while not kill_after(command, random.uniform(0.2, 0.9) * whole):
                kills += 1
            check(course(folder) == course(reference), f"{ranks} ranks after kills: the same losses")
            check(weights(folder) == weights(reference), f"{ranks} ranks after kills: the same weights and moments")
            check(open(f"{folder}/samples.jsonl").read() == open(f"{reference}/samples.jsonl").read(), "the same samples")
            command = [c.replace(f"folder={folder}", "folder=timed") for c in command]
    print(f"killed {kills} times")


def test_stop():
    """SIGTERM saves and stops; the same command goes on."""
    process = subprocess.Popen([ATHANOR, "train", "one.yaml", "folder=stopped", "threads=1", "checkpoint.every=0", "train.steps=6000",
                                "validation.every=0", "samples.every=0"], stderr=subprocess.PIPE, text=True)
    while not os.path.exists("stopped/metrics.jsonl") or os.path.getsize("stopped/metrics.jsonl") < 1000:
        time.sleep(0.05)
    process.send_signal(signal.SIGTERM)
    told = process.communicate()[1]
    check(process.returncode == 1 and "the same command goes on" in told, f"stopped: {process.returncode} {told[-300:]}")
    step = records("stopped")[-1]["step"]
    run("train", "one.yaml", "folder=stopped", "threads=1", "checkpoint.every=0", f"train.steps={step + 3}", "validation.every=0",
        "samples.every=0")
    check(records("stopped", "resume")[0]["step"] == step, "it went on where it stopped")


def test_memory():
    """The plan is a promise: the peak is at most what was planned, and at least 95% of it; where libraries are most of it, 80%."""
    if SANITIZED:
        return  # their shadow memory is in no plan
    write("memory.yaml", CONFIG.format(folder="memory"))
    larger = ["model.width=256", "model.layers=6", "model.ffn_width=704", "model.context=256", "train.micro_batch=8",
              "train.batch_tokens=4096", "train.steps=2"]
    for name, least, ranks, settings in (("tiny", 0.8, 1, ["train.steps=2"]), ("larger", 0.95, 1, larger), ("larger-two", 0.95, 2, larger),
                                         ("gradients", 0.95, 2, larger + ["parallel.zero=2"]), ("weights", 0.95, 2, larger + ["parallel.zero=3"]),
                                         ("larger-shared", 0.95, 2, larger + ["parallel.context=2"]),
                                         ("stages", 0.95, 2, larger + ["parallel.pipeline=2", "train.micro_batch=2"]),
                                         ("again", 0.95, 1, larger + ["train.recompute=full"])):
        run("train", "memory.yaml", f"folder=memory-{name}", *settings, ranks=ranks)
        record = json.load(open(f"memory-{name}/run.json"))
        share = record["memory_peak"] / record["memory_planned"]
        check(least <= share <= 1, f"memory of {name}: {share:.3f} of {record['memory_planned'] / 2**20:.1f} MiB planned")


def test_damage():
    """A damaged newest checkpoint is named and skipped."""
    shutil.copytree("one", "damaged")
    path = "damaged/checkpoints/step-00000060/rank-00000.h5"
    data = bytearray(open(path, "rb").read())
    data[len(data) // 2] ^= 1
    open(path, "wb").write(data)
    result = subprocess.run([ATHANOR, "train", "one.yaml", "folder=damaged", "threads=1"], capture_output=True, text=True)
    before = records("damaged", "resume")[0]["step"]
    check(result.returncode == 0 and "step-00000060 is damaged" in result.stderr and f"after step {before}" in result.stderr, result.stderr[:600])
    check(course("damaged") == course("one"), "the damaged run ends the same")


def test_full_disk():
    """Files may not grow beyond 100 KiB: known before the first step it is an error there, later saves on the way fail with a warning
    and the last one, or that of a stop, fails the run."""
    write("full.yaml", CONFIG.format(folder="full"))
    started = ["sh", "-c", "trap '' XFSZ; exec \"$@\"", "sh", ATHANOR, "train", "full.yaml"]
    limited = ["sh", "-c", "trap '' XFSZ; ulimit -f 200; exec \"$@\"", "sh", ATHANOR, "train", "full.yaml"]
    # HDF5 keeps what belongs to a file that it could not write, which the leak checker would tell.
    leaks = {**os.environ, "ASAN_OPTIONS": "detect_leaks=0"}
    result = subprocess.run(limited, capture_output=True, text=True, timeout=600, env=leaks)
    told = [l for l in result.stderr.splitlines() if l.startswith("athanor: ")]
    check(result.returncode == 1 and len(told) == 1 and "no checkpoint could be saved in full/checkpoints" in told[0], f"no room: {told}")
    check(not os.path.exists("full/metrics.jsonl"), "no room: before the first step")
    process = subprocess.Popen(started, stderr=subprocess.PIPE, text=True, env=leaks)
    while process.poll() is None and not os.path.exists("full/metrics.jsonl"):
        time.sleep(0.001)
    resource.prlimit(process.pid, resource.RLIMIT_FSIZE, (100 << 10, resource.getrlimit(resource.RLIMIT_FSIZE)[1]))
    stderr = process.communicate(timeout=600)[1]
    told = [l for l in stderr.splitlines() if l.startswith("athanor: ")]
    check(process.returncode == 1 and len(told) == 1 and "of step 60, could not be saved" in told[0], f"full disk: {process.returncode}, {told}")
    check("warning: the checkpoint of step 60 was not saved" in stderr, "full disk: the warning says why")
    check(len(records("full")) == 60 and not glob.glob("full/checkpoints/step-*"), "full disk: the record is whole, nothing half-written is left")
    run("train", "full.yaml", "train.steps=7")
    check(newest_step("full") == 7, "with room again the run is done")


def test_use():
    text = run("generate", "--checkpoint", "one", "--prompt", "static ", "--max-tokens", "60", "--seed", "3")
    check(text.startswith("static ") and len(text) > 20, "a text")
    check(text == run("generate", "--checkpoint", "one/checkpoints/step-00000060", "--prompt", "static ", "--max-tokens", "60", "--seed", "3",
                      "--threads", "1"), "the same text again, from the checkpoint")
    table = run("eval", "--checkpoint", "one", "--corpus", "held-out")
    check(len(table.splitlines()) >= 3 and "all" in table, "a table of sets")
    run("inspect", "one")


def test_bad_input():
    base = CONFIG.format(folder="bad")
    cases = [
        (["folder=one", "model.width=64"], "model.width"),
        (["folder=one", "seed=8"], "another seed"),
        (["folder=one", "train.batch_tokens=512"], "train.batch_tokens=256; here they are 32 and 512: give it data.sequence_length=32 train.batch_tokens=256,"),
        (["data.corpus=nowhere"], "nowhere"),
        (["data.validation=nowhere"], "nowhere"),
        (["model.heads=5"], "heads"),
        (["model.groups=3"], "groups"),
        (["train.batch_tokens=100"], "64 or 128 would do"),
        (["train.batch_tokens=32"], "= 64; train.micro_batch=1 would do; for a new run also train.batch_tokens=64"),
        (["train.micro_batch=1048577"], "is 1048577, it must be between 1 and 1048576"),
        (["folder=lion", "optimizer.kind=adamw", "train.steps=4"], "no moments for this optimizer.kind"),
        (["train.steps=0"], "train.steps or train.tokens"),
        (["train.stpes=3"], "did you mean train.steps?"),
        (["optimizer.kind=adam"], "one of: adamw, lion, sgd"),
        (["optimizer.learning_rate=fast"], "must be a number"),
        (["data.sequence_length=64"], "more than the model's context"),
        (["data.mixture={C: 1, Heders: 1}"], "did you mean 'Headers'?"),
        (["model.vocabulary=300"], "vocabulary"),
        (["data.sequence_length=100000", "model.context=100000", "train.batch_tokens=0"], "nothing to draw from"),
        (["folder=/proc/nowhere"], "/proc/nowhere"),
        (["parallel.tensor=2"], "2 tensor-parallel ranks cannot be had of 1 rank"),
        (["instruction_set=mmx"], "it runs:"),
        (["folder="], "folder is missing"),
    ]
    # Wrong whatever there is on the disk: wrong usage of the command line.
    usage = ("heads", "groups", "64 or 128 would do", "= 64; train.micro_batch=1 would do; for a new run also train.batch_tokens=64",
             "is 1048577, it must be between 1 and 1048576", "train.steps or train.tokens", "did you mean train.steps?",
             "one of: adamw, lion, sgd", "must be a number", "more than the model's context", "vocabulary", "folder is missing")
    write("bad.yaml", base)
    run("train", "bad.yaml", "folder=lion", "optimizer.kind=lion", "train.steps=2")
    for overrides, part in cases:
        run("train", "bad.yaml", *overrides, code=2 if part in usage else 1, part=part)
        check(not os.path.exists("bad"), f"{overrides} left a run folder")
        shutil.rmtree("bad", ignore_errors=True)
    # A model that is lost: steps without a finite gradient are skipped and counted, and the run says so in the end.
    run("train", "bad.yaml", "folder=lost", "optimizer.kind=sgd", "optimizer.learning_rate=1000", "optimizer.clip=0", "train.steps=200",
        "schedule.kind=constant", code=1, part="no finite gradient")
    check(records("lost")[-1]["skipped"] == 49, f"49 skipped steps are on record, not {records('lost')[-1]['skipped']}")
    run("train", "bad.yaml", "model.heads=5", code=2, part="heads", ranks=2)
    run("train", code=2, part="configuration is missing")
    run("train", "bad.yaml", "nonsense", code=2, part="key.path=value")
    run("train", "missing.yaml", code=1, part="missing.yaml")
    run("train", write("tabs.yaml", "model:\n\twidth: 3\n"), code=1, part="tabs.yaml:2")
    run("generate", "--checkpoint", "nowhere", code=1, part="nowhere")
    run("generate", code=2, part="RUN is missing")
    run("eval", "--checkpoint", "one", "--corpus", "nowhere", code=1, part="nowhere")
    # Another tokenizer's corpus.
    run("tokenizer", "train", "--input", "packed/train/*.jsonl.zst", "--vocab-size", "350", "--out", "other.json")
    run("data", "build", "--input", "packed/val.jsonl.zst", "--tokenizer", "other.json", "--out", "other")
    run("train", "bad.yaml", "data.validation=other", code=1, part="different tokenizers")
    run("eval", "--checkpoint", "one", "--corpus", "other", code=1, part="another tokenizer")
    # The corpus changed under a run.
    run("data", "build", "--input", "packed/val.jsonl.zst", "--tokenizer", "tokenizer.json", "--out", "changed")
    run("train", "one.yaml", "data.corpus=changed", "train.steps=70", code=1, part="another corpus")


def test_other_orders():
    """A run goes on in the order in which it began, or not at all: nothing that decides it may be another."""
    base = ["order.yaml", "train.steps=5", "schedule.warmup_steps=0", "validation.every=0", "samples.every=0"]
    more = ["order.yaml", "train.steps=9", "schedule.warmup_steps=0", "validation.every=0", "samples.every=0"]
    write("order.yaml", CONFIG.format(folder="order"))
    begun = {"plain": [], "mixed": ["data.mixture={C: 1, Headers: 1}"], "epochs": ["data.epochs={C: 2}"]}
    others = [*begun.values(), ["data.mixture={C: 2, Headers: 1}"], ["data.mixture={C: 1}"], ["data.epochs={Headers: 3}"],
              ["data.mixture={C: 1, Headers: 1.01}"]]
    for name, keys in begun.items():
        run("train", *base, f"folder=order-{name}", *keys)
        before = weights(f"order-{name}")
        for other in others:
            if other != keys:
                run("train", *more, f"folder=order-{name}", *other, code=1, part="mixture")
        check(weights(f"order-{name}") == before and newest_step(f"order-{name}") == 5, f"{name}: a refused run is left as it was")
        # The same by other words.
        run("train", *more, f"folder=order-{name}", *[k.replace("{C: 1, Headers: 1}", "{Headers: 2, C: 2}") for k in keys])
        check(newest_step(f"order-{name}") == 9, f"{name}: it goes on")


def test_numbers():
    """One of a thing is told in the singular: a run of one step by one rank, continued, read and reported."""
    write("single.yaml", CONFIG.format(folder="single"))
    told = ""
    for command in (["train", "single.yaml", "train.steps=1", "train.batch_tokens=0", "train.micro_batch=1", "threads=1"],
                    ["train", "single.yaml", "train.steps=1", "train.batch_tokens=0", "train.micro_batch=1", "threads=1"],
                    ["report", "single"], ["inspect", "single"], ["doctor"]):
        done = subprocess.run([ATHANOR, *command], capture_output=True, text=True, errors="replace", timeout=600)
        check(done.returncode == 0 or command[0] == "doctor", f"{command}: {done.stderr[-2000:]}")
        told += done.stdout + done.stderr
    wrong = [line for line in told.splitlines() if re.search(r"(?<![\d.,])(?<!\+ )1 (?!ms\b|steps; raise)[a-z-]{2,}s\b(?! parameters)", line)]
    check(not wrong, f"one of several: {wrong}")
    check("1 rank x 1 micro-batch x 1 sequence x" in told, "the batch is told")
    check(" 0 ms left" not in told, "no time is left")


def main(*tests):
    """Runs tests in a folder of their own with a corpus; those named on the command line, or all."""
    folder = tempfile.mkdtemp(prefix="athanor-train-")
    os.chdir(folder)
    try:
        make_corpus()
        for test in tests:
            if len(sys.argv) > 1 and test.__name__ not in sys.argv[1:]:
                continue
            before, start = failures, time.time()
            test()
            print(f"{test.__name__:24} {'ok' if failures == before else 'FAILED'}  {time.time() - start:.1f} s", flush=True)
    finally:
        os.chdir("/")
        shutil.rmtree(folder, ignore_errors=True)
    print(f"{checks} checks, {failures} failed")
    sys.exit(failures > 0)


if __name__ == "__main__":
    main(test_ranks, test_kills, test_stop, test_memory, test_damage, test_full_disk, test_use, test_bad_input, test_other_orders, test_numbers)
