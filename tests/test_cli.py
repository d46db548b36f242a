#!/usr/bin/env python3
"""The command line as a whole: every command helps, refuses wrong usage with code 2 and missing files with code 1, in one line."""
import os
import re
import shutil
import subprocess
import sys
import tempfile
import unittest

ATHANOR = os.environ.get("ATHANOR") or sys.exit(77)
ABSENT = "/nonexistent/place"
# How to name a missing file to each command that reads one; a command that is not here reads none.
MISSING_FILE = {
    "data pack": ["--set", f"A={ABSENT}/*.txt", "--out", "OUT"],
    "data build": ["--input", f"{ABSENT}/*.zst", "--tokenizer", f"{ABSENT}/t.json", "--out", "OUT"],
    "data info": [ABSENT],
    "tokenizer train": ["--input", f"{ABSENT}/*.zst", "--vocab-size", "300", "--out", "OUT"],
    "tokenizer encode": ["--tokenizer", f"{ABSENT}/t.json"],
    "tokenizer decode": ["--tokenizer", f"{ABSENT}/t.json"],
    "tokenizer info": [ABSENT],
    "train": [f"{ABSENT}/run.yaml"],
    "generate": [ABSENT],
    "eval": [ABSENT, "--corpus", ABSENT],
    "inspect": [ABSENT],
    "checkpoint verify": [ABSENT],
    "checkpoint list": [ABSENT],
    "checkpoint prune": [ABSENT],
    "checkpoint reshard": [ABSENT, "OUT"],
    "report": [ABSENT],
}
READS_NO_FILE = {"configs", "doctor"}


def athanor(*arguments):
    with tempfile.TemporaryDirectory() as folder:
        done = subprocess.run([ATHANOR, *[a.replace("OUT", f"{folder}/out") if a == "OUT" else a for a in arguments]],
                              capture_output=True, text=True, stdin=subprocess.DEVNULL, timeout=60)
        left = os.listdir(folder)
    assert not left, f"{arguments} left {left}"
    return done


def commands():
    overview = athanor("--help").stdout
    return [m.group(1) for m in re.finditer(r"^  ([a-z]+(?: [a-z]+)?)  +\S", overview, re.MULTILINE)]


