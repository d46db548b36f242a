#!/usr/bin/env python3
"""Measures the rows of bench_gpu beside their limits and PyTorch, in turn, and writes the table: called by bench/gpu.

    bench/gpu_table.py [--rehearse] [--folder FOLDER] [--part PART] [--commit C] [--rows PATTERN] [--only PATTERN] [--seconds N] BENCH_GPU

A row is measured ROUNDS times; ours, the library's (cuBLASLt; of a copy the driver's own) and PyTorch's take turns, so that clocks
and heat are the same for all; medians count. Of a step, whose peers would not fit into the card's memory together, first all rounds
of ours, then all of PyTorch's. Tensor rows stand beside TENSOR_LIMIT, memory rows beside the copy row of the same run. Rows come as
bench_gpu lists them, which ends with steps from small to large; after N seconds no row is begun, and no peer is waited for
(compiling a large model takes PyTorch minutes). Every time goes to FOLDER/raw.txt when it is known, and the table is written after
every row, as FOLDER/gpu-DATE.md or gpu-DATE-PART.md. It tells what FOLDER/checked-smoke and checked-checks say, and at which clocks
and power the card ran, which nvidia-smi logs to FOLDER/clocks.csv meanwhile.

--rehearse runs all of this on the simulated card, with sizes that bench_gpu divides, and PyTorch on the CPU: it shows that every
row and every line works, and its times mean nothing. A rehearsal's table says so and is not taken in bench/results.
"""
import argparse
import contextlib
import datetime
import os
import pathlib
import re
import select
import statistics
import subprocess
import sys
import threading
import time

ROUNDS, SECONDS = 5, 0.05
TENSOR_LIMIT = 989.4e12  # dense bf16 of H100 and H200 SXM: boost clock times units; 790e12 is about what power allows
ROW_SECONDS = 60  # one answer of a row that is no step
STEP_SECONDS = 120  # one answer of a step of ours: initial weights of up to 8B parameters, and its first runs
STEP_LEAST, STEP_RATE = 5, 8e12  # what is set aside for a step of ours: 24 s more for 8B, mostly its initial weights
PEER_SECONDS = 180  # one answer of PyTorch's, which compiles first
LIBRARIES = {"cublas": "cuBLASLt", "driver": "the driver's own copy"}  # the ends of names of rows that a library computes
HEADER = ["| row | ours | of the limit | library | ours / library | PyTorch | ours / PyTorch |", "|---|---|---|---|---|---|---|"]
HERE = pathlib.Path(__file__).resolve().parent


class Absent(Exception):
    """A row or a peer that cannot be measured here; says why."""


class Server:
    """A program that answers each line with one. It is started when it is first asked, and again after it ended."""

    def __init__(self, name, command):
        self.name, self.command, self.process, self.notes = name, command, None, {}

    def ask(self, line, limit):
        if self.process is None:
            self.process = subprocess.Popen(self.command, stdin=subprocess.PIPE, stdout=subprocess.PIPE)
        try:
            self.process.stdin.write(line.encode() + b"\n")
            self.process.stdin.flush()
        except OSError:
            self.stop()
            raise Absent(f"{self.name} ended") from None
        answer, until = b"", time.monotonic() + limit
        while not answer.endswith(b"\n"):
            if not select.select([self.process.stdout], [], [], max(0, until - time.monotonic()))[0]:
                self.stop()
                raise Absent(f"{self.name} took longer than {limit:.0f} s")
            part = os.read(self.process.stdout.fileno(), 4096)
            if not part:
                code = self.stop()
                raise Absent(f"{self.name} ended with exit code {code}")  # it said why
            answer += part
        text = answer.decode().strip()
        if text.startswith("error: "):  # its last word
            self.stop()
            raise Absent(text.removeprefix("error: "))
        return text

    def seconds(self, row, rehearse, limit):
        answer = self.ask(f"{row.name} {0 if rehearse else SECONDS} {row.words}", limit)
        number, _, note = answer.partition(" ")
        try:
            measured = float(number)
        except ValueError:
            raise Absent(answer.removeprefix("absent: ")) from None
        if note:
            self.notes[row.name] = note
        return measured

    def release(self):
        if self.process is not None:
            try:
                self.ask("release", ROW_SECONDS)
            except Absent as error:
                print(f"bench/gpu: {error}", file=sys.stderr)

    def stop(self):
        """Ends the program, gently if it has nothing to do; its exit code."""
        process, self.process = self.process, None
        if process is None:
            return 0
        code = None
        with contextlib.suppress(OSError):
            process.stdin.close()
        try:
            code = process.wait(2)
        except subprocess.TimeoutExpired:
            process.kill()
            with contextlib.suppress(subprocess.TimeoutExpired):  # in a driver that does not answer; the table matters more
                code = process.wait(20)
        process.stdout.close()
        return code


