#!/usr/bin/env python3
"""athanor report: the page is well formed, escapes what models write, keeps every spike, and takes odd records."""
import json
import math
import os
import pathlib
import re
import subprocess
import sys
import tempfile
import unittest
import xml.etree.ElementTree as tree

ATHANOR = os.environ.get("ATHANOR") or sys.exit(77)


def record(step, **fields):
    base = {"kind": "train", "step": step, "tokens": step * 512, "loss": 2 + 6 * math.exp(-step / 50), "lr": 3e-4,
            "grad_norm": 0.5, "tokens_per_second": 1000.0, "step_seconds": 0.5, "data_wait": 0.01, "comm_wait": 0.05,
            "skipped": 0}
    return base | fields


def valid(step, name, loss):
    return {"kind": "valid", "step": step, "set": name, "loss": loss, "perplexity": math.exp(loss), "bits_per_byte": loss / 3}


class Report(unittest.TestCase):
    def setUp(self):
        self.scratch = tempfile.TemporaryDirectory()
        self.run_folder = pathlib.Path(self.scratch.name) / "a <run> & its folder"
        self.run_folder.mkdir()

    def tearDown(self):
        self.scratch.cleanup()

    def write(self, name, lines):
        text = "".join((line if isinstance(line, str) else json.dumps(line)) + "\n" for line in lines)
        (self.run_folder / name).write_bytes(text.encode("utf-8", "surrogateescape"))

    def report(self, *flags, expect=0):
        done = subprocess.run([ATHANOR, "report", str(self.run_folder), *flags], capture_output=True, text=True)
        self.assertEqual(done.returncode, expect, done.stderr)
        return done

    def page(self):
        """The page's text and its parsed tree: it must be well-formed XML and refer to nothing outside itself."""
        self.report()
        text = (self.run_folder / "report.html").read_text(encoding="utf-8")
        self.assertTrue(text.startswith("<!DOCTYPE html>\n"))
        root = tree.fromstring(text.removeprefix("<!DOCTYPE html>\n"))
        self.assertNotIn("<script", text)
        self.assertNotRegex(text, r"(src|href)=\"(?!data:)")
        self.assertNotRegex(text, r"https?:")
        identifiers = re.findall(r' id="([^"]*)"', text)
        self.assertEqual(len(identifiers), len(set(identifiers)))
        self.assertNotRegex(text, r"\b(nan|inf)\b")
        return text, root

    def test_whole_run(self):
        self.write("metrics.jsonl", [record(s) for s in range(1, 61)] + [valid(60, "Perl docs", 3.1), valid(60, "Git", 2.9),
                                                                        valid(60, "all", 3.0)])
        self.write("samples.jsonl", [{"step": s, "prompt": "Once", "text": f"Once upon {s}"} for s in (0, 30, 60)])
        self.write("run.json", [{"version": "1", "commit": "abc", "host": ["h1", "h2"], "ranks": 2, "threads": 1, "family": "gpt2",
                                 "parameters": 1000000, "started": "2026-01-01T00:00:00Z", "memory_planned": 3000,
                                 "memory_plan": [{"name": "weights", "bytes": 2000}, {"name": "rest", "bytes": 1000}],
                                 "memory_peak": 2900}])
        self.write("config.yaml", ["model:", "  width: 64   # wide", "  name: \"a<b\""])
        summary = self.report().stdout
        self.assertIn("sample before, step 0:\n    Once upon 0\nsample after, step 60:\n    Once upon 60\nsteps            60,", summary)
        self.assertIn("held-out loss    3.000 before, 3.000 after (1.000 bits per byte)\n", summary)
        text, root = self.page()
        for part in ("Perl docs", "all sets", "3.000", "1.00M parameters", "2 ranks", "h1, h2", "Once", " upon 60",
                     "2.83 KiB", "3.3% below", "a&lt;b", "<span class=\"word\">width</span>", "# wide</span>"):
            self.assertIn(part, text)
        self.assertGreater(len(root.findall(".//svg")), 8)

    def test_hostile_texts(self):
        nasty = "</div><script>alert(1)</script><img src=x onerror=alert(1)> \u202egnp.exe \x00\x1b[31m \ufffe &amp; ' \" \U0001f600"
        self.write("metrics.jsonl", [record(1), valid(1, nasty, 3.0)])
        self.write("samples.jsonl", [{"step": 1, "prompt": nasty, "text": nasty + "]]>" + "x" * 100000}])
        self.write("run.json", [{"family": nasty, "version": nasty, "host": [nasty], "started": nasty,
                                 "memory_plan": [{"name": nasty, "bytes": 10}]}])
        self.write("config.yaml", [nasty + ": " + nasty + " # " + nasty, "raw \udcff byte"])
        self.assertNotRegex(self.report().stdout, r"[\x00-\x09\x0b-\x1f\x7f-\x9f]")
        text, root = self.page()
        self.assertNotIn("<img", text)
        self.assertNotIn("\u202e", text)
        self.assertNotIn("\x1b", text)
        self.assertLess(len(text), 200000)

    def test_odd_records(self):
        self.write("metrics.jsonl", [
            record(1), "", "not json", "[1, 2]", '{"kind": "train"', {"kind": 3, "step": 1}, {"step": 2}, {"kind": "train"},
            record(2, loss=None), record(3, loss="high", lr=[], tokens={}), record(4, loss=1e300, grad_norm=-1),
            record(5, loss=-1e-320), record(1e200), record(6, skipped=2), {"kind": "valid", "step": 6, "set": 5, "loss": 1},
            {"kind": "valid", "step": 6, "set": "A"}, {"kind": "future", "step": 7}, valid(6, "", 2.0), "\udcff\udcfe",
            "x" * 5000000, json.dumps(record(7))[:-5]])
        self.write("samples.jsonl", [{"step": 1}, {"text": 5, "step": 2}, {"step": 3, "text": "ok"}])
        self.write("run.json", ["[]"])
        text, _ = self.page()
        self.assertIn("could not be read", text)
        self.assertIn("metrics.jsonl:3", text)
        self.assertIn("2 steps were skipped", text)

    def test_one_record(self):
        self.write("metrics.jsonl", [{"kind": "valid", "step": 0, "set": "all", "loss": 5.5}])
        text, _ = self.page()
        self.assertIn("5.500", text)

    def test_resumes_replace_what_they_repeat(self):
        lines = [record(s, loss=3.0) for s in range(1, 101)]
        lines += [{"kind": "resume", "step": 50}] + [record(s, loss=1.0) for s in range(51, 61)]
        self.write("metrics.jsonl", lines)
        text, root = self.page()
        self.assertIn("resumed at step 50", text)
        self.assertIn(">60</b>", text)

    def test_long_run_keeps_its_spike(self):
        count = 100000
        with open(self.run_folder / "metrics.jsonl", "w") as out:
            for s in range(1, count + 1):
                norm = 900.0 if s == 77777 else 0.5 + 0.1 * (s % 3)
                loss = 0.001 if s == 33333 else 2.0 + (s % 5) * 0.01
                out.write(f'{{"kind":"train","step":{s},"loss":{loss},"grad_norm":{norm},"step_seconds":0.1}}\n')
        text, root = self.page()
        self.assertLess(len(text), 400000)
        drawing = next(svg for svg in root.iter("svg") if svg.get("aria-labelledby") == "norm-title")
        band = next(path for path in drawing.iter("path") if "faint" in path.get("class"))
        heights = [float(y) for y in re.findall(r"[ML][0-9.]+ (-?[0-9.]+)", band.get("d"))]
        self.assertLess(min(heights), 30)  # the spike leaves the drawing at the top
        self.assertLess(len(heights), 2100)

    def test_many_sets_and_samples(self):
        self.write("metrics.jsonl", [valid(s, f"set {k}", 3 + k / 100) for s in range(0, 100, 10) for k in range(80)])
        self.write("samples.jsonl", [{"step": s, "prompt": f"p{k}", "text": f"p{k} at {s}."} for s in range(200) for k in range(3)])
        text, _ = self.page()
        self.assertIn("Only the first 64", text)
        self.assertIn(" at 0.", text)
        self.assertIn(" at 199.", text)

    def test_bands_are_whole(self):
        """Whatever the spikes, every step of a band lies inside the drawing, or a triangle at the edge carries its value."""
        for loss, norm in (({}, {}), ({30: 12.5, 41: 0.3}, {20: 9.0}), ({30: 900.0, 41: 0.001}, {20: 1e6, 50: 1e-7}), ({59: 31.0}, {3: 0.0})):
            steps = [record(s) | ({"loss": loss[s]} if s in loss else {}) | ({"grad_norm": norm[s]} if s in norm else {}) for s in range(1, 61)]
            self.write("metrics.jsonl", steps)
            text, _ = self.page()
            for chart, wild in (("loss", loss), ("loss-narrow", loss), ("norm", norm)):
                drawing = re.search(rf'<clipPath id="{chart}"><rect x="\S+" y="(\S+)" width="\S+" height="(\S+)"/>(.*?)</svg>', text, re.S)
                top, height, body = float(drawing[1]), float(drawing[2]), drawing[3]
                band = re.search(r'faint" clip-path="[^"]*" d="([^"]*)"', body)[1]
                heights = [float(y) for pair in re.findall(r"[ML]\S+? (\S+?)(?:V(\S+?))?(?=[ML]|$)", band) for y in pair if y]
                out = sum(not top + 3 <= y <= top + height + 0.6 for y in heights)
                told = [float(v) for v in re.findall(r"<title>step \d+: (\S+), beyond the drawing", body)]
                self.assertLessEqual(out, 2 * len(told), f"{chart}: {wild}")
                self.assertTrue(set(told) <= set(wild.values()), f"{chart}: {told}")
                self.assertFalse(chart != "norm" and told and max(wild.values()) < 13, f"{chart}: {told} would fit")
                self.assertEqual(chart != "norm" and 900.0 in told, wild == {30: 900.0, 41: 0.001}, f"{chart}: {told} of {wild}")

    def test_colours(self):
        """No two parts of the memory picture, and no two sets, look alike."""
        for count in (1, 7, 8, 9, 30):
            self.write("metrics.jsonl", [record(1)] + [valid(1, f"set_{i}", 3 + i) for i in range(count)])
            self.write("run.json", [{"memory_plan": [{"name": f"part {i}", "bytes": 1000 + i} for i in range(count)]}])
            text, _ = self.page()
            parts = re.findall(r'<rect class="(b\d)"[^>]*><title>', text)
            self.assertEqual(len(parts), min(count, 8))
            self.assertEqual(len(set(parts)), len(parts))
            self.assertEqual(re.findall(r'<i class="key (b\d)">', text), parts)
            for i in range(count):
                self.assertRegex(text, rf"part {i}\b")
            keys = re.findall(r'<svg class="key"[^>]*><path class="([^"]*)"', text)
            self.assertEqual(len(set(keys)), count)
            drawn = re.findall(r'<path class="(s\d d\d)" clip-path="url\(#sets\)"', text)
            self.assertEqual(drawn, keys)

    def test_names_stay_whole(self):
        """On a narrow screen a set's name is broken between its words only."""
        self.write("metrics.jsonl", [record(1), valid(1, "Wiki_pedia/en <b>", 3.0), valid(1, "YoutubeSubtitles", 3.0)])
        text, _ = self.page()
        self.assertIn("Wiki_<wbr/>pedia/<wbr/>en &lt;b&gt;</td>", text)
        self.assertIn("YoutubeSubtitles</td>", text)
        rules = re.findall(r"([^{}]*)\{([^{}]*)\}", re.search(r"<style>(.*)</style>", text, re.S)[1])
        for selector, rule in rules:
            if re.search(r"\bt[dh]\b", selector):
                self.assertNotRegex(rule, "anywhere|break-all")

    def test_out_flag_and_errors(self):
        out = pathlib.Path(self.scratch.name) / "other.html"
        done = self.report(expect=1)
        self.assertIn("has no metrics.jsonl", done.stderr)
        self.assertEqual(done.stderr.count("\n"), 1)
        self.write("metrics.jsonl", [])
        self.assertIn("no record", self.report(expect=1).stderr)
        self.write("metrics.jsonl", [record(1)])
        self.report("--out", str(out))
        self.assertTrue(out.exists())
        self.assertFalse((self.run_folder / "report.html").exists())
        self.report("--out", str(pathlib.Path(self.scratch.name) / "absent" / "r.html"), expect=1)
        done = subprocess.run([ATHANOR, "report", str(out)], capture_output=True, text=True)
        self.assertEqual(done.returncode, 1)
        self.assertIn("is no folder", done.stderr)


if __name__ == "__main__":
    unittest.main(verbosity=1)
