#!/usr/bin/env python3
"""athanor data pack, build and info from outside: what they write is read by a reader of the published formats made here from
their descriptions alone, a build that is killed ends like one that was not, and every wrong use is one line and an exit code."""
import fcntl
import gzip
import json
import os
import random
import shutil
import signal
import struct
import subprocess
import sys
import tempfile
import time

ATHANOR = os.environ["ATHANOR"]
FOLDER = tempfile.mkdtemp(prefix="athanor-build-")
failures = 0


def check(held, what):
    global failures
    if not held:
        failures += 1
        print("FAILED:", what, file=sys.stderr)


def athanor(*arguments, code=0, says=None):
    done = subprocess.run([ATHANOR, *arguments], capture_output=True, text=True)
    check(done.returncode == code, f"{arguments} exits {done.returncode}, expected {code}: {done.stderr}")
    if says is not None:
        check(says in done.stderr, f"{arguments} says {done.stderr!r}, expected {says!r}")
        if code != 0:
            last = done.stderr.strip().split("\n")[-1]
            check(last.startswith("athanor: ") and says in last, f"the last line is {last!r}")
    return done


def path(*names):
    return os.path.join(FOLDER, *names)


def byte_names():
    """GPT-2's map from bytes to printable characters."""
    plain = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    other = [b for b in range(256) if b not in plain]
    return {**{b: chr(b) for b in plain}, **{b: chr(256 + i) for i, b in enumerate(other)}}


NAMES = byte_names()


