#!/usr/bin/env python3
"""Whole runs on a card, each judged by itself: started by bench/card_run, a part a call.

    bench/card_parts.py [--rehearse] PART FOLDER DATA

PART is one of
    machine   what there is: card, driver, clocks, compiler, libraries, tools
    losses    a small model's losses and gradient norms in fp32, bf16 and fp16 against the CPU's in fp32
    resume    a run killed by SIGKILL half-way and resumed: bit for bit what an undisturbed one computes
    ranks     two ranks on one card, who exchange through host memory: as one rank within rounding, and the same bits twice
    sanitize  compute-sanitizer over one small step
    profile   ncu over a product with GELU, attention forward and backward

FOLDER is what bench/card_prepare made, with --rehearse a build folder of CMake's that has the simulated card; DATA a corpus that
card_prepare made. Works in the current folder. Exit code 0: as it should be; 1: not; 77: a tool is not here.
"""
import glob
import json
import math
import os
import pathlib
import re
import shlex
import shutil
import signal
import subprocess
import sys
import time

ABSENT = 77
# Unit roundoff of the types that activations are kept in.
ROUNDOFF = {"fp32": 2.0**-24, "fp16": 2.0**-12, "bf16": 2.0**-9}
MODEL = {"layers": 2, "width": 256, "heads": 4, "groups": 2, "context": 256}
SMALL_MODEL = {"layers": 2, "width": 64, "heads": 1, "groups": 1, "context": 64}
CONFIG = """folder: {folder}
seed: 7
model: {{family: {family}, layers: {layers}, width: {width}, heads: {heads}, groups: {groups}, context: {context}}}
data: {{corpus: {corpus}, validation: {held_out}}}
train: {{steps: {steps}, micro_batch: 2, batch_tokens: {tokens}, type: {type}}}
optimizer: {{learning_rate: 1e-3}}
schedule: {{warmup_steps: 2}}
checkpoint: {{every: {every}}}
validation: {{every: 0}}
samples: {{every: 0}}
products: ours
device: {device}
"""


class Place:
    """Where programs and data are, and how large things may be."""

    def __init__(self, arguments):
        self.rehearse = arguments[0] == "--rehearse"
        part, folder, data = arguments[1:] if self.rehearse else arguments
        self.part, self.folder, self.data = part, pathlib.Path(folder), pathlib.Path(data)
        self.device = "simulated" if self.rehearse else "cuda"
        self.model = SMALL_MODEL if self.rehearse else MODEL
        self.wrong = 0

    def check(self, held, what):
        print(f"{'ok   ' if held else 'WRONG'}  {what}", flush=True)
        self.wrong += not held

    def configure(self, name, device=None, kind="auto", steps=12, every=0, family="llama"):
        """A run's configuration; four sequences a step, so that two ranks have two each."""
        path = pathlib.Path(f"{name}.yaml")
        corpus, held_out = (json.dumps(str(self.data / part)) for part in ("corpus", "held-out"))  # YAML's quotes too
        path.write_text(CONFIG.format(folder=name, corpus=corpus, held_out=held_out, steps=steps, type=kind, every=every, tokens=4 * self.model["context"],
                                      device=device or self.device, family=family, **self.model))
        return path

    def command(self, config, ranks=0):
        mpirun = ["mpirun" if self.rehearse else str(self.folder / "mpirun"), "-n", str(ranks)] if ranks else []
        return [*mpirun, str(self.folder / "athanor"), "train", str(config)]

    def train(self, config, ranks=0):
        """Runs it to its end. What it said is printed and returned; None where it failed."""
        print("+", *self.command(config, ranks), flush=True)
        done = subprocess.run(self.command(config, ranks), stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, errors="replace")
        print(done.stdout, flush=True)
        if done.returncode != 0:
            self.check(False, f"{config}: exit code {done.returncode}")
        return done.stdout if done.returncode == 0 else None


def course(folder):
    """Everything of a run's steps but the clock."""
    with open(f"{folder}/metrics.jsonl", encoding="utf-8") as file:
        records = [record for record in map(json.loads, file) if record["kind"] == "train"]
    return [(r["step"], r["loss"], r["grad_norm"], r["lr"], r["skipped"]) for r in records]


def weights(folder):
    """The bytes of the newest checkpoint: weights and moments."""
    newest = max(glob.glob(f"{folder}/checkpoints/step-*[0-9]"))
    return [pathlib.Path(path).read_bytes() for path in sorted(glob.glob(f"{newest}/rank-*.h5"))]


# ---- Losses

