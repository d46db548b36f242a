#!/usr/bin/env python3
"""A card's fifteen minutes without a card: bench/card_run goes on whatever a part does, its judgements see what is wrong, a
rehearsal on the simulated card runs whole runs, and bench/card_prepare's folder is checked.

What only a bare system can show (that the folder's programs start there, with ranks) is tried by hand: docs/first_card.md.
"""
import contextlib
import importlib.machinery
import importlib.util
import io
import json
import os
import pathlib
import re
import shutil
import subprocess
import sys
import tarfile
import tempfile
import time
import unittest
import unittest.mock

ROOT = pathlib.Path(os.environ["ATHANOR_SOURCE"])
BUILD = pathlib.Path(os.environ["ATHANOR_BUILD"])
sys.dont_write_bytecode = True


def load(name):
    loader = importlib.machinery.SourceFileLoader(name, str(ROOT / "bench" / name))
    module = importlib.util.module_from_spec(importlib.util.spec_from_loader(name, loader))
    loader.exec_module(module)
    return module


card_run, card_prepare, card_parts = load("card_run"), load("card_prepare"), load("card_parts.py")

# Runs parts that are given as (name, most, least, command) by card_run's runner, in a process of its own.
DRIVER = """
import importlib.machinery, importlib.util, json, sys, types, pathlib
sys.dont_write_bytecode = True
loader = importlib.machinery.SourceFileLoader("card_run", sys.argv[1])
card_run = importlib.util.module_from_spec(importlib.util.spec_from_loader("card_run", loader))
loader.exec_module(card_run)
given = json.loads(sys.argv[2])
folder = pathlib.Path(given["folder"])
options = types.SimpleNamespace(folder=folder, out=pathlib.Path(given["out"]), rehearse=True, seconds=given["seconds"], stop=given.get("stop", False))
card_run.adopt()
sys.exit(card_run.Runner(options, [card_run.Part(*part) for part in given["parts"]]).run())
"""


class Folder(unittest.TestCase):
    def setUp(self):
        self.folder = pathlib.Path(tempfile.mkdtemp(prefix="athanor-card-"))
        self.addCleanup(shutil.rmtree, self.folder)


