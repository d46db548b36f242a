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
import re
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


# What a Split may say: atoms, places, repeats, put together by chance.
ATOMS = (r"a b X s t k 1 é \n ' . \. \s \S \d \D \w \W \p{L} \p{Lu} \p{Ll} \p{N} \P{L} \p{M} \p{^N} \p{Han} \h \R \N \x41 \x{e9} "
         r"\u4e00 \O [abX] [^a] [a-t] [^\s\p{L}] [^\r\n\p{L}\p{N}] [\p{L}&&[^a]] [[:alpha:]] [[:^alnum:]] [[:punct:]] [a-z&&[^b-t]] "
         r"[^a-s&&\p{L}] [\p{Lu}\p{M}] [\w'] [\W] [\P{Ll}] \p{Emoji} \p{Punct} [[:space:]] [[:word:]] \p{Letter} \p{hiragana}").split() + [" "]
PLACES = r"^ $ \A \z \Z \b \B (?=a) (?!b) (?!\S) (?<=a) (?<!\s) (?<=\p{L})".split()
REPEATS = "? * + ?? *? +? ?+ *+ ++ {2} {1,3} {2,} {,2} {1,2}? {2}? {1,3}+ {2}+ {2,}?".split()
BEHAVIORS = ["Isolated", "Removed", "MergedWithPrevious", "MergedWithNext", "Contiguous"]
CHARACTERS = ["a", "b", "X", "s", "S", "\u017f", "t", "k", "\u212a", "1", "2", "\u00e9", "\u00c9", "\n", " ", "  ", "'", ".", "\r\n", "\u4e00",
              "\u3042", "\u0301", "\u00b2", "\u200d", "\U0001f600", "\u0663", "\u00df", "_", "\U0001e5d0", "\ua7da", "\U00016d40", "\u0897",
              "\t", "\u0085", "\u3000", "aaa", "bb"]


def expression(depth):
    kind = random.random()
    if depth == 0 or kind < .35:
        return random.choice(ATOMS) + (random.choice(REPEATS) if random.random() < .35 else "")
    if kind < .42:
        return random.choice(PLACES)
    if kind < .65:
        return expression(depth - 1) + expression(depth - 1)
    if kind < .75:
        return expression(depth - 1) + "|" + expression(depth - 1)
    group = random.choice(["(", "(?:", "(?i:", "(?>", "(?i)", "(?m:", "(?=", "(?!", "(?<q>", "(?-i:"])
    if group == "(?i)":
        return group + expression(depth - 1)
    repeat = random.choice(REPEATS) if group not in ("(?=", "(?!") and random.random() < .5 else ""
    return group + expression(depth - 1) + ")" + repeat


def byte_model():
    """Each byte a token, and each byte with a blank behind it: with a blank before every piece, ids tell where pieces end."""
    alphabet = {b: c for c, b in ((c, list(tiktoken_ranks({"model": {"vocab": {c: 0}}}))[0][0]) for c in pre_tokenizers.ByteLevel.alphabet())}
    vocabulary = {alphabet[b]: b for b in range(256)} | {alphabet[b] + alphabet[32]: 256 + b for b in range(256)}
    return {"model": {"type": "BPE", "vocab": vocabulary, "merges": [[alphabet[b], alphabet[32]] for b in range(256)]}}


