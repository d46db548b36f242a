#!/usr/bin/env python3
"""Makes tests/golden/tokenizer/: small tokenizers of every kind and the ids that the reference implementations give for some texts.

    ATHANOR=build/athanor ATHANOR_TOKENIZERS=FOLDER python3 tests/golden/make_tokenizer.py

(needs the packages tokenizers and tiktoken). NAME.json and NAME.tiktoken are tokenizers; NAME.cases has one case a line: S (special
tokens recognised) or - (not), the text in hexadecimal UTF-8, and its ids. trained.json is what `athanor tokenizer train` makes of
trained.jsonl. The cases in real/ are for files that are not ours to keep: gpt-neox-20b.json and gpt2.tiktoken in FOLDER.
No test needs Python: tests/test_tokenizer.c reads the files.
"""
import base64
import json
import os
import pathlib
import random
import subprocess

import tiktoken
import tiktoken.load
import tokenizers
from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, processors, trainers

HERE = pathlib.Path(__file__).parent / "tokenizer"
GPT2 = r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+"
LLAMA = (r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+"
         r"|\s+(?!\S)|\s+")
QWEN = LLAMA.replace(r"\p{N}{1,3}", r"\p{N}")
GPT4 = (r"'(?i:[sdmt]|ll|ve|re)|[^\r\n\p{L}\p{N}]?+\p{L}++|\p{N}{1,3}+| ?[^\s\p{L}\p{N}]++[\r\n]*+|\s++$|\s*[\r\n]"
        r"|\s+(?!\S)|\s")
O200K = "|".join([
    r"[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]*[\p{Ll}\p{Lm}\p{Lo}\p{M}]+(?i:'s|'t|'re|'ve|'m|'ll|'d)?",
    r"[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]+[\p{Ll}\p{Lm}\p{Lo}\p{M}]*(?i:'s|'t|'re|'ve|'m|'ll|'d)?",
    r"\p{N}{1,3}", r" ?[^\s\p{L}\p{N}]+[\r\n/]*", r"\s*[\r\n]+", r"\s+(?!\S)", r"\s+"])
TEXT = """The furnace holds one steady heat for as long as the work takes. It wasn't his, it's theirs; we'll see what they've done.
In 1842 and 2026 there were 12345 loaves, 3.14159 pies and 1,000,000 crumbs.  Don't panic!  for (int i = 0; i < 10; i++) {\n\t\treturn x;\n}
Le café était fermé. Übergröße, naïve Ærøskøbing. Привет, мир! Как дела? 你好，世界。今天天气很好。 こんにちは世界 안녕하세요 세계 नमस्ते दुनिया مرحبا بالعالم
https://example.org/a_b?c=d&e=f#g  ==== ---- **** ////  😀😃 👩‍👩‍👧 e\u0301 a\u0308 \u1100\u1161\u11a8
""" * 3


def train(pattern, size, normalizer=None):
    tokenizer = Tokenizer(models.BPE())
    tokenizer.normalizer = normalizer
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence([
        pre_tokenizers.Split(Regex(pattern), "isolated"), pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)])
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(vocab_size=size, initial_alphabet=pre_tokenizers.ByteLevel.alphabet(), show_progress=False)
    tokenizer.train_from_iterator(TEXT.split("\n"), trainer)
    return tokenizer


