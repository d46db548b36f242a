#!/usr/bin/env python3
"""The documents say what is so: the table of keys is current, links lead somewhere, commands and flags in examples exist."""
import os
import pathlib
import re
import shlex
import subprocess
import sys
import unittest

ATHANOR = os.environ.get("ATHANOR") or sys.exit(77)
ROOT = pathlib.Path(os.environ["ATHANOR_SOURCE"])
DOCUMENTS = [ROOT / "README.md", ROOT / "ARCHITECTURE.md", *sorted((ROOT / "docs").glob("*.md")), *sorted((ROOT / "kernels").rglob("*.md"))]


def output(*arguments):
    return subprocess.run([ATHANOR, *arguments], capture_output=True, text=True, check=True).stdout


def overview():
    return {m.group(1): m.group(2) for m in re.finditer(r"^  ([a-z]+(?: [a-z]+)?)  +(\S.*)$", output("--help"), re.MULTILINE)}


class Documents(unittest.TestCase):
    def test_configuration_is_current(self):
        self.assertEqual((ROOT / "docs/configuration.md").read_text(), output("train", "--keys"),
                         "run: athanor train --keys > docs/configuration.md")

    def test_links(self):
        for document in DOCUMENTS:
            for target in re.findall(r"\]\(([^)#]+)(?:#[^)]*)?\)", document.read_text()):
                if "://" not in target:
                    self.assertTrue((document.parent / target).exists(), f"{document.name}: {target}")

    def test_paths(self):
        """Files of the project named in code spans exist."""
        for document in DOCUMENTS:
            for span in re.findall(r"`([a-z_.]+/[A-Za-z0-9_./{},-]+)`", document.read_text()):
                if span.split("/")[0] in ("core", "kernels", "data", "parallel", "train", "launch", "tests", "bench", "configs",
                                          "docs", ".ci") and "NAME" not in span:
                    self.assertTrue((ROOT / span).exists(), f"{document.name}: {span}")

    def test_names(self):
        """Files, functions, types and options that are named in code spans are in the tree; capitals stand for others."""
        files = [path for folder in ROOT.iterdir() if folder.is_dir() and not re.match(r"build|\.git$|quickstart|runs|shared", folder.name)
                 for path in folder.rglob("*") if path.is_file()]
        files += [path for path in ROOT.iterdir() if path.is_file()]
        known = {path.name for path in files}
        for path in files:
            if path.suffix in (".c", ".h", ".cu", ".cpp", ".py", ".yaml", ".txt", ".json", "", ".sh") and path.stat().st_size < 1 << 20:
                known.update(re.findall(r"[A-Za-z_]\w+", path.read_text(errors="replace")))
        for document in DOCUMENTS:
            text = re.sub(r"^```.*?^```", "", document.read_text(), flags=re.MULTILINE | re.DOTALL)
            for span in re.findall(r"`([^`\n*]+)`", text):
                for name in [] if "..." in span or span == "include: other.yaml" else re.findall(r"[A-Za-z]\w+(?:\.(?:c|h|cu|py|md|sh|txt|yaml)\b)?", span.replace("-D", "")):
                    if re.search(r"[._]", name) and not re.match(r"[A-Z]+\b", name) and "NAME" not in name:
                        with self.subTest(document=document.name, span=span):
                            self.assertTrue(name in known, name)

    def test_command_table(self):
        rows = dict(re.findall(r"^\| `athanor ([a-z]+(?: [a-z]+)?)` \| (.*) \|$", (ROOT / "README.md").read_text(), re.MULTILINE))
        self.assertEqual(rows, overview())

    def test_examples(self):
        known = overview()
        for document in DOCUMENTS:
            for block in re.findall(r"^```sh\n(.*?)^```", document.read_text(), re.MULTILINE | re.DOTALL):
                for line in block.replace("\\\n", " ").splitlines():
                    words = shlex.split(line, comments=True)
                    words = words[words.index("athanor") + 1:] if "athanor" in words else []
                    if not words or words[0].startswith("-"):
                        continue
                    command = " ".join(words[:2]) if " ".join(words[:2]) in known else words[0]
                    self.assertIn(command, known, line)
                    flags = output(*command.split(), "--help")
                    for word in words:
                        if word.startswith("--") and len(word) > 2:
                            self.assertRegex(flags, rf"(?m)^  {re.escape(word.split('=')[0])}\b", line)

    def test_configurations(self):
        """Every configuration that is shipped has only known keys."""
        keys = set(re.findall(r"^\| `([a-z0-9_.]+)` \|", (ROOT / "docs/configuration.md").read_text(), re.MULTILINE))
        for path in ROOT.glob("configs/*/*.yaml"):
            section = ""
            for line in path.read_text().splitlines():
                match = re.match(r"^( *)([a-z0-9_]+):(.*)$", line)
                if match and match.group(2) != "include":
                    indent, name, value = match.groups()
                    if not indent:
                        section = name
                        if value.split("#")[0].strip():
                            self.assertIn(name, keys, path.name)
                    elif len(indent) == 2:
                        self.assertIn(f"{section}.{name}", keys, path.name)

    def test_runs(self):
        """Configurations of runs find what launch/quickstart builds; tests/test_walk.py runs them."""
        quickstart = (ROOT / "launch/quickstart").read_text()
        for path in ROOT.glob("configs/runs/*.yaml"):
            for name in re.findall(r"(?:corpus|validation): quickstart/(\S+)", path.read_text()):
                self.assertIn(f"--out $home/{name}\n", quickstart, path.name)


if __name__ == "__main__":
    unittest.main()
