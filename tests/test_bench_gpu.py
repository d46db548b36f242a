#!/usr/bin/env python3
"""bench/gpu without a card: a rehearsal on the simulated one does every check and runs every row, its table says what it is, checks
see what is wrong, and what goes wrong on a card (no memory, a program that ends or hangs, no time) costs a check or a row alone.

PyTorch takes part where this Python has it.
"""
import contextlib
import io
import os
import pathlib
import re
import subprocess
import sys
import tempfile
import time
import unittest

ROOT = pathlib.Path(os.environ["ATHANOR_SOURCE"])
BUILD = pathlib.Path(os.environ["ATHANOR_BUILD"])
PROGRAM = BUILD / "bench_gpu"
sys.path.insert(0, str(ROOT / "bench"))
import gpu_checks  # noqa: E402
import gpu_table  # noqa: E402


def listing(*flags):
    return gpu_table.list_rows([str(PROGRAM), *flags])


def bench_gpu(*arguments, given="", **environment):
    return subprocess.run([PROGRAM, *arguments], input=given, capture_output=True, text=True, env={**os.environ, **environment})


def table(*arguments, **environment):
    return subprocess.run([sys.executable, ROOT / "bench/gpu_table.py", *map(str, arguments), PROGRAM], capture_output=True, text=True,
                          env={**os.environ, **environment})


def gpu(*arguments, cwd=None, **environment):
    return subprocess.run([ROOT / "bench/gpu", *map(str, arguments)], capture_output=True, text=True, cwd=cwd,
                          env={**os.environ, "PYTHON": sys.executable, **environment})


def check_names():
    return subprocess.run([BUILD / "tests/check_gpu", "--rehearse", "--list"], capture_output=True, text=True, check=True).stdout.split()


def script(path, text):
    path.write_text(text)
    path.chmod(0o755)


def fake(code):
    return gpu_table.Server("fake", [sys.executable, "-c", code])


class Rows(unittest.TestCase):
    def test_names(self):
        for flags in ((), ("--rehearse",)):
            names = [row.name for row in listing(*flags)]
            self.assertEqual(len(names), len(set(names)))
        kinds = {re.sub(r"\d.*", "", row.name) for row in listing()}
        for kind in ("product/forward/", "product/input/", "product/weight/", "attention/forward/B", "attention/backward/B",
                     "attention/deterministic/B", "rows/copy/", "rows/layernorm/", "update/adamw/", "update/adamw-small/",
                     "classifier/loss/", "classifier/whole/", "step/gpt", "step/llama-"):
            self.assertIn(kind, kinds)
        # A rehearsal is the same rows with other sizes.
        what = [[[re.sub(r"\d+", "", part) for part in row.name.split("/") if row.step or not part.isdigit()]
                 for row in listing(*flags)] for flags in ((), ("--rehearse",))]
        self.assertEqual(*what)

    def test_flops(self):
        """Work as the shapes give it: 2 a multiply-add, half of attention's square, thrice for a step (forward and backward)."""
        for row in listing():
            parts = row.name.removesuffix("/cublas").split("/")
            if parts[0] == "product":
                rows, inner, outer = map(int, parts[3].split("x"))
                expected = 2 * rows * inner * outer
            elif parts[0] == "classifier":
                rows, width, vocabulary = map(int, parts[2].split("x"))
                expected = 2 * rows * width * vocabulary * {"loss": 1, "loss-input": 2, "whole": 3}[parts[1]]
            elif parts[0] == "attention":
                batch, length, heads, _, width = map(int, re.findall(r"\d+", parts[2]))
                expected = batch * heads * 2 * width * length * length * (1 if parts[1] == "forward" else 2.5)
            elif parts[0] == "step":
                w = {k: int(v) if v.isdigit() else v for k, v in (word.split("=") for word in row.words.split())}
                head = w["width"] // w["heads"]
                ups = 2 if w["family"] == "llama" else 1
                layer = w["width"] * ((w["heads"] + 2 * w["groups"]) * head + w["width"] + (ups + 1) * w["inner"])
                weights = w["layers"] * layer + w["vocabulary"] * w["width"]
                attention = w["layers"] * w["heads"] * 2 * head * w["length"]  # a token, forward, half of the square
                expected = w["sequences"] * w["length"] * (6 * weights + 3 * attention)
            else:
                continue
            self.assertAlmostEqual(row.work / expected, 1, places=7, msg=row.name)
        eight = next(row for row in listing() if "llama-8b" in row.name)
        self.assertIn("layers=32 width=4096 heads=32 groups=8 inner=14336 vocabulary=128256", eight.words)
        self.assertIn("state=small", eight.words)

    def test_answers(self):
        """The protocol: held rows, unknown ones, nonsense, and nothing that stops the program."""
        copy = next(row.name for row in listing("--rehearse") if row.name.startswith("rows/copy/"))
        library = next(row.name for row in listing("--rehearse") if row.name.endswith("/cublas"))
        done = bench_gpu("--rehearse", "--serve", given=f"{copy} 0.01\n{copy} 0\nrelease\nno/row 0\nnonsense\n{library} 0\n{copy} 0\n")
        self.assertEqual(done.returncode, 0, done.stderr)
        lines = done.stdout.splitlines()
        self.assertEqual(len(lines), 7)
        for number in (0, 1, 6):
            self.assertGreater(float(lines[number]), 0)
        self.assertEqual(lines[2:6], ["released", "absent: there is no row no/row", "absent: expected: NAME SECONDS, or: release",
                                      "absent: a simulated card has no cuBLASLt"])
        self.assertEqual(bench_gpu("--what").returncode, 1)

    def test_memory(self):
        """A step that does not fit says how much is missing, and the next row is measured."""
        rows = [row.name for row in listing("--rehearse") if "llama-8b" in row.name or (row.name.startswith("rows/copy/") and not row.library)]
        done = bench_gpu("--rehearse", "--serve", given="".join(f"{name} 0\n" for name in reversed(rows)),
                         ATHANOR_SIMULATED_MEMORY="64Mi")
        self.assertEqual(done.returncode, 0, done.stderr)
        step, copy = done.stdout.splitlines()
        self.assertRegex(step, r"^absent: the step needs [0-9.]+ MiB of the card's memory, [0-9.]+ MiB more than the [0-9.]+ MiB that are free$")
        self.assertGreater(float(copy), 0)