def build():
    made = {}
    document = json.loads(train(LLAMA, 420).to_str())
    document["model"]["ignore_merges"] = True
    document["model"]["vocab"]["\u0120the\u0120furnace"] = 420  # no merges make it, and no piece is it
    document["model"]["vocab"]["\u0120steady"] = 421           # no merges make it, but a piece is it
    t = Tokenizer.from_str(json.dumps(document))
    t.add_special_tokens(["<|begin_of_text|>", "<|end_of_text|>", "<|eot|>"])
    t.post_processor = processors.Sequence([processors.ByteLevel(trim_offsets=False), processors.TemplateProcessing(
        single="<|begin_of_text|> $A", special_tokens=[("<|begin_of_text|>", t.token_to_id("<|begin_of_text|>"))])])
    made["llama3"] = json.loads(t.to_str())
    t = train(QWEN, 420, normalizers.NFC())
    t.add_special_tokens(["<|endoftext|>", "<|im_start|>", "<|im_end|>"])
    t.add_tokens([AddedToken("<tool>", normalized=False), AddedToken("\u00e9t\u00e9"), AddedToken("na\u0308ive", lstrip=True),
                  AddedToken("word", single_word=True), AddedToken("left", lstrip=True, normalized=False),
                  AddedToken("right", rstrip=True, normalized=False), AddedToken("both ways", lstrip=True, rstrip=True),
                  AddedToken("    "), AddedToken("  "), AddedToken("<mask>", lstrip=True, single_word=True, normalized=False)])
    made["qwen"] = json.loads(t.to_str())
    t = train(GPT4, 380)
    t.add_special_tokens(["<|endoftext|>"])
    made["gpt4"] = json.loads(t.to_str())
    t = train(GPT2, 400)
    t.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=True)
    t.post_processor = processors.ByteLevel()
    t.add_special_tokens([AddedToken("<s>"), AddedToken("</s>"), AddedToken("<mask>", lstrip=True)])
    document = json.loads(t.to_str())
    document["model"]["merges"] = [" ".join(pair) for pair in document["model"]["merges"]]  # the older spelling
    made["prefix"] = document
    t = train(GPT2, 300)
    t.pre_tokenizer = pre_tokenizers.Sequence([pre_tokenizers.Digits(individual_digits=True), pre_tokenizers.ByteLevel(
        add_prefix_space=False)])
    t.add_special_tokens(["<|endoftext|>"])
    made["digits"] = json.loads(t.to_str())
    t = train(O200K, 340)
    t.pre_tokenizer = pre_tokenizers.Sequence([
        pre_tokenizers.Split(Regex(r"\p{N}{1,3}"), "isolated"), pre_tokenizers.Split(Regex(r"[\u4e00-\u9fa5\u3040-\u30ff]+"), "isolated"),
        pre_tokenizers.Split(Regex(O200K), "isolated"), pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)])
    t.add_special_tokens(["<|endoftext|>"])
    made["other"] = json.loads(t.to_str())
    return made


def tiktoken_ranks(tokenizer_json):
    """The tokens of a tokenizer whose merges are in the order of their ids, bytes first."""
    alphabet = {chr(c): b for b, c in zip(
        list(range(0x21, 0x7F)) + list(range(0xA1, 0xAD)) + list(range(0xAE, 0x100))
        + [b for b in range(256) if not (0x21 <= b <= 0x7E or 0xA1 <= b <= 0xAC or b >= 0xAE)],
        list(range(0x21, 0x7F)) + list(range(0xA1, 0xAD)) + list(range(0xAE, 0x100)) + list(range(0x100, 0x100 + 68)))}
    vocabulary = sorted(tokenizer_json["model"]["vocab"].items(), key=lambda item: item[1])
    return {bytes(alphabet[c] for c in text): rank for rank, (text, _) in enumerate(vocabulary)}