class Runner(Folder):
    def drive(self, parts, seconds=60, data=True, **more):
        if data:
            (self.folder / "built/data/corpus").mkdir(parents=True, exist_ok=True)
        given = {"folder": str(self.folder / "built"), "out": str(self.folder / "out"), "seconds": seconds, "parts": parts, **more}
        began = time.monotonic()
        done = subprocess.run([sys.executable, "-c", DRIVER, str(ROOT / "bench/card_run"), json.dumps(given)], capture_output=True, text=True)
        self.took = time.monotonic() - began
        self.assertEqual(done.stderr, "")
        summary = (self.folder / "out/summary.txt").read_text()
        self.assertEqual(summary, done.stdout)
        return done.returncode, summary

    def log(self):
        return (self.folder / "out/log.txt").read_text()

    def test_whole(self):
        """What somebody once set to leave something out does not count in an unattended call."""
        with unittest.mock.patch.dict(os.environ, CHECKS="nothing", ROWS="nothing", SANITIZE="1", CHECK="0"):
            self.drive([("parts", 20, 1, "echo ${CHECKS-all} ${ROWS-all} ${SANITIZE-none} ${CHECK-done}")])
        self.assertIn("all all none done", self.log())

    def test_goes_on(self):
        """Parts that fail, hang, cannot be stopped, end by a signal or leave processes behind cost themselves."""
        mark = f"{self.folder}/mark"
        code, summary = self.drive([
            ("good", 20, 1, "echo first; echo right here"),
            ("failing", 20, 1, "echo 'WRONG  two and two is 5'; echo the end; exit 3"),
            ("hanging", 2, 1, "echo hangs; sleep 600"),
            ("stubborn", 2, 1, "trap '' TERM; while :; do sleep 0.1; done"),
            ("leaving", 20, 1, f"setsid sh -c 'sleep 3; touch {mark}' & echo left one"),
            ("signal", 20, 1, "kill -SEGV $$"),
            ("absent", 20, 1, "echo no such tool; exit 77"),
            ("last", 20, 1, "echo $SPEND; echo kept > $OWN/kept.txt; echo done"),
        ])
        self.assertEqual(code, 1)
        lines = summary.splitlines()
        for line, pattern in zip(lines[1:], (
                r"good +ok +[\d.]+ s  right here", r"failing +FAILED with exit code 3 +[\d.]+ s  the end", r" +WRONG  two and two is 5",
                r"hanging +FAILED: took longer than 2 s +[\d.]+ s  hangs", r"stubborn +FAILED: took longer than 2 s +[\d.]+ s  ",
                r"leaving +ok +[\d.]+ s  left one", r"signal +FAILED by signal 11 .*", r"absent +absent +[\d.]+ s  no such tool", r"last +ok +[\d.]+ s  done",
                r"\d+ s spent; WRONG: failing, hanging, stubborn, signal"), strict=True):
            self.assertRegex(line, rf"\A{pattern}\Z")
        self.assertLess(self.took, 40)
        time.sleep(3)
        self.assertFalse(os.path.exists(mark), "a process that a part left lives on")
        # The log has all that was printed, in order.
        self.assertEqual(re.findall(r"^==== (\w+), at", self.log(), re.MULTILINE), ["good", "failing", "hanging", "stubborn", "leaving", "signal", "absent", "last"])
        self.assertIn("first\nright here\n", self.log())
        with tarfile.open(self.folder / "out/files.tar.gz") as archive:
            self.assertIn("last/kept.txt", archive.getnames())
        self.assertEqual(sorted(path.name for path in (self.folder / "out").iterdir()), ["files.tar.gz", "log.txt", "summary.txt"])

    def test_no_time(self):
        """What no longer fits is left out and named; what fits only in part gets what is left."""
        code, summary = self.drive([("long", 15, 1, "sleep 600"), ("big", 100, 60, "echo never"), ("small", 100, 0, "echo never")], seconds=9)
        self.assertEqual(code, 1)
        self.assertRegex(summary, r"long +FAILED: took longer than [23] s")
        self.assertRegex(summary, r"big +left out: \d s are left, 66 needed")
        self.assertIn("left out: --parts big,small", summary.splitlines()[-1])
        self.assertNotIn("never", self.log())
        self.assertLess(self.took, 20)

    def test_stop(self):
        parts = [("checks", 9, 1, "exit 1"), ("other", 9, 1, "echo other"), ("products", 9, 1, "echo measured", True)]
        for stop in (False, True):
            shutil.rmtree(self.folder / "out", ignore_errors=True)
            _, summary = self.drive(parts, stop=stop)
            self.assertIn("other", summary)
            self.assertEqual("products   left out: what was checked is wrong" in summary, stop)

    def test_ended(self):
        """Whoever ends it ends what it runs, and what was known by then is there."""
        for name in ("bin", "tmp"):
            (self.folder / name).mkdir()
        out, mark = self.folder / "out", self.folder / "mark"
        nvidia = self.folder / "bin/nvidia-smi"  # the first part's first command that is not the system's own
        nvidia.write_text(f"#!/bin/sh\ntouch {mark}-began\nsleep 4\ntouch {mark}\n")
        nvidia.chmod(0o755)
        process = subprocess.Popen([ROOT / "bench/card_run", "--rehearse", BUILD, out, "--parts", "machine,rows"], stdout=subprocess.DEVNULL,
                                   env={**os.environ, "PATH": f"{nvidia.parent}:{os.environ['PATH']}", "TMPDIR": str(self.folder / "tmp")})
        while not pathlib.Path(f"{mark}-began").exists() and process.poll() is None:
            time.sleep(0.02)
        process.terminate()
        self.assertEqual(process.wait(30), 1)
        time.sleep(4)
        self.assertFalse(mark.exists(), "what it ran lives on")
        self.assertIn("nvidia-smi", (out / "log.txt").read_text())
        self.assertRegex((out / "summary.txt").read_text(), r"\nmachine    ended by SIGTERM\n\d+ s spent; left out: --parts machine,rows\n\Z")
        with tarfile.open(out / "files.tar.gz") as archive:
            self.assertEqual(archive.getnames(), [])
        self.assertEqual(set(pathlib.Path(self.folder / "tmp").iterdir()), set(), "its folder lives on")

    def test_lacking(self):
        """What the folder lacks costs the parts that need it; what cannot be kept is said, and the rest goes on."""
        (self.folder / "out/files.tar.gz").mkdir(parents=True)
        built = self.folder / "built"
        built.mkdir()
        (built / "run").write_text("#!/bin/sh\n")  # came without its modes
        code, summary = self.drive([("first", 20, 1, "echo first"), ("second", 20, 1, "echo second")])
        self.assertEqual(code, 1)
        self.assertEqual(re.findall(r"^(\w+) +FAILED: .*Permission denied", summary, re.MULTILINE), ["first", "second"])
        self.assertEqual(summary.count("files.tar.gz lacks what this part wrote: Is a directory"), 2)
        shutil.rmtree(built)
        built.mkdir()
        shutil.rmtree(self.folder / "out")
        (built / "athanor").write_text("#!/bin/sh\nexit 127\n")
        (built / "athanor").chmod(0o755)
        code, summary = self.drive([("other", 20, 1, "echo needs no data")], data=False)
        self.assertEqual(code, 1)
        self.assertRegex(summary, r"\ndata       FAILED: .*exit code 127\nother +ok .*needs no data\n.*; WRONG: data\n\Z")

    def test_kept(self):
        """What an earlier call found stays."""
        out = self.folder / "out"
        self.drive([("one", 20, 1, "echo one")])
        before = {path.name: path.read_bytes() for path in out.iterdir()}
        (self.folder / "file").write_text("")
        for place, why in ((out, f"{out}/summary.txt: File exists"), (self.folder / "file", "File exists"), (self.folder / "file/out", "Not a directory")):
            done = subprocess.run([ROOT / "bench/card_run", "--rehearse", BUILD, place, "--parts", "machine"], capture_output=True, text=True)
            self.assertEqual((done.returncode, done.stderr.count("\n"), done.stdout), (1, 1, ""), done.stderr)
            self.assertIn(f"{why}; name a folder", done.stderr)
        self.assertEqual({path.name: path.read_bytes() for path in out.iterdir()}, before)

    def test_arguments(self):
        for arguments, part in (([self.folder, self.folder / "out"], "makes it"), (["--rehearse", BUILD, self.folder / "out", "--parts", ""], "no part ''"), (["--rehearse", self.folder, self.folder / "out"], "ATHANOR_SIMULATED"),
                                (["--rehearse", BUILD, self.folder / "out", "--parts", "machine,nothing"], "no part nothing")):
            done = subprocess.run([ROOT / "bench/card_run", *map(str, arguments)], capture_output=True, text=True)
            self.assertEqual((done.returncode, done.stderr.count("\n")), (1, 1), done.stderr)
            self.assertIn(part, done.stderr)
            self.assertFalse((self.folder / "out").exists())

    def test_order(self):
        """The parts are those that are described, in that order; together they fit fifteen minutes."""
        options = card_run.read_options([str(BUILD), str(self.folder)])
        listed = card_run.parts(options)
        described = re.findall(r"^    ([a-z]+(?:, [a-z]+)*)    ?", card_run.__doc__, re.MULTILINE)
        described = [name for line in described for name in line.split(", ")]
        self.assertEqual(sorted(part.name for part in listed), sorted(described))
        self.assertEqual([part.name for part in listed], described)
        self.assertLess(sum(part.most for part in listed[1:14]), 1000)