class Rehearsal(unittest.TestCase):
    def test_whole(self):
        before = sorted((ROOT / "bench/results").iterdir())
        with tempfile.TemporaryDirectory() as folder:
            # Without the tests of products and classifier, which are tests of their own; operations: one.
            done = gpu("--rehearse", BUILD, "tables", "--seconds", "1200", cwd=folder, CHECKS="/|test_ops", ATHANOR_TEST_OPERATION="scale")
            self.assertEqual(done.returncode, 0, done.stdout + done.stderr)
            (path,) = pathlib.Path(folder, "tables").glob("*.md")
            text, checks, raw = (p.read_text() for p in (path, path.parent / "checks.txt", path.parent / "raw.txt"))
        self.assertTrue(path.name.startswith("rehearsal-"))
        self.assertRegex(text, r"\A# A rehearsal on a simulated card, whose times mean nothing, ")
        self.assertRegex(text, r"Checks: smoke: \d+ right on the simulated card in \d+ s; checks: \d+ right on the simulated card in \d+ s\.\n")
        self.assertRegex(text, r"\nClocks: .+\.\n")
        for name in check_names():
            self.assertRegex(checks, rf"(?m)^ok +[0-9.]+ s  {name}: ")
        self.assertRegex(checks, r"(?m)^ok +[0-9.]+ s  test_ops_cards: ")
        self.assertEqual([line for line in checks.splitlines() if not line.startswith(("ok ", "smoke: ", "checks: "))], [])
        cells = {line.split(" | ")[0][2:]: line for line in text.splitlines() if line.startswith("| ")}
        for row in listing("--rehearse"):
            if not row.library:
                self.assertIn(f" {row.name} ours ", raw)
                self.assertRegex(cells.get(row.name, f"{row.name} is not there"), r"\| [0-9.]+ (TFLOP/s|GB/s) \| \d+ % \|")
        self.assertIn("- cuBLASLt, a simulated card has no cuBLASLt: ", text)
        self.assertEqual(before, sorted((ROOT / "bench/results").iterdir()))

    def test_never_among_results(self):
        done = table("--rehearse", "--folder", ROOT / "bench/results")
        self.assertEqual((done.returncode, done.stderr.count("\n")), (1, 1), done.stderr)
        self.assertIn("bench/results is for measurements", done.stderr)

    def test_parts(self):
        """A part alone does its own, names its table after itself, and needs no other."""
        with tempfile.TemporaryDirectory() as folder:
            for part, rows in (("update", "update"), ("attention", "attention")):
                done = gpu("--rehearse", BUILD, "--part", part, "--seconds", "600", folder, ROWS="adamw|T32")
                self.assertEqual(done.returncode, 0, done.stderr)
                (path,) = pathlib.Path(folder).glob(f"rehearsal-*-{part}.md")
                names = {line.split(" | ")[0][2:].split("/")[0] for line in path.read_text().splitlines()[2:] if line.startswith("| ")}
                self.assertEqual(names - {"rows", "row"}, {rows})
            done = gpu("--rehearse", BUILD, "--part", "smoke", "--seconds", "098", folder, CHECKS="few")
            self.assertEqual((done.returncode, done.stdout.count("\n")), (0, 2), done.stdout)
            self.assertRegex(done.stdout, r"smoke: 1 right on the simulated card in \d+ s\n\Z")

    def test_planted(self):
        """16 bytes of one result at a wrong place: every check sees it."""
        done = subprocess.run([BUILD / "tests/check_gpu", "--rehearse", "--plant", "--serve"], capture_output=True, text=True,
                              input="\n".join([*check_names(), ""]))
        lines = done.stdout.splitlines()
        self.assertEqual(len(lines), len(check_names()), done.stderr)
        for name, line in zip(check_names(), lines):
            self.assertTrue(line.startswith("wrong: "), f"{name}: {line}")

    def test_other_body(self):
        """Which body ran is told. Of a card that is no sm_90 none of Hopper's is expected."""
        name = next(name for name in check_names() if name.startswith("smoke/forward/plain/"))
        for architecture, part in (("80", "ok: by sm80; "), ("90", "ok: by sm90; ")):
            done = subprocess.run([BUILD / "tests/check_gpu", "--rehearse", "--serve"], capture_output=True, text=True, input=name + "\n",
                                  env={**os.environ, "ATHANOR_SIMULATED_ARCH": architecture})
            self.assertTrue(done.stdout.startswith(part), done.stdout)

    def test_no_time(self):
        done = table("--rehearse", "--seconds", "0")
        self.assertEqual(done.returncode, 0, done.stderr)
        rows = [row for row in listing("--rehearse") if not row.library]
        self.assertEqual(done.stdout.count("not measured: time was up | | | | | |"), len(rows))

    def test_arguments(self):
        for arguments, part in ((["--rows", "("], "no regular expression"), (["--folder", "/dev/null/x"], "/dev/null")):
            done = table("--rehearse", *arguments)
            self.assertEqual((done.returncode, done.stderr.count("\n")), (1, 1), done.stderr)
            self.assertIn(part, done.stderr)
        done = subprocess.run([sys.executable, ROOT / "bench/gpu_table.py", "/no/bench_gpu"], capture_output=True, text=True)
        self.assertEqual((done.returncode, done.stderr.count("\n")), (1, 1), done.stderr)
        self.assertIn("/no/bench_gpu", done.stderr)
        for arguments, part in ((["--what"], "unknown option"), (["--rehearse"], "name the folder"), (["--rehearse", "/"], "no //bench_gpu"),
                                (["--part", "everything"], "there are smoke, checks, products"), (["--part"], "needs a value"),
                                (["--seconds", "soon"], "a whole number"), (["--built"], "name the folder"),
                                (["--rehearse", "/", "one", "two"], "two after /")):
            done = gpu(*arguments)
            self.assertEqual((done.returncode, done.stderr.count("\n")), (1, 1), done.stderr)
            self.assertIn(part, done.stderr)