def tolerances(model, kind, reference):
    """For each step the most that a loss may be off, and the same for the first step's gradient norm, both relative.

    A value passes about 10 roundings a layer on its way to the loss, and a gradient 30; errors of different sign add up as the
    root of their number. In fp32 it is the order of the sums that differs, over as many terms as a product has. A mean over
    tokens, as losses and norms are, is off by one value's error over the root of their number, and by its square, which does not
    average out; 4 of these are allowed. A later step's loss also hangs on the updates before it: what they have won is off by what
    gradients are, and AdamW makes a step of one size out of those, too, whose sign is rounding's.
    """
    tokens = 4 * model["context"]
    sums = math.sqrt(4 * model["width"]) if kind == "fp32" else 1
    value, gradient = (ROUNDOFF[kind] * math.sqrt(count * model["layers"]) * sums for count in (10, 30))
    mean = lambda error: 4 * (error / math.sqrt(tokens) + error**2)  # noqa: E731
    first = reference[0][1]
    return [mean(value) + (4 * gradient * abs(first - loss) / loss + mean(gradient) if step > 1 else 0)
            for step, loss, *_ in reference], mean(gradient)


def compare(place, name, model, kind, reference):
    """Losses of a run against another's."""
    ours = course(name)
    if len(ours) != len(reference):
        place.check(False, f"{name}: {len(ours)} steps instead of {len(reference)}")
        return
    most, most_norm = tolerances(model, kind, reference)
    off = [abs(a[1] - b[1]) / b[1] for a, b in zip(ours, reference)]
    worst = max(range(len(off)), key=lambda i: off[i] / most[i] if math.isfinite(off[i]) else math.inf)
    place.check(all(o <= m for o, m in zip(off, most)),
                f"{name}: losses are off by {off[0]:.1e} at first, at worst {off[worst]:.1e} of {most[worst]:.1e} allowed (step {worst + 1})")
    norm = abs(ours[0][2] - reference[0][2]) / reference[0][2]
    place.check(norm <= most_norm, f"{name}: the first gradient norm is off by {norm:.1e} of {most_norm:.1e} allowed")


def losses(place):
    steps = 6 if place.rehearse else 20
    for family in ("llama", "gpt2"):
        if place.train(place.configure(f"cpu-{family}", "cpu", "fp32", steps, family=family)) is None:
            continue
        reference = course(f"cpu-{family}")
        place.check(reference[-1][1] < reference[0][1], f"cpu-{family}: it learns: {reference[0][1]:.4f} to {reference[-1][1]:.4f}")
        for kind in ("fp32", "bf16", "fp16"):
            name = f"{kind}-{family}"
            if place.train(place.configure(name, kind=kind, steps=steps, family=family)) is not None:
                compare(place, name, place.model, kind, reference)


# ---- Resume