class Judgement(Folder):
    """Runs that are given: what is within rounding is right, what is not is said."""

    def setUp(self):
        super().setUp()
        self.addCleanup(os.chdir, os.getcwd())
        os.chdir(self.folder)
        self.place = card_parts.Place(["losses", "nowhere", "nowhere"])

    def write(self, name, course):
        os.makedirs(name, exist_ok=True)
        with open(f"{name}/metrics.jsonl", "w") as file:
            for step, (loss, norm) in enumerate(course):
                file.write(json.dumps({"kind": "train", "step": step + 1, "loss": loss, "grad_norm": norm, "lr": 1e-3, "skipped": 0}) + "\n")
        return card_parts.course(name)

    def judged(self, kind, course):
        reference = self.write("reference", [(6.2 - 0.05 * step, 1.0) for step in range(10)])
        self.write("run", course)
        self.place.wrong = 0
        with contextlib.redirect_stdout(io.StringIO()):
            card_parts.compare(self.place, "run", self.place.model, kind, reference)
        return self.place.wrong

    def test_any_folder(self):
        """The corpus may lie anywhere."""
        self.place.data = pathlib.Path("/a b, {c}: '#d")
        done = subprocess.run([BUILD / "athanor", "train", self.place.configure("somewhere", "cpu")], capture_output=True, text=True)
        self.assertIn("/a b, {c}: '#d/corpus", done.stderr)
        self.assertNotIn("YAML", done.stderr)

    def test_losses(self):
        true = [(6.2 - 0.05 * step, 1.0) for step in range(10)]
        changed = lambda step, loss, norm: [(l * loss, n * norm) if s == step else (l, n) for s, (l, n) in enumerate(true)]  # noqa: E731
        for kind, small, large in (("fp32", 1e-7, 1e-4), ("fp16", 1e-5, 5e-3), ("bf16", 1e-4, 1e-2)):
            self.assertEqual(self.judged(kind, true), 0)
            for step in (0, 9):
                self.assertEqual(self.judged(kind, changed(step, 1 + small, 1)), 0, kind)
            self.assertEqual(self.judged(kind, changed(0, 1 + large, 1)), 1, kind)
            self.assertEqual(self.judged(kind, changed(0, 1, 1 + small)), 0, kind)
            self.assertEqual(self.judged(kind, changed(0, 1, 1 + large)), 1, kind)
        for bad in (changed(5, float("nan"), 1), changed(0, 1, float("nan")), true[:-1], changed(9, 1.05, 1)):
            self.assertGreater(self.judged("bf16", bad), 0)