class Peers(unittest.TestCase):
    """The columns of peers, with programs that answer what they are told to."""

    def test_columns(self):
        rows = [gpu_table.Row(line) for line in (
            "rows/copy/1x1 memory 1e9", "product/forward/x/1x1x1 tensor 1e12", "product/forward/x/1x1x1/cublas tensor 1e12",
            "step/llama-x/B1-T1 tensor 4e12 layers=1", "rows/add/1x1 memory 1e9", "rows/copy/1x1/driver memory 1e9")]
        names = "seconds = {'rows/copy/1x1': 0.001, 'product/forward/x/1x1x1/cublas': 0.02, 'rows/add/1x1': 0.002}"
        ours = (f"import sys; {names}\nfor line in sys.stdin: print('released' if line == 'release\\n' else "
                "seconds.get(line.split()[0], 0.01), flush=True)")
        torch = ("import sys\nfor line in sys.stdin: print('released' if line == 'release\\n' else 'absent: none such' if 'rows' in line "
                 "else '0.04 ' + ' '.join(line.split()[2:]) + '!', flush=True)")
        sys.argv = ["gpu_table.py", "--rows", "x", "unused"]
        table = gpu_table.Table(gpu_table.read_options(), [row for row in rows if not row.library])
        table.has_torch, table.ours, table.torch, table.absent = True, fake(ours), fake(torch), {}
        for row in table.rows:
            table.add(row, {rows[0]: rows[5], rows[1]: rows[2]}.get(row))
        self.assertEqual((table.ours.stop(), table.torch.stop()), (0, 0))
        self.assertEqual(table.lines, [
            "| rows/copy/1x1 | 1000 GB/s | 100 % | 100 | 10.00 |  |  |",
            "| product/forward/x/1x1x1 | 100 TFLOP/s | 10 % | 50 | 2.00 | 25 | 4.00 |",
            "| step/llama-x/B1-T1 | 400 TFLOP/s | 40 % |  |  | 100 | 4.00 |",
            "| rows/add/1x1 | 500 GB/s | 50 % |  |  |  |  |"])
        text = table.text()
        self.assertIn("- layers=1 family=llama!: step/llama-x/B1-T1\n", text)
        self.assertIn("- PyTorch, none such: rows/copy/1x1, rows/add/1x1\n", text)
        self.assertRegex(text, r"\A# A card, ")


