#!/usr/bin/env python3
"""Other tokenizer libraries on one thread, measured as bench_tokenizer measures ours.

    python3 bench/peer_tokenizer.py [--repeats 3] TOKENIZER TEXT ...      (needs tokenizers for .json, tiktoken for .tiktoken)

Each text is cut into documents of 16 KiB (to the next line end). Rates are medians over the repeats of 10^6 bytes of text per
second of processor time. Documents are decoded from bytes before the clock starts.
"""
import argparse
import os
import statistics
import time

os.environ["RAYON_NUM_THREADS"] = "1"
os.environ["TOKENIZERS_PARALLELISM"] = "false"
GPT2 = r"""'(?:[sdmt]|ll|ve|re)| ?\p{L}++| ?\p{N}++| ?[^\s\p{L}\p{N}]++|\s++$|\s+(?!\S)|\s"""


def load(path):
    """The name of the library, and functions that encode one document and many."""
    if path.endswith(".json"):
        import tokenizers
        tokenizer = tokenizers.Tokenizer.from_file(path)
        tokenizer.encode_special_tokens = True
        fast = getattr(tokenizer, "encode_batch_fast", tokenizer.encode_batch)
        return (f"tokenizers {tokenizers.__version__}",
                lambda documents: sum(len(e.ids) for e in fast(documents, add_special_tokens=False)))
    import tiktoken
    import tiktoken.load
    ranks = tiktoken.load.load_tiktoken_bpe(path)
    encoding = tiktoken.Encoding("peer", pat_str=GPT2, mergeable_ranks=ranks, special_tokens={"<|endoftext|>": len(ranks)})
    return f"tiktoken {tiktoken.__version__}", lambda documents: sum(len(encoding.encode_ordinary(d)) for d in documents)


def documents_of(path):
    data = open(path, "rb").read()
    out, at = [], 0
    while at < len(data):
        end = len(data) if len(data) - at <= 16384 else data.find(b"\n", at + 16384) + 1 or len(data)
        out.append(data[at:end].decode())
        at = end
    return out, len(data)


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("tokenizer")
    parser.add_argument("texts", nargs="+")
    arguments = parser.parse_args()
    name, encode = load(arguments.tokenizer)
    for path in arguments.texts:
        documents, size = documents_of(path)
        rates, ids = [], 0
        for _ in range(arguments.repeats):
            start = time.process_time()
            ids = encode(documents)
            rates.append(size / (time.process_time() - start) / 1e6)
        print(f"{name:<24} {os.path.basename(path):<24} {size / 1e6:8.1f} MB {size / ids:6.2f} bytes/id "
              f"{statistics.median(rates):8.2f} MB/s")


if __name__ == "__main__":
    main()
