#!/usr/bin/env python3
"""Makes the seeds of fuzz_shards and fuzz_idx: tests/fuzz/corpus/{shards,idx}/."""
import gzip
import json
import os
import struct
import subprocess

HERE = os.path.dirname(os.path.abspath(__file__))
LINES = {
    "plain": [{"text": "one \u20ac \U0001F600", "meta": {"pile_set_name": "Pile-CC"}}, {"text": ["a", "b"]}, "bare"],
    "fields": [{"id": -1.5e3, "ok": [True, False, None, {}], "meta": {"x": {"y": 1}, "pile_set_name": "USPTO"}, "text": ""}],
    "escapes": [b'{"text": "\\ud83d\\ude00 \\u00e9\\n\\"\\\\\\/", "\\u0074ext2": 0}', b"\xef\xbb\xbf", b""],
    "bad": [b'{"text": "\\ud83d"}', b'{"text": 1}', b"{", b'"\xff"', b'{"text": "x", "text": "y"}', b"[[[[", b"1e+"],
}


def put(kind, name, data):
    os.makedirs(os.path.join(HERE, "corpus", kind), exist_ok=True)
    with open(os.path.join(HERE, "corpus", kind, name), "wb") as file:
        file.write(data)


for name, lines in LINES.items():
    text = b"".join((line if isinstance(line, bytes) else json.dumps(line, ensure_ascii=False).encode()) + b"\n" for line in lines)
    put("shards", name, b"\x02\x05" + text)
    put("shards", name + "_zst", b"\xff\xff" + subprocess.run(["zstd", "-q", "-c"], input=text, capture_output=True).stdout)
    put("shards", name + "_gz", b"\x10\x40" + gzip.compress(text, mtime=0))
half = subprocess.run(["zstd", "-q", "-c"], input=b'{"text": "in two', capture_output=True).stdout
rest = subprocess.run(["zstd", "-q", "-c"], input=b' frames"}\n', capture_output=True).stdout
put("shards", "frames_zst", b"\x03\x00" + half + rest)


def index(dtype, lengths, indices, tokens):
    width = {8: 2, 4: 4}.get(dtype, 2)
    offsets, at = [], 0
    for length in lengths:
        offsets.append(at)
        at += length * width
    return struct.pack("<H", tokens * width) + b"MMIDIDX\0\0" + struct.pack("<QBQQ", 1, dtype, len(lengths), len(indices)) + \
        struct.pack(f"<{len(lengths)}i{len(lengths)}q{len(indices)}q", *lengths, *offsets, *indices)


put("idx", "empty", index(8, [], [0], 0))
put("idx", "documents", index(8, [3, 1, 4], [0, 1, 2, 3], 8))
put("idx", "sequences", index(4, [3, 1, 4, 0, 2], [0, 2, 2, 5], 10))
put("idx", "float", index(6, [3], [0, 1], 3))
put("idx", "short", index(8, [3, 1, 4], [0, 1, 2, 3], 7))
put("idx", "old", b"\0\0TNTIDX\0\0" + bytes(40))