class Checks(unittest.TestCase):
    """A check that is wrong, ends its program or hangs costs itself, is named, and the rest goes on."""

    NAMES = ["smoke/right", "smoke/wrong", "smoke/ends", "smoke/hangs", "smoke/last"]

    def test_failures(self):
        with tempfile.TemporaryDirectory() as folder:
            built = pathlib.Path(folder)
            script(built / "check_gpu", f"""#!{sys.executable}
import sys, time
if "--list" in sys.argv:
    print(*{self.NAMES})
for line in sys.stdin if "--serve" in sys.argv else ():
    time.sleep(600 * ("hangs" in line))
    if "ends" in line:
        sys.exit(3)
    print("wrong: it is off" if "wrong" in line else "ok: it is", flush=True)
""")
            script(built / "test_hangs", "#!/bin/sh\nsleep 600\n")
            script(built / "test_fails", "#!/bin/sh\necho such and such; exit 1\n")
            sys.argv = ["gpu_checks.py", "--part", "smoke", "--folder", folder, "--seconds", "100", folder]
            gpu_checks.CHECK_SECONDS = gpu_checks.PROGRAM_SECONDS = 2
            options = gpu_checks.read_options()
            report = gpu_checks.Report(options)
            with contextlib.redirect_stdout(io.StringIO()) as told:
                gpu_checks.check_server(report, options, self.NAMES)
                for name in ("test_hangs", "test_fails", "test_none"):
                    gpu_checks.check_program(report, options, name)
                options.seconds = 0
                gpu_checks.check_server(report, options, ["smoke/late"])
                code = report.close()
            lines = [re.sub(r" +[0-9.]+ s  ", " ", line) for line in told.getvalue().splitlines()]
            self.assertEqual(lines[:5], ["ok smoke/right: it is", "wrong smoke/wrong: it is off",
                                         "FAILED smoke/ends: check_gpu ended with exit code 3",
                                         "FAILED smoke/hangs: check_gpu took longer than 2 s", "ok smoke/last: it is"])
            self.assertEqual([line.split(";")[0] for line in lines[5:9]], [
                "FAILED test_hangs: took longer than 2 s", "FAILED test_fails: exit code 1: such and such",
                f"FAILED test_none: it is not in {folder}", "LATE smoke/late: not checked: time was up"])
            self.assertRegex(lines[9], r"^smoke: 2 right on this card in \d+ s; \*\*7 WRONG, HANGING OR NOT DONE: smoke/wrong, ")
            self.assertEqual(code, 1)
            self.assertEqual((built / "checks.txt").read_text(), told.getvalue())
            self.assertEqual((built / "checked-smoke").read_text().strip(), lines[9])