class CommandLine(unittest.TestCase):
    def one_line(self, done, code, *parts):
        self.assertEqual(done.returncode, code, done)
        self.assertEqual(done.stdout, "")
        self.assertRegex(done.stderr, r"\Aathanor: .+\n\Z")
        for part in parts:
            self.assertIn(part, done.stderr)

    def test_overview(self):
        self.assertEqual(athanor("--help").returncode, 0)
        self.assertEqual(athanor("help").stdout, athanor("-h").stdout)
        self.assertRegex(athanor("--version").stdout, r"^athanor \d+\.\d+\.\d+ \(\w+\)\n$")
        self.assertEqual(athanor().returncode, 2)
        self.assertGreaterEqual(len(commands()), 4)
        self.assertEqual(set(commands()) - READS_NO_FILE, set(MISSING_FILE) & set(commands()))

    def test_unknown_commands(self):
        self.one_line(athanor("doctr"), 2, "did you mean 'athanor doctor'?")
        self.one_line(athanor("data", "pak"), 2, "did you mean 'athanor data pack'?")
        for group in {c.split()[0] for c in commands() if " " in c}:
            members = [c for c in commands() if c.startswith(group + " ")]
            self.one_line(athanor(group), 2, ", ".join(members))
            self.one_line(athanor(group, "xyzzy"), 2, ", ".join(members))
            for done in (athanor("help", group), athanor(group, "--help")):
                self.assertEqual((done.returncode, done.stderr), (0, ""))
                self.assertEqual(re.findall(r"^  ([a-z]+ [a-z]+)  ", done.stdout, re.MULTILINE), members)
        self.one_line(athanor("help", "trian"), 2, "did you mean 'athanor train'?")
        self.one_line(athanor("xyzzyxyzzy"), 2, "athanor --help")
        self.one_line(athanor(""), 2)
        self.one_line(athanor("--frobnicate"), 2)

    def test_help_of_each(self):
        for command in commands():
            with self.subTest(command):
                done = athanor(*command.split(), "--help")
                self.assertEqual((done.returncode, done.stderr), (0, ""))
                self.assertIn(f"usage: athanor {command}", done.stdout)
                self.assertRegex(done.stdout, rf"\nexample:\n(?:.*\n)*?.*athanor {command}\b")
                self.assertLessEqual(max(map(len, done.stdout.splitlines())), 200)
                for same in ([*command.split(), "-h"], ["help", *command.split()], ["help", *command.split(), "--help"]):
                    self.assertEqual(athanor(*same).stdout, done.stdout)

    def test_wrong_flags_of_each(self):
        for command in commands():
            with self.subTest(command):
                self.one_line(athanor(*command.split(), "--qqqqqqqqqqqqq"), 2, "--qqqqqqqqqqqqq")
                flags = re.findall(r"^  --([a-z][a-z-]+)(.*)$", athanor(*command.split(), "--help").stdout, re.MULTILINE)
                for flag, rest in flags:
                    for wrong in {flag + "x", flag[:-2] + flag[-1] + flag[-2], flag.replace("-", "_") + "y"} - {flag}:
                        self.one_line(athanor(*command.split(), f"--{wrong}"), 2, f"unknown flag --{wrong}", "did you mean --")
                    if rest.startswith(" N") and not rest.startswith(" NAME"):
                        self.one_line(athanor(*command.split(), f"--{flag}", "many"), 2, flag, "whole number")
                    if rest:
                        self.one_line(athanor(*command.split(), f"--{flag}"), 2, "needs a value")

    def test_missing_file_of_each(self):
        for command in commands():
            if command not in READS_NO_FILE:
                with self.subTest(command):
                    self.one_line(athanor(*command.split(), *MISSING_FILE[command]), 1, ABSENT)

    def test_missing_names(self):
        """What is not there is named as it was given."""
        for absent in ("runs/absent", "absent.json", "a/b/absent.tiktoken", "absent.bin", "absent.idx", ABSENT, "./absent"):
            for command in ("inspect", "data info", "tokenizer info", "generate", "report", "train"):
                done = athanor(*command.split(), absent)
                self.one_line(done, 1, absent)
                for ending in (".idx", ".bin", ".json", "config.yaml", "manifest"):
                    if not absent.endswith((".bin", ".idx", ".json")):
                        self.assertNotIn(absent + ending, done.stderr)
        self.one_line(athanor("inspect", "runs/absent"), 1, "there is no runs/absent,")
        self.one_line(athanor("generate", "runs/absent"), 1, "runs/absent is no run folder: it does not exist")
        self.one_line(athanor("generate", "--checkpoint", "runs/absent"), 1, "runs/absent is no run folder: it does not exist")
        self.one_line(athanor("generate", "--checkpoint", "runs/absent", "runs/absent"), 2, "not both")

    def test_missing_arguments_of_each(self):
        for command in commands():
            if command not in READS_NO_FILE:
                with self.subTest(command):
                    done = athanor(*command.split())
                    self.one_line(done, 2)
                    self.assertRegex(done.stderr, "missing|needed")
        self.one_line(athanor("doctor", "too", "many"), 2, "too many arguments, from 'too' on; usage: athanor doctor")

    def test_unquoted_pattern(self):
        """The shell spreads it into files, the first of which is the flag's."""
        self.one_line(athanor("tokenizer", "train", "--input", __file__, __file__, "--out", "OUT"), 2, "too many arguments",
                      f"'{__file__}'", "in quotes")
        self.assertNotIn("in quotes", athanor("generate", "/tmp").stderr)

    def test_presets(self):
        """An installed program lists its presets and finds them from any folder."""
        with tempfile.TemporaryDirectory() as folder:
            def installed(*arguments):
                return subprocess.run([f"{folder}/bin/athanor", *arguments], capture_output=True, text=True, cwd=folder, timeout=60)

            os.makedirs(f"{folder}/bin")
            shutil.copy(ATHANOR, f"{folder}/bin/athanor")
            self.one_line(installed("configs"), 1, "there are no presets")
            self.one_line(installed("train", "tiny"), 1, "there is no tiny")
            subprocess.run(["cmake", "--install", os.path.dirname(ATHANOR), "--prefix", folder], capture_output=True, check=True)
            done = installed("configs")
            self.assertEqual((done.returncode, done.stderr), (0, ""))
            source = f"{os.environ['ATHANOR_SOURCE']}/configs"
            for kind in ("runs", "models"):
                for name in os.listdir(f"{source}/{kind}"):
                    with open(f"{source}/{kind}/{name}", encoding="utf-8") as file:
                        head = file.readline().lstrip("# ").rstrip()
                    self.assertRegex(done.stdout, rf"(?m)^  {re.escape(name[:-5])} +{re.escape(head)}$")
                    if kind == "runs":
                        for given in (name, name[:-5], f"share/athanor/configs/runs/{name}"):
                            self.one_line(installed("train", given, "data.corpus=absent-corpus"), 1, "absent-corpus")
                    else:
                        self.one_line(installed("train", name[:-5]), 1, f"{name[:-5]} is a model")
            self.assertIn(os.path.realpath(folder) + "/share/athanor/configs/runs", done.stdout)
            self.one_line(installed("train", "tinny"), 1, "did you mean tiny?")
            self.one_line(installed("train", "xyzzy"), 1, "'athanor configs' lists")
            self.one_line(installed("train", "runs/tiny"), 1, "there is no file runs/tiny")
            os.makedirs(f"{folder}/runs/mine")
            self.one_line(installed("train", "runs/mine"), 1, "runs/mine is a folder")
            self.one_line(installed("train", "train.steps=5"), 2, "comes before the settings")
            # A file of one's own comes first, a folder does not.
            os.makedirs(f"{folder}/nano-bytes")
            self.one_line(installed("train", "nano-bytes", "data.corpus=absent-corpus"), 1, "absent-corpus")
            with open(f"{folder}/tiny", "w", encoding="utf-8") as file:
                file.write("seed: x")
            self.one_line(installed("train", "tiny"), 1, "tiny:1: seed is 'x'")

    def test_exit_codes(self):
        """Wrong settings on the command line are wrong usage; the same in a file are failures, with their line."""
        wrong = ["trian.steps=5", "train.steps=x", "train.steps=-1", "train.stepz=5", "optimizer.kind=adam", "optimizer=adamw", "train.steps",
                 "=5", "folder=", "folder=~nobody/x", "train.tokens=5", "data.mixture={a: 0}", "data.mixture={a: 1", "samples.prompts=[a, ~]",
                 "optimizer.beta1=1", "train.steps=0", "x y", "--train.steps=5", "--lr=1"]
        with tempfile.TemporaryDirectory() as folder:
            path = f"{folder}/run.yaml"
            for setting in wrong:
                with self.subTest(setting):
                    with open(path, "w", encoding="utf-8") as file:
                        file.write("folder: x\ndata.corpus: none\ntrain.steps: 10\n")
                    self.one_line(athanor("train", path, setting), 2)
                    name, equals, value = setting.partition("=")
                    if equals and name and value and not setting.startswith("--") and name not in ("train.steps", "folder"):
                        with open(path, "a", encoding="utf-8") as file:
                            file.write(f"{name}: {value}\n")
                        self.one_line(athanor("train", path), 1, path)
        self.one_line(athanor("train", "tiny", "--train.steps=5"), 2, "settings have no dashes: train.steps=5")
        self.one_line(athanor("train", "tiny", "--lr", "1"), 2, "settings have no dashes: optimizer.learning_rate=VALUE")

    def test_home(self):
        """No path that begins with ~ makes a folder of that name."""
        for command in commands():
            for flag in re.findall(r"^  --([a-z][a-z-]+) PATH", athanor(*command.split(), "--help").stdout, re.MULTILINE):
                with self.subTest(command, flag=flag):
                    self.one_line(athanor(*command.split(), f"--{flag}", "~nobody/x"), 2, flag, "write the whole path")
                    self.one_line(athanor(*command.split(), f"--{flag}", ""), 2, flag, "is empty")
        with tempfile.TemporaryDirectory() as folder:
            with open(f"{folder}/a.txt", "w", encoding="utf-8") as file:
                file.write("A text.\n" * 20)
            done = subprocess.run([ATHANOR, "data", "pack", "--set", "A=~/*.txt", "--out", "~/packed"], capture_output=True, text=True,
                                  cwd=folder, env=os.environ | {"HOME": folder}, timeout=60)
            self.assertEqual(done.returncode, 0, done)
            self.assertEqual(sorted(os.listdir(folder)), ["a.txt", "packed"])


if __name__ == "__main__":
    unittest.main()