def write_parts():
    """parts.cases: fields of a tokenizer.json (which bytes.json completes), a tab, a case as in the other files."""
    random.seed(11)
    base, lines, last = byte_model(), [], {"type": "ByteLevel", "add_prefix_space": True, "trim_offsets": True, "use_regex": False}
    (HERE / "bytes.json").write_text(json.dumps(base, ensure_ascii=False, separators=(",", ":")) + "\n")

    def add(fields, choices, count):
        try:
            reference = Tokenizer.from_str(json.dumps(fields | base))
        except Exception:  # chance made no expression
            return
        for special in random.choices("S-", k=count):
            text = "".join(random.choices(choices, k=random.randint(1, 14)))
            reference.encode_special_tokens = special == "-"
            ids = reference.encode(text, add_special_tokens=False).ids
            case = " ".join([special, text.encode().hex(), *map(str, ids)])
            lines.append(json.dumps(fields, ensure_ascii=False) + "\t" + case)
    for number in range(150):
        chance = random.random()
        pattern = {"String": random.choice(["a", " ", "a.", "\n", "\u00e9"])} if chance < .1 else {
            "Regex": random.choice([GPT2, r"\p{N}", r"\p{N}+"]) if chance < .2 else expression(3)}
        stages = [{"type": "Split", "pattern": pattern, "behavior": BEHAVIORS[number % 5], "invert": random.random() < .5}]
        add({"pre_tokenizer": {"type": "Sequence", "pretokenizers": stages + [last]}}, CHARACTERS, 3)
    names = ["special", "single_word", "lstrip", "rstrip", "normalized"]
    for flags in range(32):
        token = {"id": 512, "content": "e\u0301_t"} | {name: bool(flags >> i & 1) for i, name in enumerate(names)}
        other = {"id": 513, "content": "t ", "special": False, "single_word": False, "lstrip": False, "rstrip": False, "normalized": False}
        add({"added_tokens": [token, other], "normalizer": {"type": "NFC"} if flags % 3 else None, "pre_tokenizer": last},
            ["e\u0301_t", "\u00e9_t", "e\u0301_", "t ", "t", " ", "\n", "\u3000", "a", "_", "\u0301", ".", "\u00b2", "\u200d"], 6)
    (HERE / "parts.cases").write_text("\n".join(lines) + "\n")


def write_classes():
    """classes.cases: for properties and classes of the reference engine the number of their characters and two sums over them."""
    table = (HERE.parents[2] / "data/tokenizer/unicode_table.c").read_text()
    names = sorted({name for names in re.findall(r'"\|([a-z|]+)\|"', table) for name in names.split("|") if name != "qaai"})
    names += ("L Lu Ll Lt Lm Lo LC M Mn Mc Me N Nd Nl No P Pc Pd Ps Pe Pi Pf Po S Sm Sc Sk So Z Zs Zl Zp C Cc Cf Co Cn Any Assigned Alphabetic "
              "Lowercase Uppercase Emoji Emoji_Presentation Extended_Pictographic White_Space Alnum Blank Graph Print Word Punct ASCII").split()
    characters = [chr(c) for c in range(0x110000) if not 0xD800 <= c < 0xE000]
    chunks = ["".join(characters[i:i + 8192]) for i in range(0, len(characters), 8192)]
    lines = []
    for name in [rf"\p{{{name}}}" for name in names] + [
            r"\s", r"\w", r"\d", r"\h", r"[\w]", r"[[:alpha:]]", r"[[:punct:]]", r"[[:digit:]]", r"[[:cntrl:]]", r"(?i:[a-z])", r"(?i:[^\p{Lu}])",
            r"(?i:[\p{Lu}&&[a-z]])", r"(?i:[\x{3b1}-\x{3c9}&&[^\x{3b9}\x{3c5}]])", r"(?i:[\x{410}-\x{42f}])", r"(?i:[\x{13a0}-\x{13ff}])"]:
        split = pre_tokenizers.Split(Regex(f"(?:{name})+"), "removed")
        codes = []
        for chunk in chunks:
            kept = set()
            for _, (start, end) in split.pre_tokenize_str(chunk):
                kept.update(range(start, end))
            codes += [ord(c) for i, c in enumerate(chunk) if i not in kept]
        lines.append(f"{len(codes)} {sum(codes)} {sum(c * c for c in codes) % (1 << 61)} {name}")
    (HERE / "classes.cases").write_text("\n".join(lines) + "\n")


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
    write_parts()
    write_classes()
    print("tokenizers", tokenizers.__version__, "tiktoken", tiktoken.__version__)


if __name__ == "__main__":
    main()