class Clocks:
    """What nvidia-smi tells of the first card several times a second, in `path` and in memory. Without nvidia-smi: why not."""

    FIELDS = "clocks.sm,clocks.mem,power.draw,temperature.gpu"
    REASONS = ("clocks_event_reasons.active", "clocks_throttle_reasons.active")  # newer drivers', older ones'

    def __init__(self, path):
        self.samples, self.process, self.absent = [], None, None
        for reason in self.REASONS:
            query = ["nvidia-smi", "--id=0", f"--query-gpu=timestamp,{self.FIELDS},{reason}", "--format=csv,noheader,nounits"]
            try:
                once = subprocess.run(query, capture_output=True, text=True, timeout=20)
            except (OSError, subprocess.TimeoutExpired) as error:
                self.absent = f"no clocks: {error}"
                return
            if once.returncode == 0:
                break
        else:
            self.absent = f"no clocks: nvidia-smi: {(once.stdout + once.stderr).strip().splitlines()[-1:]}"
            return
        self.process = subprocess.Popen([*query, "-lms", "200"], stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True)
        threading.Thread(target=self.read, args=(path,), daemon=True).start()

    def read(self, path):
        with open(path or os.devnull, "a", encoding="utf-8") as log:
            for line in self.process.stdout:
                log.write(line)
                log.flush()
                words = [word.strip() for word in line.split(",")]
                with contextlib.suppress(ValueError, IndexError):
                    self.samples.append((time.monotonic(), *map(float, words[1:5]), int(words[5], 16)))

    def between(self, start, end):
        """In words: medians between two times, and every reason that held the clocks back. "" where nothing was seen."""
        seen = [sample for sample in self.samples if start <= sample[0] <= end]
        if not seen:
            return ""
        sm, memory, power, heat = (statistics.median(sample[i] for sample in seen) for i in range(1, 5))
        active = 0
        for sample in seen:
            active |= sample[5]
        # NVML's nvmlClocksEventReasons; idle clocks and those that were asked for hold nothing back.
        names = {0x4: "power cap", 0x8: "slowdown", 0x20: "thermal (software)", 0x40: "thermal (hardware)", 0x80: "power brake"}
        held = [name for bit, name in names.items() if active & bit]
        return (f"{sm:.0f} MHz, memory {memory:.0f} MHz, {power:.0f} W (at most {max(sample[3] for sample in seen):.0f}), {heat:.0f} C"
                + (f", held back: {', '.join(held)}" if held else ""))

    def stop(self):
        if self.process is not None:
            self.process.terminate()
            self.process.wait(20)


class Row:
    def __init__(self, line):
        self.name, self.limit, work, *words = line.split()
        self.work, self.step, self.library = float(work), self.name.startswith("step/"), self.name.rpartition("/")[2] in LIBRARIES
        family = [f"family={self.name.split('/')[1].split('-')[0]}"] if self.step else []
        self.words = " ".join(words + family)


def list_rows(command):
    listed = subprocess.run(command + ["--list"], capture_output=True, text=True, check=True).stdout
    return [Row(line) for line in listed.splitlines()]


def describe_machine(rehearse):
    if rehearse:
        return "simulated card"
    try:
        return subprocess.run(["nvidia-smi", "--query-gpu=name,driver_version,clocks.max.sm,power.limit", "--format=csv,noheader"],
                              capture_output=True, text=True, check=True).stdout.splitlines()[0]
    except (OSError, subprocess.CalledProcessError, IndexError):
        return "unknown card"


def some(names):
    return ", ".join(names[:3]) + (f" and {len(names) - 3} more" if len(names) > 3 else "")