@unittest.skipIf(os.environ.get("ATHANOR_SANITIZE"), "the same programs as in the tests of trainings")
class Rehearsal(Folder):
    def test_runs(self):
        """Whole runs on the simulated card, as on a real one: killed and resumed, two ranks, under a tool, for a profile."""
        names = "machine,ranks,resume,sanitize,profile"
        done = subprocess.run([ROOT / "bench/card_run", "--rehearse", BUILD, self.folder / "out", "--parts", names], capture_output=True, text=True)
        log = (self.folder / "out/log.txt").read_text()
        self.assertEqual((done.returncode, done.stderr), (0, ""), done.stdout + log[-3000:])
        self.assertEqual(re.findall(r"^(\w+) +ok ", done.stdout, re.MULTILINE), names.split(","))
        self.assertEqual(log.count("\nok     "), 14, log)
        for line in ("killed in step", "bit for bit", "and so are weights and moments", "exchange goes through host memory", "two ranks compute the same bits twice",
                     "attention backward: attention/", "product with GELU: product/"):
            self.assertIn(line, log)
        with tarfile.open(self.folder / "out/files.tar.gz") as archive:
            for name in ("ranks/two/metrics.jsonl", "resume/killed/metrics.jsonl"):
                self.assertIn(name, archive.getnames())


