#!/usr/bin/env python3
"""What the Hopper kernels cost by their machine code, and how fast that should make them: called by bench/kernel_costs.

    bench/kernel_costs                        the tables, of the kernels in build-cards
    bench/kernel_costs --markdown > new.md && mv new.md docs/kernel_costs.md
    bench/kernel_costs --check docs/kernel_costs.md     exit code 1 where the committed tables are no longer so
    bench/kernel_costs --json FILE            the numbers, for --against in later runs
    bench/kernel_costs FILE...                instructions by kind of the kernels in object files or cubins, all paths together

There is no card in this. For each row the host side of the operations is run on a runtime that only notes launches
(kernel_costs_launches.c), the machine code of what it launches is walked with those parameters (kernel_costs_walk.py), and the
walks of a block are timed on a model of the multiprocessor (kernel_costs_time.py, where its numbers stand). So every figure is a
prediction. Slots are instructions that a warp issues on its way, not instructions of the program.
"""
import argparse
import collections
import json
import os
import pathlib
import re
import subprocess
import sys
import tempfile

import kernel_costs_code as code_of
from kernel_costs_code import Problem
from kernel_costs_time import CLOCK, MULTIPROCESSORS, TENSOR_RATE, Clock, clock_rate
from kernel_costs_walk import MOST_STEPS, Block, Kernel, Launch, Walk

ROOT = pathlib.Path(__file__).resolve().parent.parent
BEFORE = ROOT / "bench/kernel_costs_before.json"
GELU, SILU = 1, 4
MEMORY_RATE = 3.0e12  # bytes a second of a copy on an H100
LAUNCH_SECONDS = 2e-6
ISSUE_EXPOSED = 0.5  # of what a kernel without products issues, the part that its copies do not hide: judged
BLOCK_START = 600  # cycles from a block's place being free to its first instruction: judged
HMMA_CYCLES, HMMA_SHARE = 6.5, 0.7  # mma.sync of sm_80's code: about 62% of wgmma's rate, of which a kernel reaches about so much
MOST_SEEN = 60000  # instructions of a consumer that are followed
LANES_SEEN, SHORT_WAY = 8, 2000  # lanes of a warp that are looked at where their ways are shorter than so many instructions
SAMPLES = 32  # blocks whose work is looked at where blocks differ

KINDS = collections.OrderedDict([
    ("wgmma", {"HGMMA"}),
    ("fp32", {"FFMA", "FADD", "FMUL", "FSEL", "FSETP", "FMNMX", "FSET", "FCHK", "HADD2", "F2FP"}),
    ("MUFU", {"MUFU"}),
    ("shared", {"LDS", "STS", "LDSM", "STSM"}),
    ("global", {"LDG", "STG", "LD", "ST", "ATOMG", "ATOM", "RED", "REDG"}),
    ("TMA", {"UTMALDG", "UTMASTG", "UTMAREDG", "UBLKCP", "UBLKRED", "UTMAPF"}),
    ("barriers", {"BAR", "SYNCS", "UCGABAR_ARV", "UCGABAR_WAIT", "DEPBAR", "WARPGROUP"}),
    ("fences", {"MEMBAR", "FENCE", "ERRBAR"}),
    ("spills", {"LDL", "STL"}),
    ("calls", {"CALL"}),
])
KIND_OF = {base: kind for kind, bases in KINDS.items() for base in bases}
STORES = {"UTMASTG", "UTMAREDG", "STG", "UBLKRED", "REDG"}


# ---- Rows

class Row:
    """One measured thing: an operation as kernel_costs_launches takes it, and the work that its speed counts. launch: of the
    operation's launches those whose kernel's name has this in it, and of several the number given."""

    def __init__(self, name, asked, work, unit, part=None, number=None):
        self.name, self.asked, self.work, self.unit, self.part, self.number = name, asked, work, unit, part, number