class Table:
    def __init__(self, options, rows):
        self.options, self.deadline = options, time.monotonic() + options.seconds
        program = [options.program] + (["--rehearse"] if options.rehearse else [])
        peers = [sys.executable, str(HERE / "gpu_peers.py")] + (["--device", "cpu"] if options.rehearse else [])
        self.ours, self.torch = Server("bench_gpu", program + ["--serve"]), Server("PyTorch", peers)
        self.rows, self.bandwidth, self.lines, self.absent = rows, None, [], {}  # absent: rows by name and reason
        self.groups, self.began = {}, time.monotonic()  # first and last moment of each kind of row
        self.clocks = Clocks(options.folder and options.folder / "clocks.csv")
        self.rounds = 1 if options.rehearse else ROUNDS
        # Without PyTorch there is one reason for all rows, and it is told once.
        looked = subprocess.run([sys.executable, "-c", "import torch; print(torch.__version__)"], capture_output=True, text=True)
        self.has_torch = looked.returncode == 0
        self.torch_version = looked.stdout.strip() if self.has_torch else "none"
        if not self.has_torch:
            self.absent["PyTorch", (looked.stderr.strip().splitlines() or ["import torch failed"])[-1]] = ["every row"]

    def left(self, reserved=0):
        return self.deadline - reserved - time.monotonic()

    def within(self, seconds, reserved=0):
        """How long an answer may be waited for."""
        left = self.left(reserved)
        if left < 1:
            raise Absent("not measured: time was up")
        return min(seconds, left)

    def measure(self, row, library):
        """Times by name. What a column lacks is put among the absent."""
        times, lacks, rehearse = {"ours": []}, {}, self.options.rehearse

        def measure_one(column, server, of, limit, reserved=0):
            if column not in lacks:
                try:
                    seconds = server.seconds(of, rehearse, self.within(limit, reserved))
                    times.setdefault(column, []).append(seconds)
                    self.log(f"{row.name} {column} {seconds:.9f} s")
                except Absent as error:
                    lacks[column] = str(error)
                    self.log(f"{row.name} {column} {error}")

        # Time that later steps of ours need is not spent on this one's peer.
        later = self.rows[self.rows.index(row) + 1:]
        reserved = 0 if rehearse else sum(STEP_LEAST + r.work / STEP_RATE for r in later if r.step)
        row_limit, step_limit, peer_limit = (600, 600, 600) if rehearse else (ROW_SECONDS, STEP_SECONDS, PEER_SECONDS)
        for turn in range(self.rounds):
            measure_one("ours", self.ours, row, step_limit if row.step else row_limit)
            if library:
                measure_one("library", self.ours, library, row_limit)
            if not row.step and self.has_torch:
                measure_one("torch", self.torch, row, peer_limit, reserved)
        self.ours.release()
        if row.step and self.has_torch:
            for turn in range(self.rounds):
                measure_one("torch", self.torch, row, peer_limit, reserved)
        self.torch.release()
        for column, name in (("library", library and LIBRARIES[library.name.rpartition("/")[2]]), ("torch", "PyTorch")):
            if column in lacks:
                self.absent.setdefault((name, lacks[column]), []).append(row.name)
        if "ours" in lacks:
            raise Absent(lacks["ours"])
        return {k: v for k, v in times.items() if v and k not in lacks}

    def log(self, line):
        """At once, so that what was measured is there if this program is ended."""
        if self.options.folder:
            with open(self.options.folder / "raw.txt", "a", encoding="utf-8") as file:
                file.write(f"{datetime.datetime.now().isoformat(timespec='milliseconds')} {line}\n")

    def add(self, row, library):
        start = time.monotonic()
        try:
            times = self.measure(row, library)
        except Absent as error:
            self.lines.append(f"| {row.name} | {str(error)[:200].replace('|', '/')} | | | | | |")
            print(self.lines[-1], flush=True)
            return
        finally:
            group = self.groups.setdefault(row.name.split("/")[0], [start, start])
            group[1] = time.monotonic()
        speed = {k: row.work / statistics.median(v) for k, v in times.items()}
        if row.name.startswith("rows/copy/"):
            self.bandwidth = speed["ours"]
        ceiling = TENSOR_LIMIT if row.limit == "tensor" else self.bandwidth
        unit, scale = ("TFLOP/s", 1e-12) if row.limit == "tensor" else ("GB/s", 1e-9)
        digits = 6 if self.options.rehearse else 0
        cells = [row.name, f"{speed['ours'] * scale:.{digits}f} {unit}", f"{100 * speed['ours'] / ceiling:.0f} %" if ceiling else ""]
        for other in ("library", "torch"):
            known = other in speed
            cells += [f"{speed[other] * scale:.{digits}f}" if known else "", f"{speed['ours'] / speed[other]:.2f}" if known else ""]
        self.lines.append("| " + " | ".join(cells) + " |")
        print(self.lines[-1], flush=True)

    def text(self):
        o, date = self.options, datetime.date.today().isoformat()
        if o.rehearse:
            title = f"# A rehearsal on a simulated card, whose times mean nothing, {date}, commit {o.commit}"
            told = "Sizes are divided; one round. Nothing here is a measurement of a card."
        else:
            title = f"# A card, {date}, commit {o.commit}"
            told = (f"Medians of {ROUNDS} rounds in which ours and the peers take turns (steps: first ours, then PyTorch's); inputs are "
                    f"normal random numbers. Limit of tensor rows: {TENSOR_LIMIT * 1e-12:.0f} TFLOP/s (dense bf16 of an H200 at its "
                    "highest clock); of memory rows: the copy row. A step's flops: 6 for each weight of a matrix and token, and half of "
                    "attention's square; what is computed again does not count. PyTorch's numbers are our row's work over its time.")
        machine = f"{describe_machine(o.rehearse)}; PyTorch {self.torch_version}"
        ran = f"Clocks: {self.clocks.absent or self.clocks.between(self.began, time.monotonic()) or 'none seen'}."
        parts = [title, "", machine, "", f"Checks: {self.checked()}.", "", ran, "", told, "", *HEADER, *self.lines, *self.remarks()]
        return "\n".join(parts) + "\n"

    def checked(self):
        paths = [self.options.folder / f"checked-{part}" for part in ("smoke", "checks")] if self.options.folder else []
        return "; ".join(path.read_text(encoding="utf-8").strip() for path in paths if path.exists()) or "not checked in this run"

    def remarks(self):
        """What stands below the table: what ran as a peer, and what could not."""
        ran = {}
        for name, note in self.torch.notes.items():
            ran.setdefault(note, []).append(name)
        peers = [f"- {note}: {some(rows)}" for note, rows in ran.items()]
        absent = [f"- {name}, {reason}: {some(rows)}" for (name, reason), rows in self.absent.items()]
        told = [(name, self.clocks.between(*group)) for name, group in self.groups.items()]
        clocks = [f"- {name}: {text}" for name, text in told if text]
        lists = (("Clocks while these were measured:", clocks), ("What PyTorch ran:", peers), ("Absent:", absent))
        return [line for title, lines in lists if lines for line in ("", title, "", *lines)]

    def save(self):
        if self.options.folder is None:
            return None
        name = "rehearsal" if self.options.rehearse else "gpu"
        part = f"-{self.options.part}" if self.options.part else ""
        path = self.options.folder / f"{name}-{datetime.date.today().isoformat()}{part}.md"
        path.write_text(self.text(), encoding="utf-8")
        return path