class Prepared(Folder):
    def test_arguments(self):
        (self.folder / "mine").write_text("text")
        for arguments, part in ((["--what"], "unknown arguments"), (["--mend", self.folder], "was not prepared"), ([self.folder], "holds other things"),
                                ([self.folder / "mine"], "holds other things")):
            done = subprocess.run([ROOT / "bench/card_prepare", *map(str, arguments)], capture_output=True, text=True)
            self.assertEqual((done.returncode, done.stderr.count("\n")), (1, 1), done.stderr)
            self.assertIn(part, done.stderr)
        self.assertTrue((self.folder / "mine").exists())

    def test_size(self):
        with open(self.folder / "large", "wb") as file:
            file.truncate(60 << 20)
        with contextlib.redirect_stdout(io.StringIO()), self.assertRaisesRegex(SystemExit, "more than 64 MiB"):
            card_prepare.check_size(self.folder)

    def test_glibc(self):
        """A program of this system needs no glibc that is newer than this system's; what is promised is less than the newest."""
        shutil.copy(shutil.which("tar"), self.folder)
        promised, card_prepare.NEWEST_GLIBC = card_prepare.NEWEST_GLIBC, (2, 2)
        try:
            with self.assertRaisesRegex(SystemExit, "tar needs glibc 2"):
                card_prepare.check_glibc(self.folder)
        finally:
            card_prepare.NEWEST_GLIBC = promised

    def record(self, **digests):
        sources = {str(path.relative_to(ROOT)): {"flags": ["-DX"], "member": path.name + ".o", "digests": {}} for path in (ROOT / "kernels/cuda").glob("*.cu")}
        for source, value in digests.items():
            sources[f"kernels/cuda/{source}.cu"]["digests"] = {f"kernels/cuda/{source}.cu": value}
        (self.folder / "prepared.json").write_text(json.dumps(sources))

    def test_mend(self):
        """Kernels whose sources changed are compiled again, with the flags that they were made with, and only those."""
        tools = self.folder / "tools"
        tools.mkdir()
        for name in ("nvcc", "ar", "g++"):
            (tools / name).write_text(f'#!/bin/sh\necho {name} "$@" >>{self.folder}/calls\nwhile [ $# -gt 0 ]; do [ "$1" != -o ] || echo made >"$2"; shift; done\n')
            (tools / name).chmod(0o755)
        for name in ("objects", "lib"):
            (self.folder / name).mkdir()
        mend = lambda: subprocess.run([ROOT / "bench/card_prepare", "--mend", self.folder], capture_output=True, text=True,  # noqa: E731
                                      env={**os.environ, "PATH": f"{tools}:{os.environ['PATH']}"})
        same = card_prepare.digest(ROOT / "kernels/cuda/norm.cu")
        self.record(norm=same, state="another")
        done = mend()
        self.assertEqual((done.returncode, done.stdout), (0, "compiled again: kernels/cuda/state.cu\n"), done.stderr)
        calls = (self.folder / "calls").read_text().splitlines()
        self.assertEqual([call.split()[0] for call in calls], ["nvcc", "ar", "g++"])
        self.assertIn("-DX -x cu -c kernels/cuda/state.cu", calls[0])
        # Then they are those of the sources.
        self.assertEqual(mend().stdout, "the kernels are those of the sources\n")
        self.assertEqual(len((self.folder / "calls").read_text().splitlines()), 3)
        # A link that fails leaves the library that was there.
        library, tool = self.folder / "lib/libathanor.so", tools / "g++"
        before = library.read_text(), tool.read_text()
        tool.write_text(tool.read_text().replace("echo made", "echo half") + "exit 1\n")
        self.record(state="another")
        self.assertIn("failed with exit code 1", mend().stderr)
        self.assertEqual(library.read_text(), before[0])
        tool.write_text(before[1])
        # What the programs were built with cannot change for the kernels alone.
        sources = json.loads((self.folder / "prepared.json").read_text())
        sources["kernels/cuda/norm.cu"]["digests"]["kernels/kernels.h"] = "another"
        (self.folder / "prepared.json").write_text(json.dumps(sources))
        calls = (self.folder / "calls").read_text()
        self.assertIn("kernels/kernels.h: changed since", mend().stderr)
        self.assertEqual((self.folder / "calls").read_text(), calls)
        # A file that was not there has no object to take the place of.
        sources = json.loads((self.folder / "prepared.json").read_text())
        del sources["kernels/cuda/norm.cu"]
        (self.folder / "prepared.json").write_text(json.dumps(sources))
        self.assertIn("kernels/cuda/norm.cu: new since", mend().stderr)

    def test_wheels(self):
        """The folder's `run` finds libraries in the packages that PyTorch brings."""
        lib = self.folder / "site/nvidia/nccl/lib"
        lib.mkdir(parents=True)
        (lib / "libnccl.so.2").write_text("")
        text = card_prepare.RUN.replace("/usr/local/cuda", "/nowhere").replace("/sbin/ldconfig", "false").replace("ldconfig -p", "false")
        (self.folder / "run").write_text(text)
        done = subprocess.run(["sh", self.folder / "run", "sh", "-c", "echo $LD_LIBRARY_PATH; echo $PATH"], capture_output=True, text=True,
                              env={"PATH": os.environ["PATH"], "PYTHONPATH": str(self.folder / "site"), "LD_LIBRARY_PATH": "/mine"})
        libraries, path = done.stdout.splitlines()
        self.assertEqual(libraries, f"/mine:{lib}", done.stderr)
        self.assertTrue(path.startswith(f"{self.folder}:"))


if __name__ == "__main__":
    if not (BUILD / "bench_gpu").exists() or "has no simulated card" in subprocess.run(
            [BUILD / "bench_gpu", "--rehearse", "--serve"], input="", capture_output=True, text=True).stderr:
        print("skipped: this build has no bench_gpu with a simulated card")
        sys.exit(77)
    unittest.main()