def product_rows():
    rows = []

    def add(name, asked, rows_count, inner, outer, **more):
        rows.append(Row(name, asked, 2.0 * rows_count * inner * outer, "TFLOP/s", **more))

    for size, width in (("124M", 768), ("350M", 1024), ("1.3B", 2048)):
        count, shapes = 16384, (("qkv", width, 3 * width), ("proj", width, width), ("up", width, 4 * width), ("down", 4 * width, width))
        for what, inner, outer in shapes:
            more = {"qkv": "1 0 0 0 0", "proj": "1 1 0 0 0", "up": f"1 0 {GELU} 1 0", "down": "1 1 0 0 0"}[what]
            text = {"qkv": "bias", "proj": "bias, residual", "up": "bias, GELU, pre", "down": "bias, residual"}[what]
            add(f"{size} {what} forward ({text})", f"forward {count} {inner} {outer} {more}", count, inner, outer)
        for what, inner, outer in shapes:
            slope = GELU if what == "down" else 0
            add(f"{size} {what} dX{' (GELU slope)' if slope else ''}", f"input {count} {inner} {outer} {slope} 0 0", count, inner, outer)
        for what, inner, outer in shapes:
            add(f"{size} {what} dW", f"weight {count} {inner} {outer}", count, inner, outer)
    for vocabulary in (50304, 50257):
        asked = f"classifier 16384 768 {vocabulary} 16384"
        for number, what in enumerate(("forward", "dX", "dW")):
            add(f"124M head {vocabulary} {what}", asked, 16384, 768, vocabulary, part="product", number=number)
    for size, width, hidden in (("7B", 4096, 11008), ("8B", 4096, 14336)):
        count = 8192
        add(f"LLaMA {size} up forward (SiLU gate, pre)", f"forward {count} {width} {2 * hidden} 0 0 {SILU} 1 1", count, width, 2 * hidden)
        add(f"LLaMA {size} down forward (residual)", f"forward {count} {hidden} {width} 0 1 0 0 0", count, hidden, width)
        add(f"LLaMA {size} down dX (SiLU gate)", f"input {count} {hidden} {width} {SILU} 0 1", count, hidden, width)
        add(f"LLaMA {size} down dW", f"weight {count} {hidden} {width}", count, hidden, width)
    for what, asked in (("forward", "forward 8192 8192 8192 0 0 0 0 0"), ("dX", "input 8192 8192 8192 0 0 0"),
                        ("dW", "weight 8192 8192 8192")):
        add(f"8192^3 {what}", asked, 8192, 8192, 8192)
    return rows


def attention_rows():
    rows = []
    for what, batch, length, heads, groups, width in (
            ("GPT-2 124M, T 1024, D 64", 16, 1024, 12, 12, 64), ("GPT-2 1.3B, T 1024, D 128", 8, 1024, 16, 16, 128),
            ("T 2048, D 64", 8, 2048, 16, 16, 64), ("T 2048, D 128", 8, 2048, 16, 16, 128),
            ("T 8192, D 64", 2, 8192, 16, 16, 64), ("T 8192, D 128", 2, 8192, 16, 16, 128)):
        product = 2.0 * batch * heads * length * length * width / 2
        shape = f"{batch} {length} {heads} {groups} {width}"
        rows.append(Row(f"{what}: forward", f"attention {shape}", 2 * product, "TFLOP/s"))
        rows.append(Row(f"{what}: backward", f"attention-backward {shape} 0", 5 * product, "TFLOP/s"))
    return rows


def memory_rows():
    rows = [Row("LayerNorm 131072 x 768 forward", "norm 0 131072 768", 4.0 * 131072 * 768, "GB/s"),
            Row("LayerNorm 131072 x 768 backward", "norm-backward 0 131072 768", 8.0 * 131072 * 768, "GB/s"),
            Row("RMSNorm 16384 x 4096 forward", "norm 1 16384 4096", 4.0 * 16384 * 4096, "GB/s"),
            Row("RMSNorm 16384 x 4096 backward", "norm-backward 1 16384 4096", 8.0 * 16384 * 4096, "GB/s"),
            Row("AdamW, masters, 124M", "update 124475904 0", 30.0 * 124475904, "GB/s"),
            Row("AdamW, 8-bit moments, 124M", "update 124475904 1", (12 + 16 / 256) * 124475904, "GB/s"),
            Row("GELU 16384 x 3072", f"activation {GELU} {16384 * 3072}", 4.0 * 16384 * 3072, "GB/s")]
    for vocabulary in (50304, 50257):
        rows.append(Row(f"classifier 16384 x {vocabulary}", f"classifier 16384 768 {vocabulary} 16384", 4.0 * 16384 * vocabulary, "GB/s",
                        part="classif"))
    return rows


def sums():
    """What rows come to together: name, unit, and how often each counts."""
    parts = []
    for size in ("124M, T 1024, D 64", "1.3B, T 1024, D 128"):
        parts.append((f"GPT-2 {size}: forward and backward", "us", {f"GPT-2 {size}: {way}": 1 for way in ("forward", "backward")}))
    step = {row.name: 12 for row in product_rows() if row.name.startswith("124M ") and "head" not in row.name}
    step.update({f"GPT-2 124M, T 1024, D 64: {way}": 12 for way in ("forward", "backward")})
    step.update({f"124M head 50257 {way}": 1 for way in ("forward", "dX", "dW")})
    step.update({"classifier 16384 x 50257": 1, "AdamW, masters, 124M": 1})
    step.update({f"LayerNorm 131072 x 768 {way}": 25 / 8 for way in ("forward", "backward")})
    parts.append(("GPT-2 124M: a step of 16384 tokens, of these rows", "us", step))
    return parts