def read_options():
    parser = argparse.ArgumentParser(prog="gpu_table.py", description="Measures the rows of bench_gpu and writes a table.")
    parser.add_argument("--rehearse", action="store_true", help="on the simulated card; times mean nothing")
    parser.add_argument("--folder", type=pathlib.Path, help="where the table is written")
    parser.add_argument("--commit", default="unknown")
    parser.add_argument("--part", help="what the rows are a part of, for the table's name")
    parser.add_argument("--rows", default=".", metavar="PATTERN", help="measure the rows that match")
    parser.add_argument("--only", default=".", metavar="PATTERN", help="and this too")
    parser.add_argument("--seconds", type=float, default=420, help="begin no row later than this")
    parser.add_argument("program", metavar="BENCH_GPU")
    options = parser.parse_args()
    if options.rehearse and options.folder and options.folder.resolve() == HERE / "results":
        sys.exit("bench/gpu: bench/results is for measurements: give a rehearsal another folder")
    for name in ("rows", "only"):
        try:
            setattr(options, name, re.compile(getattr(options, name)))
        except re.error as error:
            sys.exit(f"bench/gpu: ROWS is '{getattr(options, name)}', no regular expression: {error}")
    if options.folder:
        try:
            options.folder.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            sys.exit(f"bench/gpu: {error}")
    return options


def main():
    options = read_options()
    try:
        rows = list_rows([options.program] + (["--rehearse"] if options.rehearse else []))
    except (OSError, subprocess.CalledProcessError) as error:
        sys.exit(f"bench/gpu: {error}")
    libraries = {row.name.rpartition("/")[0]: row for row in rows if row.library}
    chosen = [r for r in rows if not r.library and options.rows.search(r.name) and options.only.search(r.name)]
    copies = [r for r in rows if not r.library and r.name.startswith("rows/copy/")]
    # The copy first, for it is the limit of others; then as listed, which ends with the steps.
    if any(r.limit == "memory" for r in chosen):
        chosen = copies + [r for r in chosen if r not in copies]
    table, path = Table(options, chosen), None
    print("\n".join(HEADER), flush=True)
    try:
        for row in chosen:
            table.add(row, libraries.get(row.name))
            path = table.save()
    finally:
        table.ours.stop()
        table.torch.stop()
        table.clocks.stop()
    print("\n".join(table.remarks()))
    if path:
        print(f"saved as {path}")


if __name__ == "__main__":
    main()