def texts():
    random.seed(7)
    spaces = [chr(c) for c in (9, 10, 11, 12, 13, 32, 32, 32, 0x85, 0xA0, 0x2003, 0x2028, 0x3000, 0x200B)]
    parts = ["the furnace", " the furnace", " steady", "steady", "'s", "'S", "'\u017f", "'LL", "don't", "1234567", "\u0967\u0968\u0969\u096a", "\u00b2\u00bd",
             "e\u0301te\u0301", "\u00e9t\u00e9", "na\u0308ive", "na\u00efve", "\u1100\u1161\u11a8", "\ud55c\uad6d\uc5b4", "\uac00\u11a8", "\u4f60\u597d\uff0c", "<|endoftext|>", "<|eot|>", "<|end",
             "<s>", "</s>", "<mask>", "<tool>", "<|im_start|>", "word", "words", "sword", " word ", "left", " left", "\n left", "right",
             "right  ", "right \n", "both ways", "  both ways  ", "  ", "    ", "     ", "\r\n", "\n\n", "\n", "\t", "\U0001f469\u200d\U0001f469\u200d\U0001f467", "\u0327\u0301",
             "a\u0301\u0327", "\u212b", "\u0344", "\u0958", "\u0341", "\U00011935\U00011930", "\u0898\u0301", "a\u1ac1\u0301", "x", "_", "a_b.c", "()", "++", "...", "\u2014", "\x00", "\x7f",
             "\U0001e5d0", "\U00010d40", "\U00011380", "\u0897", "\U0002ebf0", "\U0010ffff", "\ue000"]
    out = ["", " ", "a", "\n", "'", "\u0301", "  \n  \n", "\n  ", "a  ", "a \n ", " 's", "''s"]
    for _ in range(70):
        out.append("".join(random.choice(parts) if random.random() < .75 else
                           "".join(random.choice(spaces) for _ in range(random.randint(1, 4))) for _ in range(random.randint(1, 14))))
    return out


def write_cases(name, encode):
    lines = []
    for text in texts():
        for special in (True, False):
            ids = encode(text, special)
            lines.append(("S" if special else "-") + " " + (text.encode().hex() or ".") + "".join(f" {i}" for i in ids))
    (HERE / f"{name}.cases").write_text("\n".join(lines) + "\n")


def write_json_cases(name, path):
    reference = Tokenizer.from_file(str(path))

    def encode(text, special):
        reference.encode_special_tokens = not special
        return reference.encode(text, add_special_tokens=False).ids
    write_cases(name, encode)


def write_tiktoken_cases(name, ranks, pattern):
    encoding = tiktoken.Encoding(name, pat_str=pattern, mergeable_ranks=ranks, special_tokens={"<|endoftext|>": len(ranks)})
    write_cases(name, lambda text, special: encoding.encode(text, allowed_special="all") if special
                else encoding.encode_ordinary(text))


def main():
    (HERE / "real").mkdir(parents=True, exist_ok=True)
    made = build()
    for name, document in made.items():
        path = HERE / f"{name}.json"
        path.write_text(json.dumps(document, ensure_ascii=False, separators=(",", ":")) + "\n")
        write_json_cases(name, path)
    for name, source, pattern in (("tiny.gpt2", "prefix", GPT2), ("tiny.cl100k", "gpt4", GPT4), ("tiny.o200k", "other", O200K)):
        ranks = tiktoken_ranks(made[source])
        (HERE / f"{name}.tiktoken").write_bytes(
            b"".join(base64.b64encode(token) + b" %d\n" % rank for token, rank in ranks.items()))
        write_tiktoken_cases(name, ranks, pattern)
    (HERE / "trained.jsonl").write_text("".join(json.dumps({"text": part}) + "\n" for part in TEXT.split("\n")))
    subprocess.run([os.environ["ATHANOR"], "tokenizer", "train", "--input", HERE / "trained.jsonl", "--vocab-size", "400", "--out",
                    HERE / "trained.json"], check=True)
    write_json_cases("trained", HERE / "trained.json")
    real = pathlib.Path(os.environ["ATHANOR_TOKENIZERS"])
    write_json_cases("real/gpt-neox-20b", real / "gpt-neox-20b.json")
    write_tiktoken_cases("real/gpt2", tiktoken.load.load_tiktoken_bpe(str(real / "gpt2.tiktoken")), GPT2)
    print("tokenizers", tokenizers.__version__, "tiktoken", tiktoken.__version__)


if __name__ == "__main__":
    main()