# ---- What a build launches

class Build:
    """The kernels of a build, and the program that tells what it launches."""

    def __init__(self, folder, scratch):
        self.folder, self.scratch, self.cubins, self.kernels = pathlib.Path(folder), scratch, {}, {}
        objects = sorted(self.folder.rglob("*.cu.o"))
        if not objects:
            raise Problem(f"{folder} holds no kernels: cmake --preset cards && cmake --build --preset cards")
        for path in objects:
            if path.name.removesuffix(".cu.o") in LAUNCHED_FROM and (b".nv_fatbin" in path.read_bytes()):
                for cubin in code_of.cubins(path, scratch):
                    self.add(cubin)
        self.program = self.compile()
        self.answers = {}

    def add(self, cubin):
        for name, (_, *laid_out) in cubin.kernels.items():
            if name in self.cubins and list(self.cubins[name].kernels[name][1:]) != laid_out:
                raise Problem(f"{name}: its parameters lie otherwise than in the build, which is of other sources: build again")
            self.cubins[name] = cubin
        self.kernels = {k: v for k, v in self.kernels.items() if k not in cubin.kernels}

    def compile(self):
        program = os.path.join(self.scratch, "launches")
        libraries = [str(self.folder / f"libathanor_{room}.a") for room in ("kernels", "core")]
        include = pathlib.Path(code_of.tool("nvcc")).resolve().parent.parent / "include"
        command = ["gcc", "-std=gnu17", "-O1", "-w", f"-I{ROOT}", f"-I{self.folder}/generated", f"-I{include}", "-DATHANOR_HAVE_CUDA=1",
                   "-o", program, str(ROOT / "bench/kernel_costs_launches.c"), "-Wl,--start-group", *libraries, "-Wl,--end-group",
                   "-lyaml", "-ljansson", "-lxxhash", "-lzstd", "-lstdc++", "-lm", "-lpthread"]
        done = subprocess.run(command, capture_output=True, text=True)
        if done.returncode != 0:
            errors = [line for line in done.stderr.splitlines() if "error" in line or "undefined" in line] or [done.stderr.strip()]
            raise Problem(f"kernel_costs_launches.c does not build with {self.folder}: {errors[0][:200]}")
        with open(os.path.join(self.scratch, "parameters"), "w") as file:
            for name, cubin in self.cubins.items():
                _, size, places, _ = cubin.kernels[name]
                file.write(f"{name} {size} " + " ".join(f"{a} {b}" for a, b in places) + "\n")
        return program

    def ask(self, rows):
        """The launches and what memory holds, of each operation asked for."""
        asked = [a for a in dict.fromkeys(row.asked for row in rows) if a not in self.answers]
        done = subprocess.run([self.program, os.path.join(self.scratch, "parameters")], input="\n".join(asked) + "\n",
                              capture_output=True, text=True)
        if done.returncode != 0:
            raise Problem(f"kernel_costs_launches: {(done.stderr.strip().splitlines() or ['ended early'])[0]}")
        launches, memory, at = [], {}, 0
        for line in done.stdout.splitlines():
            words = line.split()
            if words[0] == "launch":
                launches.append(words[1:])
            elif words[0] == "memory":
                data = bytes.fromhex(words[2])
                for i in range(0, len(data) // 4 * 4, 4):
                    memory[int(words[1]) + i] = int.from_bytes(data[i:i + 4], "little")
            else:
                if words[0] != "done":
                    raise Problem(f"{asked[at]}: {line}")
                self.answers[asked[at]] = launches, memory
                launches, memory, at = [], {}, at + 1

    def launch(self, words):
        name, grid = words[0], [int(x) for x in words[1:4]]
        if name not in self.cubins:
            raise Problem(f"{name} is launched, but no object file looked at holds it")
        cubin = self.cubins[name]
        if name not in self.kernels:
            self.kernels[name] = Kernel(name, code_of.disassemble(cubin, [name])[name], cubin.kernels[name][3], cubin.table(name))
        parameters = b"" if words[7] == "-" else bytes.fromhex(words[7])
        return Launch(self.kernels[name], grid, int(words[4]), int(words[5]), int(words[6]), parameters)


LAUNCHED_FROM = {"activation", "attention", "attention_backward_sm80", "attention_backward_sm90", "attention_forward_sm80",
                 "attention_forward_sm90", "classifier", "elementwise", "matmul_bias", "matmul_few", "matmul_finish", "matmul_sm80",
                 "matmul_sm90", "norm", "optimizer"}


# ---- Costs of a launch

def kinds(code, trace):
    counts = collections.Counter(KIND_OF.get(code[i].base, "other") for i in trace)
    return {kind: counts.get(kind, 0) for kind in [*KINDS, "other"]}


def tensor_regions(code, trace):
    """The way of a consumer cut at its products: before the first (start), between products of a tile (loop), between those of
    two tiles (end), after the last (finish). A tile ends where something is stored in global memory."""
    marks = [n for n, i in enumerate(trace) if code[i].base == "HGMMA"]
    ends, loop = [], []
    for a, b in zip(marks, marks[1:]):
        between = trace[a + 1:b]
        if b - a > 60 and any(code[i].base in STORES for i in between):
            ends.append(between)
        else:
            loop += between
    return {"start": trace[:marks[0]], "loop": loop, "ends": ends, "finish": trace[marks[-1] + 1:], "products": len(marks),
            "groups": sum("gsb0" in code[trace[m]].text for m in marks)}


def typical(ends):
    """Of the ends of tiles that of middle length: the first and the last may be smaller."""
    return sorted(ends, key=len)[len(ends) // 2] if ends else []


def access_bytes(name):
    """Bytes of a thread's load or store."""
    parts = name.split(".")[1:]
    return next((int(p.lstrip("US")) // 8 for p in parts if p in ("64", "128", "U8", "S8", "U16", "S16")), 4)


def sight(words):
    """What a backward pass reads of `until`: the last query of a sequence without documents sees every key."""
    last = int(words[1]) - 1
    return lambda instruction, at, n: last if instruction.name == "LDG.E" else None


class Costs:
    """A launch walked and timed."""

    def __init__(self, build, words, memory, load, work=None):
        self.launch = build.launch(words)
        self.code, self.name = self.launch.kernel.code, words[0]
        self.blocks = self.launch.grid[0] * self.launch.grid[1] * self.launch.grid[2]
        self.memory, self.load, self.guesses = memory, load, 0
        self.tensor = any(i.base == "HGMMA" for i in self.code)
        if self.tensor:
            self.time_tensor()
        else:
            self.time_threads(work)

    def walks(self, index):
        block, found = Block(self.launch, index, self.memory, self.load), {}
        for thread in [0, 32, 64, 96] + list(range(128, self.launch.threads, 128)):
            walk = Walk(block, thread, MOST_SEEN if thread >= 128 else MOST_STEPS)
            if len(walk.trace) > 60:
                found[thread] = walk
                self.guesses += sum(walk.guesses.values())
        self.agree(found)
        return found

    def agree(self, walks):
        """Consumers wait for as many stages as are loaded: a walk that took a wrong turn shows here."""
        loaded = collections.Counter(e[1] for w in walks.values() for e in w.events.values() if e[0] == "arrive" and e[2])
        for thread, walk in walks.items():
            waited = {}
            for event in walk.events.values():
                if event[0] == "wait" and event[1] in loaded:
                    waited[event[1]] = max(waited.get(event[1], 0), event[2] + 1)
            whole = len(walk.trace) < MOST_SEEN
            for barrier, count in waited.items():
                if count > loaded[barrier] + 1 or (whole and count < loaded[barrier]):
                    raise Problem(f"{self.name}: thread {thread} waits for {count} stages, {loaded[barrier]} are loaded: its way through "
                                  "the code cannot be followed")

    def loads(self, index):
        """How many copies the first thread of a block starts: what the block's work is measured by."""
        return sum(event[0] == "load" for event in Walk(Block(self.launch, index, self.memory, self.load), 0).events.values())

    def draws(self):
        """Whether the first thread of a block draws a ticket."""
        block = Block(self.launch, 0, self.memory, self.load)
        Walk(block, 0, 3000)
        return block.draws > 0

    def time_block(self, index):
        walks = self.walks(index)
        consumers = [thread for thread in walks if thread >= 128]
        clock = Clock(self.code, walks, consumers)
        time, busy = self.whole(clock, walks)
        regions = tensor_regions(self.code, walks[consumers[0]].trace)
        if self.regions is None or regions["products"] > self.regions["products"]:
            self.regions, self.block_time, self.block_busy = regions, time, busy
        return time, busy

    def time_tensor(self):
        """Where there is a block for each multiprocessor, the first, which has most; where tiles are drawn by ticket blocks end
        together, so its share of the mean work. Where blocks follow each other, each costs as much as its work says, by the
        shortest and the longest of a sample."""
        self.regions, self.tiles_seen = None, 0
        if self.blocks > 2 * MULTIPROCESSORS:
            stride = int(self.blocks * 0.618034) | 1
            loads = {index: self.loads(index) for index in {n * stride % self.blocks for n in range(SAMPLES)}}
            mean = sum(loads.values()) / len(loads)
            few, most = min(loads, key=loads.get), max(loads, key=loads.get)
            (short, short_busy), (long, long_busy) = self.time_block(few), self.time_block(most)
            share = (mean - loads[few]) / max(1, loads[most] - loads[few])
            each, busy = short + share * (long - short), short_busy + share * (long_busy - short_busy)
            self.cycles = (each + BLOCK_START) * self.blocks / MULTIPROCESSORS + long / 2
            self.busy = busy * self.blocks / MULTIPROCESSORS / self.cycles
        else:
            first = 0
            if "attention" not in self.name and self.draws():  # works of many lengths: the block that has most is the last to end
                first = max(range(0, self.blocks, 26), key=self.loads)
            self.cycles, busy = self.time_block(first)
            if self.blocks >= MULTIPROCESSORS and "attention" in self.name:
                loads = [self.loads(index) for index in range(0, MULTIPROCESSORS, 13)]
                share = sum(loads) / len(loads) / loads[0]
                self.cycles, busy = self.cycles * share, busy * share
            self.busy = busy / self.cycles
        self.seconds = self.cycles / clock_rate(self.busy * min(1, self.blocks / MULTIPROCESSORS))
        self.tiles = self.tiles_seen or len(self.regions["ends"]) + 1
        self.exposed = (self.block_time - self.block_busy) / self.tiles

    def whole(self, clock, walks):
        """Time and tensor cores' time of a block of which consumers were followed for MOST_SEEN instructions: the rest goes on like
        the tiles between the first and the last that were seen whole, as many products as the loader has loaded for."""
        walk = clock.first.walk
        if len(walk.trace) < MOST_SEEN:
            return clock.time, clock.tensor_busy
        marks, boundaries = clock.marks, []
        for n in range(1, len(marks)):
            a, b = marks[n - 1][1], marks[n][1]
            if b - a > 60 and any(self.code[i].base in STORES for i in walk.trace[a:b]):
                boundaries.append(n)
        first, last = (boundaries[0], boundaries[-1]) if len(boundaries) > 1 else (len(marks) // 4, len(marks) - 1)
        loader = next(w for t, w in walks.items() if t < 128 and any(e[0] == "load" for e in w.events.values()))
        stages = {e[1] for e in walk.events.values() if e[0] == "wait"}
        seen = sum(e[0] == "wait" and e[1] in stages for n, e in walk.events.items() if n < marks[last][1])
        all_phases = sum(e[0] == "arrive" and e[1] in stages for e in loader.events.values())
        products = last * all_phases / max(1, seen)
        rate = (marks[last][0] - marks[first][0]) / (last - first)
        self.tiles_seen = len(boundaries) * products / last
        return marks[last][0] + (products - last) * rate, clock.tensor_busy / len(marks) * products

    def time_threads(self, work):
        """A kernel without products: what its instructions take of all schedulers, beside what it moves."""
        index = self.blocks // 2
        block = Block(self.launch, index, self.memory, self.load)
        walk = Walk(block, 0)
        self.guesses += sum(walk.guesses.values())
        self.walk = walk
        # What some lanes alone read and write counts as often as it happens; of long ways the first lane stands for all.
        lanes = [walk] + ([Walk(block, lane) for lane in range(1, LANES_SEEN)] if len(walk.trace) < SHORT_WAY else [])
        moved = sum(map(self.moved, lanes)) / len(lanes)
        threads = self.launch.threads * self.blocks
        warps = self.blocks * ((self.launch.threads + 31) // 32)
        slots = len(walk.trace)
        special = sum(self.code[i].base == "MUFU" for i in walk.trace)
        products = sum(self.code[i].base == "HMMA" for i in walk.trace)
        self.memory_seconds = (work or moved * threads) / MEMORY_RATE
        self.issue_seconds = max(slots, 8 * special, HMMA_CYCLES * products) * warps / (4 * MULTIPROCESSORS) / CLOCK
        if products:
            self.seconds = self.issue_seconds / HMMA_SHARE
            return
        self.seconds = self.memory_seconds + ISSUE_EXPOSED * self.issue_seconds + LAUNCH_SECONDS

    def moved(self, walk):
        """Bytes that a thread reads and writes."""
        seen, moved = set(), 0
        for n, i in enumerate(walk.trace):
            instruction = self.code[i]
            if instruction.base in ("LDG", "STG", "LD", "ST") and n in walk.places:  # not those that a predicate leaves out
                where = walk.places[n]
                if where is None or (instruction.base[0], where) not in seen:  # what is read again lies in a cache
                    moved += access_bytes(instruction.name)
                    seen.add((instruction.base[0], where))
        return moved

    def numbers(self):
        short = re.sub(r"^void ", "", code_of.demangle([self.name])[self.name]).split("(")[0].replace("cuda::", "")
        if not self.tensor:
            return {"kernel": short, "slots": len(self.walk.trace), **kinds(self.code, self.walk.trace),
                    "issue us": round(self.issue_seconds * 1e6, 1), "memory us": round(self.memory_seconds * 1e6, 1)}
        regions = self.regions
        steps = regions["groups"]
        end = typical(regions["ends"]) or regions["start"] + regions["finish"]
        loop = kinds(self.code, regions["loop"])
        return {"kernel": short, "loop slots": round((len(regions["loop"]) + regions["products"]) / steps, 1),
                "loop MUFU": round(loop["MUFU"] / steps, 1), "loop shared": round(loop["shared"] / steps, 1),
                "end slots": len(end), "exposed": round(self.exposed), "busy": round(self.block_busy / self.block_time, 3),
                **kinds(self.code, end)}


def measure(build, rows, report):
    """The numbers of each row: name -> {"value", "unit", "us", "kernels": [...]}."""
    build.ask(rows)
    results, known = collections.OrderedDict(), {}
    for row in rows:
        launches, memory = build.answers[row.asked]
        chosen = launches if row.part is None else [w for w in launches if row.part in w[0]]
        if row.number is not None:
            chosen = product_launches(launches, row.number)
        if not chosen:
            wanted = f"no kernel with '{row.part}' in its name" if row.part else "nothing"
            raise Problem(f"{row.name}: {wanted} is launched; if the build is older than the sources, build again")
        load = sight(row.asked.split()[1:]) if row.asked.startswith("attention-backward") else \
            (lambda instruction, at, n: 0x3F800000) if row.asked.startswith("classifier") and row.number is None else None
        seconds, kernels = 0.0, []
        for n, words in enumerate(chosen):
            key = (row.asked, tuple(words))
            if key not in known:
                known[key] = Costs(build, words, memory, load, row.work if row.unit == "GB/s" and n == 0 else None)
            costs = known[key]
            seconds += costs.seconds
            kernels.append({**costs.numbers(), "us": round(costs.seconds * 1e6, 1), "guesses": costs.guesses})
        scale = 1e-12 if row.unit == "TFLOP/s" else 1e-9
        results[row.name] = {"value": round(row.work / seconds * scale), "unit": row.unit, "us": round(seconds * 1e6, 1),
                             "kernels": kernels}
        report(row.name, results[row.name])
    for name, unit, parts in sums():
        if all(part in results for part in parts):
            us = sum(results[part]["us"] * count for part, count in parts.items())
            results[name] = {"value": round(us), "unit": unit, "us": round(us, 1), "kernels": []}
            report(name, results[name])
    return results


def product_launches(launches, number):
    """Of an operation with several products the launches of one: a product's kernel, and what finishes its sums."""
    groups = []
    for words in launches:
        if "product" in words[0] and "finish" not in words[0]:
            groups.append([words])
        elif groups and "finish_sums" in words[0]:
            groups[-1].append(words)
    return groups[number] if number < len(groups) else []


# ---- Tables

HEAD = """# What the Hopper kernels cost, by their machine code

Predictions, not measurements: made by `bench/kernel_costs` from the disassembly of the kernels, for an H100 that cuBLAS brings to 798
TFLOP/s at 8192^3 and copies to 3.0 TB/s; a card decides. How is told at the heads of `bench/kernel_costs.py` (what is looked at),
`bench/kernel_costs_walk.py` (which instructions a launch passes) and `bench/kernel_costs_time.py` (how long they take, with each
number that this rests on). Where two numbers stand in a cell they are those before and after a change of the kernels.

Not modelled, so that a card may be slower: misses of the instruction cache (the end of a tile with an activation is up to 80 KiB of
instructions), turns that blocks wait for (sums of dQ and of streamed dW in order: long sequences backward are too fast here), L2 that
misses, memory that others use. `product_tiles`, the body for cards of any kind, is judged roughly by its mma instructions.

```sh
bench/kernel_costs --markdown > new.md && mv new.md docs/kernel_costs.md
bench/kernel_costs --check docs/kernel_costs.md
```

"""
NOTES_ENDS = """A warp's instruction slots: `loop` for each group of wgmma (a block of 64 along K of a product; attention forward has two a block of
keys, backward five a block of queries), `end` from the last wgmma of a tile to the first of the next, or all that stands before the
first and after the last where a block has one tile. `exposed`: cycles a tile in which tensor cores stand still, waits for L2
included (an estimate that counts slots alone and doubles them for the two consumers is too small: an instruction of an end takes 3 to
5 cycles, in order behind what it needs). Of the 790 slots of a plain end before, 220 pack sums and write them to shared memory, 140
send boxes and wait for their room, 161 move the second half of the sums to where the first was, 95 find the next tile, 52 begin its
products. MUFU is a limit of its own: a GELU of a tile of 128 x 256 is 256 of them a warp, 4096 cycles for two consumers, however few
the other instructions are. The rest are instructions of the end by kind: fp32 with comparisons and conversions, MUFU (8 cycles each), accesses to
shared and global memory, copies by TMA, waits, fences, spills, calls.

"""
NOTES_THREADS = """Kernels without wgmma: a warp's slots from beginning to end and their kinds, and how long the issuing alone and the copying alone would
take.

"""
COLUMNS = ["fp32", "MUFU", "shared", "global", "TMA", "barriers", "fences", "spills", "calls"]
DETAILS = re.compile(r"^124M|^LLaMA 7B|^8192|T 1024|T 8192|classifier|Norm|AdamW|GELU 16")


def cell(old, new):
    old, new = ("" if x is None else str(x) for x in (old, new))
    return new if old in ("", new) else f"{old} → {new}"


def table(header, lines):
    return "| " + " | ".join(header) + " |\n|" + "---|" * len(header) + "\n" + "".join("| " + " | ".join(x) + " |\n" for x in lines) + "\n"


def markdown(results, compiler, before):
    """The document, of results alone or beside those before."""
    old_rows = before["rows"] if before else {}
    text = HEAD + f"Compiler: nvcc {compiler}." + (f" Before: commit {before['commit']}, nvcc {before['compiler']}." if before else "") + "\n\n"
    tensor, threads, speeds, said = [], [], [], set()
    for name, result in results.items():
        old = old_rows.get(name)
        digits = lambda r: None if r is None else f"{r['value']}"  # noqa: E731
        times = lambda r: None if r is None else f"{r['us']:.1f}"  # noqa: E731
        speeds.append([name, cell(digits(old), digits(result)) + " " + result["unit"], cell(times(old), times(result))])
        if not DETAILS.search(name):
            continue
        for kernel in result["kernels"]:
            key = json.dumps({k: v for k, v in kernel.items() if k not in ("us", "guesses", "exposed", "busy")})
            if key in said:
                continue
            said.add(key)
            bare = kernel["kernel"].split("<")[0]
            was = next((k for k in (old or {}).get("kernels", []) if k["kernel"].split("<")[0] == bare), {})
            kinds_of = [cell(was.get(c), kernel[c]) for c in COLUMNS]
            if "loop slots" in kernel:
                tensor.append([name, f"`{bare}`", *(cell(was.get(c), kernel[c]) for c in ("loop slots", "end slots", "exposed")), *kinds_of])
            else:
                threads.append([name, f"`{bare}`", *(cell(was.get(c), kernel[c]) for c in ("slots", "issue us", "memory us")), *kinds_of])
    text += "## Predicted speeds\n\n" + table(["row", "speed", "us"], speeds)
    if tensor:
        text += "## Kernels with wgmma\n\n" + NOTES_ENDS + table(["row", "kernel", "loop", "end", "exposed", *COLUMNS], tensor)
    if threads:
        text += "## Other kernels\n\n" + NOTES_THREADS + table(["row", "kernel", "slots", "issue us", "copy us", *COLUMNS], threads)
    return text.rstrip("\n") + "\n"


def check(path, results, compiler, before):
    """The lines of a committed document that are no longer so; none where another compiler made it."""
    committed = pathlib.Path(path).read_text()
    made_by = re.search(r"^Compiler: nvcc (\S+?)\.(?: |$)", committed, re.MULTILINE)
    if made_by is None:
        raise Problem(f"{path} does not say which compiler it is of")
    if made_by.group(1) != compiler:
        print(f"{path} is of nvcc {made_by.group(1)}, here is {compiler}: not compared")
        return 0
    old, new = committed.splitlines(), markdown(results, compiler, before).splitlines()
    gone = [f"- {line}" for line in old if line not in new]
    come = [f"+ {line}" for line in new if line not in old]
    print("\n".join(gone + come) or f"{path} is current: {len(results)} rows")
    if gone or come:
        print(f"run: bench/kernel_costs --markdown > new.md && mv new.md {path}")
    return int(bool(gone or come))


def tell(name, result):
    print(f"{name:48} {result['value']:6} {result['unit']:8} {result['us']:9.1f} us")
    for kernel in result["kernels"]:
        print("    " + " ".join(f"{k}={v}" for k, v in kernel.items() if v))
    sys.stdout.flush()


def static_table(files, scratch):
    """Instructions by kind of whole kernels: all paths, as often as they stand there."""
    found = False
    for path in files:
        if not pathlib.Path(path).is_file():
            raise Problem(f"{path} is no file")
        for cubin in code_of.cubins(path, scratch):
            names = code_of.demangle(list(cubin.kernels))
            for name, code in code_of.disassemble(cubin, list(cubin.kernels)).items():
                found = True
                counts = {k: v for k, v in kinds(code, range(len(code))).items() if v}
                print(f"{names[name].split('(')[0]}: {len(code)} instructions: " + ", ".join(f"{k} {v}" for k, v in counts.items()))
    if not found:
        raise Problem(f"no kernel for sm_90 in {' '.join(files)}")


def read_before(path):
    """The numbers of an earlier --json; None where the repository has none."""
    if path == str(BEFORE) and not BEFORE.exists():
        return None
    try:
        before = json.loads(pathlib.Path(path).read_text())
        return {"commit": before["commit"], "compiler": before["compiler"], "rows": dict(before["rows"])}
    except (ValueError, KeyError, TypeError):
        raise Problem(f"{path} holds no numbers that --json wrote") from None


def main():
    parser = argparse.ArgumentParser(prog="bench/kernel_costs", description=__doc__.splitlines()[0],
                                     formatter_class=argparse.RawDescriptionHelpFormatter,
                                     epilog="examples:\n" + "\n".join(__doc__.splitlines()[2:8]))
    parser.add_argument("files", nargs="*", metavar="FILE", help="object files or cubins; none: the kernels of the build")
    parser.add_argument("--build", default=str(ROOT / "build-cards"), metavar="FOLDER", help="a build for cards (build-cards)")
    parser.add_argument("--kernels", action="append", default=[], metavar="FILE", help="takes kernels of these names from this file instead")
    parser.add_argument("--rows", default=".", metavar="PATTERN", help="only rows whose name this finds")
    parser.add_argument("--json", metavar="FILE", help="writes the numbers there")
    parser.add_argument("--commit", default="unknown", help="of the tree, for --json")
    parser.add_argument("--against", default=str(BEFORE), metavar="FILE", help="numbers before, of --json (bench/kernel_costs_before.json)")
    parser.add_argument("--markdown", action="store_true", help="prints the document")
    parser.add_argument("--check", metavar="DOCUMENT", help="compares it with what is so now")
    options = parser.parse_args()
    # What would stop it at its end stops it at once.
    try:
        pattern = re.compile(options.rows)
    except re.error as error:
        raise Problem(f"--rows is '{options.rows}', no regular expression: {error}") from None
    before = read_before(options.against)
    if options.check:
        pathlib.Path(options.check).read_text()
    if options.json:
        open(options.json, "a").close()
    with tempfile.TemporaryDirectory(prefix="athanor-costs-") as scratch:
        if options.files:
            static_table(options.files, scratch)
            return 0
        build = Build(options.build, scratch)
        for path in options.kernels:
            for cubin in code_of.cubins(path, scratch):
                build.add(cubin)
        rows = [r for r in product_rows() + attention_rows() + memory_rows() if pattern.search(r.name)]
        if not rows:
            raise Problem(f"no row's name has '{options.rows}' in it")
        quiet = options.markdown or options.check
        results = measure(build, rows, (lambda *_: None) if quiet else tell)
        compiler = code_of.compiler_version()
        if options.json:
            told = {"commit": options.commit, "compiler": compiler, "rows": results}
            pathlib.Path(options.json).write_text(json.dumps(told, separators=(",", ":")).replace('},"', '},\n"') + "\n")
        if options.markdown:
            print(markdown(results, compiler, before), end="")
        if options.check:
            return check(options.check, results, compiler, before)
    return 0


if __name__ == "__main__":
    try:
        sys.exit(main())
    except Problem as problem:
        sys.exit(f"bench/kernel_costs: {problem}")
    except OSError as error:
        sys.exit(f"bench/kernel_costs: {error.filename}: {error.strerror}")