def write_tokenizer(file, end_of_text=True, first=0):
    """A byte-level BPE with a few merges. Ids are shuffled, so that a mistake shows."""
    pieces = [NAMES[b] for b in range(256)] + [NAMES[32] + "t", "he", NAMES[32] + "the", "in", "er"]
    order = list(range(len(pieces)))
    random.Random(7).shuffle(order)
    vocab = {piece: order[i] + 1 + first for i, piece in enumerate(pieces)}
    merges = [f"{NAMES[32]} t", "h e", f"{NAMES[32]}t he", "i n", "e r"]
    added = [{"id": 0, "content": "<|endoftext|>", "special": True, "single_word": False, "lstrip": False, "rstrip": False,
              "normalized": False}]
    document = {
        "version": "1.0", "truncation": None, "padding": None, "added_tokens": added if end_of_text else [],
        "normalizer": None, "pre_tokenizer": {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": True},
        "post_processor": None, "decoder": {"type": "ByteLevel", "add_prefix_space": True, "trim_offsets": True, "use_regex": True},
        "model": {"type": "BPE", "dropout": None, "unk_token": None, "continuing_subword_prefix": None,
                  "end_of_word_suffix": None, "fuse_unk": False, "byte_fallback": False, "vocab": vocab, "merges": merges}}
    if end_of_text:
        vocab["<|endoftext|>"] = 0
    with open(file, "w") as out:
        json.dump(document, out)
    back = {c: b for b, c in NAMES.items()}
    return {id: bytes(back[c] for c in piece) for piece, id in vocab.items() if piece != "<|endoftext|>"}


class Reader:
    """Megatron-LM's indexed dataset (version 1), read with struct from its description."""
    DTYPES = {1: "B", 2: "b", 3: "h", 4: "i", 5: "q", 8: "H"}

    def __init__(self, prefix):
        with open(prefix + ".idx", "rb") as file:
            idx = file.read()
        assert idx[:9] == b"MMIDIDX\x00\x00"
        version, code, sequences, documents = struct.unpack_from("<QBQQ", idx, 9)
        assert version == 1
        self.type = self.DTYPES[code]
        at = 34
        self.lengths = struct.unpack_from(f"<{sequences}i", idx, at)
        at += 4 * sequences
        self.pointers = struct.unpack_from(f"<{sequences}q", idx, at)
        at += 8 * sequences
        self.documents = struct.unpack_from(f"<{documents}q", idx, at)
        assert at + 8 * documents == len(idx)
        assert self.documents[0] == 0 and self.documents[-1] == sequences
        with open(prefix + ".bin", "rb") as file:
            self.bin = file.read()

    def __len__(self):
        return len(self.documents) - 1

    def __getitem__(self, document):
        ids = []
        for s in range(self.documents[document], self.documents[document + 1]):
            ids += struct.unpack_from(f"<{self.lengths[s]}{self.type}", self.bin, self.pointers[s])
        return ids


def snapshot(folder):
    files = {}
    for root, _, names in os.walk(folder):
        for name in names:
            with open(os.path.join(root, name), "rb") as file:
                files[os.path.relpath(os.path.join(root, name), folder)] = file.read()
    return files


def documents(count, seed, longest=3000):
    rng = random.Random(seed)
    words = ["the", "furnace", "in", "other", "Öl", "日本", "\U0001F525", "\n", "  ", "\"x\"", "<|endoftext|>", "1234", "\u0000", "\t"]
    return [" ".join(rng.choices(words, k=rng.randrange(0 if seed else 1, longest))) for _ in range(count)]


def write_shard(file, lines):
    with (gzip.open if file.endswith(".gz") else open)(file, "wb") as out:
        for line in lines:
            out.write((line if isinstance(line, bytes) else json.dumps(line, ensure_ascii=random.random() < 0.5).encode()) + b"\n")


def test_format():
    ids = write_tokenizer(path("tokenizer.json"))
    sets = ["Pile-CC", "CommonCrawl", "Wikipedia (en)", None, "wikipedia_en"]
    expected = {}
    for shard in range(3):
        lines = []
        for i, text in enumerate(documents(60, shard + 1)):
            name = sets[i % len(sets)]
            lines.append({"text": text, "meta": {"pile_set_name": name}} if name else {"text": text})
            if i % 17 == 5:
                lines.append(b'{"text": "broken')
            if text:
                real = {"CommonCrawl": "Pile-CC", None: "text"}.get(name, name)
                expected.setdefault(real, []).append(text)
        write_shard(path(f"in{shard}.jsonl" + (".gz" if shard != 1 else "")), lines)
    build = ["data", "build", "--input", path("in*.jsonl.gz"), "--input", path("in1.jsonl"), "--tokenizer",
             path("tokenizer.json")]
    # The order is that of the arguments: in0, in2, in1.
    for name in expected:
        texts = []
        for shard in (0, 2, 1):
            for i, text in enumerate(documents(60, shard + 1)):
                real = {"CommonCrawl": "Pile-CC", None: "text"}.get(sets[i % len(sets)], sets[i % len(sets)])
                if text and real == name:
                    texts.append(text)
        expected[name] = texts
    done = athanor(*build, "--out", path("corpus"), says="in0.jsonl.gz:7: bad line, skipped: it ends in the middle of a value")
    check("12 bad lines" in done.stdout, done.stdout)
    with open(path("corpus", "manifest.json")) as file:
        manifest = json.load(file)
    check([s["name"] for s in manifest["sets"]] == sorted(expected), manifest["sets"])
    check([s["prefix"] for s in manifest["sets"]] == [
        "Pile-CC_text_document", "Wikipedia_en_text_document", "text_text_document", "wikipedia_en_2_text_document"],
        manifest["sets"])
    for entry in manifest["sets"]:
        reader = Reader(path("corpus", entry["prefix"]))
        texts = expected[entry["name"]]
        check(len(reader) == len(texts) == entry["documents"], f"{entry['name']}: {len(reader)} documents, {len(texts)} expected")
        for i, text in enumerate(texts):
            tokens = reader[i]
            check(tokens[-1] == 0 and 0 not in tokens[:-1], "every document ends with the end of text, and only there")
            check(b"".join(ids[t] for t in tokens[:-1]).decode() == text, f"{entry['name']} document {i}")
        check(entry["text_bytes"] == sum(len(t.encode()) for t in texts), "text bytes")
        check(entry["tokens"] == sum(len(reader[i]) for i in range(len(reader))), "tokens")
        check(reader.type == "H", "a small vocabulary is stored in 16 bits")
    with open(path("tokenizer.json"), "rb") as a, open(path("corpus", "tokenizer.json"), "rb") as b:
        check(a.read() == b.read(), "the tokenizer comes along")
    check(not os.path.exists(path("corpus.partial")), "nothing is left behind")

    # The same files with any number of workers; a corpus that is there already is not made again.
    whole = snapshot(path("corpus"))
    for workers in ("1", "2", "9"):
        athanor(*build, "--out", path("again"), "--workers", workers)
        check(snapshot(path("again")) == whole, f"{workers} workers write the same files")
        shutil.rmtree(path("again"))
    athanor(*build, "--out", path("corpus"), says="was built from these shards before")
    check(snapshot(path("corpus")) == whole, "and stays as it is")
    info = athanor("data", "info", path("corpus"), "--verify").stdout
    check("Wikipedia (en)" in info and "whole        yes" in info, info)
    check("documents" in athanor("data", "info", path("corpus", "Pile-CC_text_document.idx")).stdout, "a token file alone")

    # A large vocabulary is stored in 32 bits; without an end-of-text id none is written.
    ids = write_tokenizer(path("large.json"), end_of_text=False, first=70000)
    athanor("data", "build", "--input", path("in1.jsonl"), "--tokenizer", path("large.json"), "--out", path("large"))
    reader = Reader(path("large", "text_text_document"))
    texts = [t for i, t in enumerate(documents(60, 2)) if i % 5 == 3 and t]
    check(reader.type == "i" and len(reader) == len(texts), "32 bits")
    check(all(b"".join(ids[t] for t in reader[i]).decode() == text for i, text in enumerate(texts)), "32-bit documents")


def test_refusals():
    good = ["--tokenizer", path("tokenizer.json"), "--out", path("refused")]
    write_shard(path("bad.jsonl"), [b"{", b"{", {"text": "x"}, b"{"])
    athanor("data", "build", *good, code=2, says="--input is missing")
    athanor("data", "build", "--input", "x", "--out", "y", code=2, says="--tokenizer is missing")
    athanor("data", "build", "--input", path("no*"), *good, code=1, says="no file matches")
    athanor("data", "build", "--input", path("in1.jsonl"), "--tokenizer", path("none"), "--out", path("x"), code=1, says="none")
    athanor("data", "build", "--input", path("bad.jsonl"), *good, "--max-bad-lines", "2", code=1,
            says="bad.jsonl:4: bad line: it ends in the middle of a value; this is number 3, --max-bad-lines allows 2")
    athanor("data", "build", "--input", path("tokenizer.json"), *good, code=1, says="there is no document with text")
    athanor("data", "build", "--input", path("in1.jsonl"), "--tokenizer", path("tokenizer.json"), "--out", "/proc/corpus", code=1,
            says="/proc/corpus.partial cannot be created")
    with open(path("in0.jsonl.gz"), "rb") as file:
        whole = file.read()
    with open(path("cut.jsonl.gz"), "wb") as file:
        file.write(whole[:-1000])
    athanor("data", "build", "--input", path("cut.jsonl.gz"), *good, code=1, says="cut.jsonl.gz is truncated")
    check(not os.path.exists(path("refused")) and not os.path.exists(path("refused.partial")), "nothing half-written remains")

    # A finished shard is kept when a later one fails; the mended shard makes it another job, which starts anew.
    athanor("data", "build", "--input", path("in0.jsonl.gz"), "--input", path("cut.jsonl.gz"), *good, "--workers", "1", code=1,
            says="cut.jsonl.gz is truncated")
    check(os.path.exists(path("refused.partial", "parts", "000000.json")), "the finished part is kept")
    athanor("data", "build", "--input", path("in0.jsonl.gz"), "--input", path("cut.jsonl.gz"), *good, "--workers", "1", code=1,
            says="cut.jsonl.gz is truncated")
    athanor("data", "build", "--input", path("in0.jsonl.gz"), *good, says="starting anew")
    athanor("data", "build", "--input", path("in1.jsonl"), *good, code=1, says="exists already")
    athanor("data", "info", FOLDER, code=1, says="has no manifest.json")
    athanor("data", "info", path("none"), code=1, says="there is no corpus")
    athanor("data", "info", code=2, says="an argument is missing")
    athanor("data", "pack", "--out", path("x"), code=2, says="--set is missing")
    athanor("data", "pack", "--set", "x", "--out", path("x"), code=2, says="is not NAME=PATTERN")
    athanor("data", "pack", "--set", f"x={path('no*')}", "--out", path("x"), code=1, says="no file matches")
    athanor("data", "pack", "--set", f"x={path('*.jsonl')}", "--out", path("corpus"), code=1, says="exists already")
    athanor("data", "pack", "--set", f"x={path('*.jsonl')}", "--out", path("x"), "--valid", "0.9", code=2, says="valid")


def test_kill():
    """Killed again and again at random moments; what comes out equals an undisturbed build."""
    for shard in range(6):
        write_shard(path(f"kill{shard}.jsonl.gz"), [{"text": t, "meta": {"pile_set_name": f"s{i % 3}"}}
                                                    for i, t in enumerate(documents(250, shard + 10))])
    build = [ATHANOR, "data", "build", "--input", path("kill*.gz"), "--tokenizer", path("tokenizer.json"), "--workers", "2", "--out"]
    start = time.monotonic()
    subprocess.run([*build, path("calm")], check=True, capture_output=True)
    usual = time.monotonic() - start
    calm = snapshot(path("calm"))
    rng, kills, continued = random.Random(), 0, 0
    for round in range(4):
        shutil.rmtree(path("killed"), ignore_errors=True)
        while not os.path.exists(path("killed")):
            process = subprocess.Popen([*build, path("killed")], stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True)
            try:
                _, said = process.communicate(timeout=rng.uniform(0, 1.2 * usual))
                check(process.returncode == 0, f"a continued build fails: {said}")
            except subprocess.TimeoutExpired:
                process.send_signal(signal.SIGKILL)
                _, said = process.communicate()
                kills += 1
            continued += "continuing:" in said
        # It may have been killed between the last rename and the clean-up.
        subprocess.run([*build, path("killed")], check=True, capture_output=True)
        check(snapshot(path("killed")) == calm, "a build that was killed equals one that was not")
        check(not os.path.exists(path("killed.partial")), "nothing is left behind")
    print(f"{kills} kills, {continued} builds continued")

    # Packing, too, is all or nothing.
    pack = [ATHANOR, "data", "pack", "--set", f"t={path('kill*.gz')}", "--shards", "3", "--out", path("packed")]
    for round in range(4):
        process = subprocess.Popen(pack, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        time.sleep(rng.uniform(0, 0.05))
        process.kill()
        process.wait()
        if os.path.exists(path("packed")):
            check(sorted(os.listdir(path("packed"))) == ["test.jsonl.zst", "train", "val.jsonl.zst"], "a packed folder is whole")
            shutil.rmtree(path("packed"))
    subprocess.run(pack, check=True, capture_output=True)
    check(not os.path.exists(path("packed.partial")), "nothing is left behind")


def test_two_at_once():
    os.makedirs(path("busy.partial"))
    build = ["data", "build", "--input", path("in1.jsonl"), "--tokenizer", path("tokenizer.json"), "--out", path("busy")]
    with open(path("busy.partial", "lock"), "w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        athanor(*build, code=1, says="another process is writing")
    athanor(*build)


try:
    for test in (test_format, test_refusals, test_kill, test_two_at_once):
        before, start = failures, time.monotonic()
        test()
        print(f"{test.__name__:40} {'ok' if failures == before else 'FAILED'} ({time.monotonic() - start:.1f} s)")
finally:
    shutil.rmtree(FOLDER, ignore_errors=True)
sys.exit(failures != 0)
