#!/usr/bin/env python3
"""A newcomer's walk: every command of README.md, of each --help, of the heads of configs/ and of docs/ runs, in order, as written.

It walks in fresh copies of the tree, as whoever runs the tests, with no settings for MPI from the outside and one slot for ranks: a line
for several ranks must say itself what root and a machine with few cores need. Only launch/quickstart's build and the length of its
texts and of trainings are made small. What does not run here stands in NOT_HERE, with why.
"""
import os
import pathlib
import re
import shlex
import shutil
import subprocess
import sys
import tempfile
import unittest

ATHANOR = os.environ.get("ATHANOR") or sys.exit(77)
ROOT = pathlib.Path(os.environ["ATHANOR_SOURCE"])
BUILD = pathlib.Path(os.environ["ATHANOR_BUILD"])
DOCUMENTS = [ROOT / "README.md", ROOT / "ARCHITECTURE.md", *sorted((ROOT / "docs").glob("*.md"))]

NOT_HERE = {
    r"launch/test": "runs all tests, this one too",
    r"cmake --preset .*": "minutes; every test runs in a build that it made",
    r"bench/gpu": "needs a card; tests/test_bench_gpu.py rehearses it",
    r"bench/kernel_costs .*": "needs a build for cards; .ci/run does it",
    r"bench/card_\w+ .*|debootstrap .*|cp -r build-card .*|mount --bind .*|chroot .*": "needs nvcc, a card or root's rights; tests/test_bench_card.py rehearses it",
    r"athanor train .*device=cuda.*|mpirun -n 8 .*|athanor train my\.yaml .*": "needs a card; tests/test_train_cards.py does it on the simulated one",
    r"athanor train \S+ device=simulated": "minutes; tests/test_train_cards.py does it",
    r"tests/golden/\S+ .*": "makes what the repository holds",
    r"athanor checkpoint \w+ .*step-00001000.*|athanor checkpoint reshard \S+ TO --files N": "of a step, and a folder, of one's own; tests/test_checkpoint_commands.py does it",
    r"kill -USR1 PID_OF_MPIRUN": "of a run of one's own; tests/test_stops.py does it",
    r"mpirun athanor train my\.yaml & .*|trap .*|wait .*": "a batch script of Slurm, which is not here",
}
COMMANDS = re.compile(r"(athanor|build/athanor|mpirun|cmake|ctest|launch/(quickstart|test)|bench/(gpu|nano|kernel_costs)|tests/planted/try|\.ci/run|tests/golden/\S+\.py)( |$)")


def blocks(document):
    """The commands of a document's examples, each with the lines that it goes on in."""
    for block in re.findall(r"^```sh\n(.*?)^```", document.read_text(), re.MULTILINE | re.DOTALL):
        yield from filter(None, (re.sub(r"\s+# .*|^#.*", "", line).strip() for line in block.replace("\\\n", " ").splitlines()))


def spans(document):
    """The commands that stand in a document's sentences, where a name alone is no command; RUN and CONFIG.yaml are those of the walk."""
    text = re.sub(r"^```.*?^```", "", document.read_text(), flags=re.MULTILINE | re.DOTALL)
    for span in re.findall(r"`([^`\n]+)`", text):
        if COMMANDS.match(span) and " " in span and not re.fullmatch(r"athanor( [a-z]+){1,2}", span):
            yield re.sub(r"\bRUN\b", "runs/mine", re.sub(r"\bCONFIG\.yaml\b", "configs/runs/tiny.yaml", span))


def head(configuration):
    """The commands in the comment that a configuration begins with."""
    comment = re.match(r"(?:#.*\n)*", configuration.read_text()).group()
    return [line for line in re.findall(r"^#   (\S.*)$", comment, re.MULTILINE) if COMMANDS.match(line)]


def helps():
    """Each command's examples."""
    overview = subprocess.run([ATHANOR, "--help"], capture_output=True, text=True, check=True).stdout
    for name in re.findall(r"^  ([a-z]+(?: [a-z]+)?)  +\S.*$", overview, re.MULTILINE):
        text = subprocess.run([ATHANOR, *name.split(), "--help"], capture_output=True, text=True, check=True).stdout
        yield name, [line.strip() for line in text.split("\nexample:\n")[1].splitlines() if line.strip() and not line.lstrip().startswith("#")]


def write(path, text, mode=0o644):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)
    path.chmod(mode)
    return path