def resume(place):
    """The same place of the loader, moments and randomness: dropout is in the model."""
    steps, every = (8, 2) if place.rehearse else (400, 50)
    configs = {name: place.configure(name, kind="bf16", steps=steps, every=every) for name in ("whole", "killed")}
    for path in configs.values():
        path.write_text(path.read_text().replace("context:", "dropout: 0.1, context:"))
    if place.train(configs["whole"]) is None:
        return
    print("+", *place.command(configs["killed"]), flush=True)
    process = subprocess.Popen(place.command(configs["killed"]), start_new_session=True)
    path = pathlib.Path("killed/metrics.jsonl")
    while process.poll() is None and (not path.exists() or path.read_bytes().count(b"\n") <= steps * 5 // 8):
        time.sleep(0.001)
    if process.poll() is None:
        os.killpg(process.pid, signal.SIGKILL)
    process.wait()
    reached = path.read_bytes().count(b"\n") if path.exists() else 0
    place.check(process.returncode == -signal.SIGKILL and reached < steps, f"killed in step {reached} of {steps}: {process.returncode}")
    if place.train(configs["killed"]) is None:
        return
    place.check(course("killed") == course("whole"), f"the course after a kill is that of an undisturbed run, {steps} steps, bit for bit")
    place.check(weights("killed") == weights("whole"), "and so are weights and moments")


# ---- Ranks

def ranks(place):
    if place.rehearse:
        os.environ["ATHANOR_SIMULATED_CARDS"] = "1"
    steps = 4 if place.rehearse else 20
    if place.train(place.configure("one", kind="fp32", steps=steps)) is None:
        return
    for name in ("two", "two-again"):
        told = place.train(place.configure(name, kind="fp32", steps=steps), ranks=2)
        if told is None:
            return
        place.check("through host memory" in told, f"{name}: what ranks on one card exchange goes through host memory")
    compare(place, "two", place.model, "fp32", course("one"))
    place.check(course("two") == course("two-again"), "two ranks compute the same bits twice")


# ---- Tools

def tool(name):
    """Where a tool of the toolkit is, or None."""
    places = [shutil.which(name), f"/usr/local/cuda/bin/{name}", *sorted(glob.glob(f"/opt/nvidia/nsight-compute/*/{name}"))]
    return next((place for place in places if place and os.access(place, os.X_OK)), None)


def refuse(why):
    print(why, flush=True)
    return ABSENT


def sanitize(place):
    """In a rehearsal the step alone: the simulated card finds races and wrong addresses itself."""
    found = None if place.rehearse else tool("compute-sanitizer")
    if found is None and not place.rehearse:
        return refuse("no compute-sanitizer here")
    place.model, code = SMALL_MODEL, None
    for name in ("memcheck", "racecheck"):
        command = place.command(place.configure(name, kind="bf16", steps=1))
        if found:
            command = [found, "--tool", name, "--error-exitcode", "9", "--print-limit", "20", *command]
        print("+", *command, flush=True)
        ended = subprocess.run(command).returncode
        if found and ended not in (0, 9) and not os.path.exists(f"{name}/metrics.jsonl"):
            code = refuse(f"{name} ended with exit code {ended} before the first step")
        else:
            place.check(ended == 0, f"{name} over one step: exit code {ended}")
    return code


# What, the rows of bench_gpu that show it (the first that there is, none of a library), and the names of its kernels.
PROFILES = (("product with GELU", (r"^product/.*gelu", r"^product/forward/\S*up/"), "product"),
            ("attention forward", (r"^attention/forward/.*D128",), "attention_forward"),
            ("attention backward", (r"^attention/(deterministic|backward)/.*D128",), "attention_backward"))


def profile(place):
    """One row of bench_gpu for each, a few kernels of it. In a rehearsal the rows alone."""
    found = None if place.rehearse else tool("ncu")
    if found is None and not place.rehearse:
        return refuse("no ncu here")
    bench, code = [str(place.folder / "bench_gpu"), *(["--rehearse"] if place.rehearse else [])], None
    rows = [line.split()[0] for line in subprocess.run([*bench, "--list"], capture_output=True, text=True).stdout.splitlines()]
    for number, (what, patterns, kernel) in enumerate(PROFILES):
        row = next((name for pattern in patterns for name in rows if re.search(r"(?=^.*\d$)" + pattern, name)), None)
        if row is None:
            place.check(False, f"{what}: bench_gpu has no such row")
            continue
        report = f"profile-{number}.ncu-rep"
        ncu = [found, "--clock-control", "none", "--set", "full", "-k", f"regex:{kernel}", "--launch-count", "3", "-f", "-o", report] if found else []
        print("+", *ncu, *bench, "--serve", "<<<", row, flush=True)
        done = subprocess.run([*ncu, *bench, "--serve"], input=f"{row} 0.001\n", stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
        print(done.stdout, flush=True)
        if found and not os.path.exists(report):
            code = refuse(f"{what}: {row}: ncu made no report, exit code {done.returncode}")
            continue
        if found:  # into the log as text too: only a program of the same version reads reports
            subprocess.run([found, "--import", report, "--page", "details"])
        place.check(done.returncode == 0, f"{what}: {row}: exit code {done.returncode}")
    return code


def machine(place):
    """Nothing here is wrong; what is missing is seen in the log."""
    folder = shlex.quote(str(place.folder))
    for command in ("date -u", "uname -a", "nvidia-smi", "nvidia-smi -q -d CLOCK,POWER,TEMPERATURE,PERFORMANCE", "nvcc --version", "gcc --version | head -n 1",
                    "ldd --version | head -n 1", "lscpu | grep -E 'Model name|^CPU\\(s\\)'", "free -g | head -n 2", "df -h . | tail -n 1",
                    "echo $LD_LIBRARY_PATH", "python3 -c 'import torch; print(torch.__version__, torch.version.cuda, torch.cuda.is_available())'",
                    f"cat {folder}/commit", f"{folder}/athanor doctor"):
        print("+", command, flush=True)
        subprocess.run(["bash", "-c", command], stderr=subprocess.STDOUT)
    for name in ("compute-sanitizer", "ncu", "nsys", "cuobjdump"):
        print(f"{name}: {tool(name)}")
    probe = subprocess.run([place.folder / "bench_gpu", *(["--rehearse"] if place.rehearse else []), "--serve"], input="", capture_output=True, text=True)
    print(probe.stdout, probe.stderr)
    place.check(probe.returncode == 0, "bench_gpu opens the card")


def main():
    parts = {part.__name__: part for part in (machine, losses, resume, ranks, sanitize, profile)}
    if len(sys.argv) - ("--rehearse" in sys.argv) != 4 or not set(sys.argv) & set(parts):
        sys.exit("bench/card_parts.py: started by bench/card_run; its head tells its arguments")
    place = Place(sys.argv[1:])
    code = parts[place.part](place)
    sys.exit(code if code is not None and place.wrong == 0 else 1 if place.wrong else 0)


if __name__ == "__main__":
    main()