class Clocks(unittest.TestCase):
    def clocks(self, text):
        with tempfile.TemporaryDirectory() as folder:
            if text:
                script(pathlib.Path(folder, "nvidia-smi"), f"#!{sys.executable}\n{text}")
            before, os.environ["PATH"] = os.environ["PATH"], f"{folder}:/no/other"
            try:
                clocks = gpu_table.Clocks(pathlib.Path(folder, "clocks.csv"))
                start = time.monotonic()
                while clocks.process and len(clocks.samples) < 3 and time.monotonic() < start + 60:
                    time.sleep(0.05)
                clocks.stop()
                log = pathlib.Path(folder, "clocks.csv")
                return clocks, log.read_text() if log.exists() else ""
            finally:
                os.environ["PATH"] = before

    def test_log(self):
        """Medians, the highest power and what held the clocks back; of a driver that knows the older name of that alone."""
        clocks, log = self.clocks("""import sys, time
if "clocks_event" in sys.argv[2]:
    print("Field is not a valid field to query."); sys.exit(2)
for power, reason in ((690, 4), (700, 0x24), (650, 1)) if "-lms" in sys.argv else ((1, 0),):
    print(f"2026/11/27 10:00:00.000, 1755, 2619, {power}.00, 61, 0x{reason:016x}", flush=True)
time.sleep(20 * ("-lms" in sys.argv))
""")
        self.assertIsNone(clocks.absent)
        self.assertEqual(log.count("\n"), 3)
        self.assertEqual(clocks.between(0, time.monotonic()),
                         "1755 MHz, memory 2619 MHz, 690 W (at most 700), 61 C, held back: power cap, thermal (software)")
        self.assertEqual(clocks.between(0, 1), "")

    def test_absent(self):
        self.assertIn("no clocks: ", self.clocks("")[0].absent)
        self.assertIn("no such option", self.clocks("import sys; print('no such option'); sys.exit(1)")[0].absent)


class Servers(unittest.TestCase):
    ROW = gpu_table.Row("rows/x/1x1 memory 1")

    def fails(self, server, part, limit=20.0):
        with self.assertRaises(gpu_table.Absent) as caught:
            server.seconds(self.ROW, True, limit)
        self.assertIn(part, str(caught.exception))

    def test_hangs(self):
        start = time.monotonic()
        server = fake("import time; time.sleep(600)")
        self.fails(server, "took longer than 1 s", 1)
        self.assertLess(time.monotonic() - start, 60)
        self.assertIsNone(server.process)

    def test_ends(self):
        self.fails(fake("import sys; sys.stdin.readline(); sys.exit(3)"), "ended with exit code 3")

    def test_ended_between(self):
        """A program that ended after its last answer costs one row; that it does not release either is only told."""
        server = fake("import sys; sys.stdin.readline(); print('0.5', flush=True)")
        self.assertEqual(server.seconds(self.ROW, True, 20), 0.5)
        server.process.wait(20)
        with contextlib.redirect_stderr(io.StringIO()) as told:
            server.release()
        self.assertEqual(told.getvalue(), "bench/gpu: fake ended\n")
        self.assertEqual(server.seconds(self.ROW, True, 20), 0.5)
        server.stop()

    def test_last_word(self):
        """After an error, which is a program's last word, the next row gets a new one."""
        with tempfile.TemporaryDirectory() as folder:
            mark = os.path.join(folder, "mark")
            server = fake(f"import os, sys; sys.stdin.readline(); new = not os.path.exists({mark!r}); open({mark!r}, 'w')\n"
                          "print('error: the card failed' if new else '0.5 a note', flush=True); sys.stdin.readline()")
            self.fails(server, "the card failed")
            self.assertEqual(server.seconds(self.ROW, True, 20), 0.5)
            self.assertEqual(server.notes, {self.ROW.name: "a note"})
            self.assertEqual(server.stop(), 0)

    def test_peers_without_torch(self):
        """-S: without site-packages, where PyTorch would be."""
        server = gpu_table.Server("PyTorch", [sys.executable, "-S", str(ROOT / "bench/gpu_peers.py")])
        self.fails(server, "no PyTorch: No module named 'torch'")
        self.assertEqual(server.ask("release", 20), "released")
        self.assertEqual(server.stop(), 0)


if __name__ == "__main__":
    if not PROGRAM.exists() or "has no simulated card" in bench_gpu("--rehearse", "--serve").stderr:
        print("skipped: this build has no bench_gpu with a simulated card")
        sys.exit(77)
    unittest.main()