class Walk(unittest.TestCase):
    maxDiff = None

    @classmethod
    def setUpClass(cls):
        cls.folder = pathlib.Path(tempfile.mkdtemp(prefix="athanor-walk-"))
        (cls.folder / "home").mkdir()
        hosts = write(cls.folder / "one-slot", "localhost slots=1\n")
        # launch/quickstart builds nothing: the build is here already. It installs nothing either.
        write(cls.folder / "bin/cmake", f'#!/bin/sh\ncase $1 in --install) exec {shutil.which("cmake")} "$@" ;; esac\necho stub\n', 0o755)
        write(cls.folder / "bin/nvidia-smi", "#!/bin/sh\nexit 1\n", 0o755)
        write(cls.folder / "bin/dpkg-query", "#!/bin/sh\necho installed\n", 0o755)
        cls.environment = {name: value for name, value in os.environ.items() if not name.startswith(("OMPI_", "PMIX_"))}
        cls.environment.update(HOME=str(cls.folder / "home"), OMPI_MCA_orte_default_hostfile=str(hosts), LC_ALL="C",
                               PATH=f"{cls.folder}/home/.local/bin:{cls.folder}/bin:{os.environ['PATH']}")
        if os.environ.get("ATHANOR_SANITIZE"):  # MPI unloads plugins that still own memory
            cls.environment["ASAN_OPTIONS"] = "detect_leaks=0:abort_on_error=1"
        cls.steps = 0
        cls.told = cls.quickstart()

    @classmethod
    def tearDownClass(cls):
        shutil.rmtree(cls.folder)

    @classmethod
    def run_line(cls, line, tree):
        done = subprocess.run(["bash", "-c", line], cwd=tree, env=cls.environment, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE,
                              stderr=subprocess.STDOUT, text=True, errors="replace", timeout=600)
        assert done.returncode == 0, f"{line}: exit code {done.returncode}\n{done.stdout[-3000:]}"
        return done.stdout

    @classmethod
    def quickstart(cls):
        """The tree after launch/quickstart, with small texts and a short training. Returns what it said."""
        cls.tree = cls.folder / "after-quickstart"
        made = re.compile(r"build.*|quickstart|runs|corpora|packed|shared|\.git")
        shutil.copytree(ROOT, cls.tree, ignore=lambda folder, names: [name for name in names if folder == str(ROOT) and made.fullmatch(name)])
        (cls.tree / "build").symlink_to(BUILD)
        sources = sorted(path for folder in ("core", "data", "train", "launch") for path in (ROOT / folder).rglob("*.[ch]"))
        for number, name in enumerate(("perl", "git", "vim", "python")):
            for path in sources[number::4]:
                write(cls.tree / "quickstart/texts" / name / (path.name + ".txt"), path.read_text())
        for number, path in enumerate(sources[:60]):  # whoever comes has texts
            write(cls.tree / ("notes/old" if number % 2 else "books") / (path.name + (".md" if number % 2 else ".txt")), path.read_text())
        configuration = cls.tree / "configs/runs/quickstart.yaml"
        text = configuration.read_text()
        for key, value in (("steps", 8), ("warmup_steps", 2), ("samples", 4), ("tokens", 10)):
            text, count = re.subn(rf"(?m)^(  {key}:) \d+", rf"\1 {value}", text)
            assert count == 1, key
        text = re.sub(r"(?m)^(  every:) \d+", r"\1 4", text)
        configuration.write_text(text)
        return cls.run_line("launch/quickstart", cls.tree)

    def fresh(self, name):
        tree = self.folder / name
        shutil.copytree(self.tree, tree, symlinks=True)
        return tree

    def walk(self, lines, tree):
        for line in lines:
            if any(re.fullmatch(pattern, line) for pattern in NOT_HERE):
                continue
            if re.search(r"\bathanor train \S+\.yaml", line):  # each goes on a little further
                type(self).steps += 2
                line = re.sub(r" train\.steps=\d+", "", line)
                line += f" train.steps={self.steps} schedule.warmup_steps=1 validation.samples=2"
            with self.subTest(line=line):
                self.run_line(line, tree)

    def test_quickstart(self):
        """It ends as README.md shows, but for numbers, and its last line works."""
        shown = re.search(r"^\.\.\.\nsteps.*?^```", (ROOT / "README.md").read_text(), re.MULTILINE | re.DOTALL).group()
        shown = [line for line in shown.splitlines() if line not in ("...", "```", "")]
        masked = lambda text: re.sub(r"[\d.]+[kM]?|sec|min|\b[smh]\b", "", text).split()  # noqa: E731
        for line in shown:
            self.assertTrue(any(masked(line) == masked(said) for said in self.told.splitlines()), f"{line}\nis not in\n{self.told}")
        self.walk(re.findall(r"^    (build/athanor .*)$", self.told, re.MULTILINE), self.fresh("quickstart-end"))

    def test_help(self):
        """Every command's examples, one command after the other, with what launch/quickstart made."""
        tree = self.fresh("help")
        self.run_line("cmake --install build --prefix ~/.local", tree)
        for name, lines in helps():
            self.assertTrue(lines, f"{name} --help has no example")
            self.walk(lines, tree)

    def test_readme_and_configurations(self):
        """README.md's examples; after them the heads of configurations, which use what README.md made."""
        tree = self.fresh("readme")
        documents = [line for document in DOCUMENTS for line in spans(document)]
        self.walk([line for line in documents if line.startswith("cmake --install")], tree)
        self.walk([line for line in blocks(ROOT / "README.md") if line != "launch/quickstart"], tree)
        for configuration in sorted(ROOT.glob("configs/*/*.yaml")):
            self.walk(head(configuration), tree)
        self.walk([line for line in documents if not line.startswith(("cmake --install", "launch/quickstart"))], tree)
        for document in DOCUMENTS[1:]:
            self.walk(blocks(document), tree)

    def test_not_here_is_needed(self):
        """What is left out stands somewhere."""
        lines = [*(line for document in DOCUMENTS for line in [*blocks(document), *spans(document)]), *(line for _, lines in helps() for line in lines),
                 *(line for path in ROOT.glob("configs/*/*.yaml") for line in head(path))]
        for pattern, why in NOT_HERE.items():
            self.assertTrue(any(re.fullmatch(pattern, line) for line in lines), f"{pattern} ({why}) is nowhere")

    def test_no_card(self):
        """Where bench/gpu lacks something it says in one line what, before it compiles; --build needs no card."""
        if pathlib.Path("/dev/nvidia0").exists():
            self.skipTest("there is a card")
        card, no_nvcc = self.folder / "card", self.folder / "no-nvcc"
        write(card / "nvidia-smi", "#!/bin/sh\necho 'GPU 0: NVIDIA of some kind'\n", 0o755)
        write(no_nvcc / "nvcc", "#!/bin/sh\nexit 1\n", 0o755)
        for path, flag, part in ((no_nvcc, "", "no NVIDIA card here; --build"), (f"{card}:{no_nvcc}", "", "no nvcc here"),
                                 (no_nvcc, "--build", "no nvcc here"), (card, "--biuld", "unknown option --biuld")):
            told = self.run_line(f"PATH={path}:$PATH; timeout 60 bench/gpu {flag}; test $? = 1", self.tree)
            self.assertRegex(told, rf"^bench/gpu: .*{re.escape(part)}.*\n$")
        self.assertFalse((self.tree / "build-bench-gpu").exists())

    def test_build_that_fails(self):
        """The quickstart stops at a build that fails, and says why."""
        write(self.folder / "broken/cmake", "#!/bin/sh\necho 'x.c:1: error: no such thing'\nexit 1\n", 0o755)
        told = self.run_line(f"PATH={self.folder}/broken:$PATH; launch/quickstart; test $? = 1", self.fresh("broken-build"))
        self.assertTrue(told.endswith("x.c:1: error: no such thing\nlaunch/quickstart: the build failed; quickstart/build.log tells all\n"), told)

    def test_mistaken_scripts(self):
        """What a script cannot do is one line that names the script, with exit code 2, at once."""
        for line in ("launch/test --preset", "launch/test --preset relaese", "launch/quickstart now", "tests/planted/try --some",
                     "tests/planted/try --some x", "tests/planted/try --all", "tests/planted/try no_such_mistake"):
            told = self.run_line(f"timeout 10 {line}; test $? = 2", self.tree)
            self.assertRegex(told, rf"^{line.split()[0]}: .*\n$")

    def test_scripts_explain_themselves(self):
        for script in ("launch/quickstart", "launch/test", "bench/gpu", "bench/kernel_costs", "tests/planted/try"):
            self.assertIn(script, self.run_line(f"{script} --help", self.tree), script)


if __name__ == "__main__":
    unittest.main(verbosity=2)
