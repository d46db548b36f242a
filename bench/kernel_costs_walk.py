"""Walks a kernel's machine code as one thread would, with the parameters of a launch, and notes which instructions it passes.

Integers, addresses, predicates and shared memory are computed; floating-point numbers are mostly not, and what memory holds is
known only where the launch says so: such values are None, and what is computed of them is None too. A jump whose condition is
None goes straight on, unless that leads to a nap or back: the threads looked at are the first of their warps, which take every
part that is for one thread, and loops that wait for others end at once. `guesses` counts such jumps.

A block is walked by one thread for each warp that has a part of its own. Threads see of each other's writes to shared memory what
the barriers between them say: behind the k-th wait at a barrier, what the other had written before its k-th arrival there.
"""
import re
import struct

from kernel_costs_code import Problem

MASK = 0xFFFFFFFF
UNKNOWN = (TypeError, ZeroDivisionError, ValueError, OverflowError, struct.error)  # what arithmetic on None comes to
MOST_STEPS = 3_000_000


def signed(x):
    return x - ((x & 0x80000000) << 1)


def to_single(bits):
    return struct.unpack("<f", struct.pack("<I", bits))[0]


def from_single(x):
    try:
        return struct.unpack("<I", struct.pack("<f", x))[0]
    except OverflowError:
        return 0x7F800000 if x > 0 else 0xFF800000


def rcp(bits):
    x = to_single(bits)
    return from_single(1 / x) if x else 0x7F800000


def both(a, b):
    if a == 0 or b == 0:
        return 0
    return None if a is None or b is None else 1


def either(a, b):
    if a == 1 or b == 1:
        return 1
    return None if a is None or b is None else 0


class Partly:
    """A register of which some bits are known, as P2R leaves it."""

    def __init__(self, known, bits):
        self.known, self.bits = known, bits

    def __and__(self, other):
        if other & ~self.known & MASK:
            raise TypeError("unknown bits")
        return self.bits & other

    __rand__ = __and__


def inverse(a):
    return None if a is None else 1 - a


def table3(table, a, b, c):
    results = {table >> (4 * x + 2 * y + z) & 1 for x in ((0, 1) if a is None else (a,)) for y in ((0, 1) if b is None else (b,))
               for z in ((0, 1) if c is None else (c,))}
    return results.pop() if len(results) == 1 else None


def lop3_partly(table, a, b):
    """a & b or a | b where bits of them are unknown."""
    (ka, a), (kb, b) = ((x.known, x.bits) if isinstance(x, Partly) else (0, 0) if x is None else (MASK, x) for x in (a, b))
    if table == 0xC0:
        known, bits = ka & kb | ka & ~a | kb & ~b, a & b
    elif table == 0xFC:
        known, bits = ka & kb | ka & a | kb & b, a | b
    else:
        raise TypeError("unknown bits")
    known &= MASK
    return bits & known if known == MASK else Partly(known, bits & known) if known else None


def lop3(table, a, b, c):
    if not isinstance(a, int) or not isinstance(b, int):
        return lop3_partly(table, a, b)
    if table == 0xC0:
        return a & b
    if table == 0xFC:
        return a | b
    if table == 0x3C:
        return a ^ b
    out = 0
    for i in range(8):
        if table >> i & 1:
            out |= (a if i & 4 else a ^ MASK) & (b if i & 2 else b ^ MASK) & (c if i & 1 else c ^ MASK)
    return out


def prmt(a, selector, b):
    source = (b << 32 | a).to_bytes(8, "little")
    out = 0
    for i in range(4):
        nibble = selector >> 4 * i & 15
        byte = source[nibble & 7]
        out |= (0xFF if byte & 0x80 else 0 if nibble & 8 else byte) << 8 * i if nibble & 8 else byte << 8 * i
    return out


def funnel(name, a, shift, c):
    wide = "64" in name
    shift = min(shift, 64 if wide else 32)
    if name.startswith("SHF.L"):
        pair = (c << 32 | a) << shift
        return (pair >> 32 if ".HI" in name else pair) & MASK
    pair = c << 32 | a
    if ".S" in name and c & 0x80000000:
        pair -= 1 << 64
    pair >>= shift
    return (pair >> 32 if ".HI" in name else pair) & MASK


# ---- From an instruction's text to a line of Python. R, U: registers; P, Q: predicates (1, 0, None); K: the constant bank by words.

REGISTER = re.compile(r"^([-~!|]*)(U?R)(\d+|Z)\|?((?:\.\w+)*)$")
PREDICATE = re.compile(r"^(!?)(U?P)(\d+|T|R)$")
CONSTANT = re.compile(r"^([-~|]*)c\[0x0\]\[(.*?)\]\|?$")
NUMBER = re.compile(r"^-?0x[0-9a-f]+$|^-?\d+$")


def value(text, raw=False):
    """The expression of a 32-bit operand. raw: no sign is applied (the caller does, with its carry)."""
    match = REGISTER.match(text)
    if match:
        sign, kind, number, _ = match.groups()
        plain = "0" if number == "Z" else f"{'U' if kind == 'UR' else 'R'}[{number}]"
    else:
        match = CONSTANT.match(text)
        if match:
            sign, place = match.groups()
            plain = f"K[{int(place, 16) // 4}]" if NUMBER.match(place) else "None"
        elif NUMBER.match(text):
            sign, plain = "", str(int(text, 0) & MASK)
        else:
            try:
                sign, plain = "", str(from_single(float(text.replace("INF ", "INF").replace("QNAN", "nan"))))
            except ValueError:
                return "None"
    if raw:
        return sign, plain
    if "~" in sign:
        return f"({plain}^{MASK})"
    return f"(-{plain}&{MASK})" if "-" in sign else plain


def carried(text):
    """The same for sums that carry: -x counts as ~x + 1."""
    sign, plain = value(text, raw=True) if value(text) != "None" else ("", "None")
    if "~" in sign:
        return f"({plain}^{MASK})"
    return f"(({plain}^{MASK})+1)" if "-" in sign else plain


def predicate(text):
    negated, kind, number = PREDICATE.match(text).groups()
    if number == "T":
        return "0" if negated else "1"
    plain = f"{'Q' if kind == 'UP' else 'P'}[{number}]"
    return f"inverse({plain})" if negated else plain


def to_register(text):
    _, kind, number, _ = REGISTER.match(text).groups()
    return None if number == "Z" else ("U" if kind == "UR" else "R", int(number))


def to_predicate(text):
    _, kind, number = PREDICATE.match(text).groups()
    return None if number == "T" else ("Q" if kind == "UP" else "P", int(number))


def put(place):
    return "_" if place is None else f"{place[0]}[{place[1]}]"


def following(place, count):
    return [None if place is None else (place[0], place[1] + i) for i in range(count)]


def words(name):
    for part in name.split(".")[1:]:
        if part in ("64", "128"):
            return int(part) // 32
    return 1


def address(text):
    """The expression of [..] as an address; of 64 bits where it says so."""
    inner = text[text.rindex("[") + 1:text.rindex("]")]
    parts = []
    for part in inner.replace("+-", "+~").split("+"):
        if not part or part in ("RZ", "URZ"):
            continue
        if part.startswith("~"):
            parts.append("-" + str(int(part[1:], 0)))
        elif ".64" in part:
            kind = "U" if part.startswith("UR") else "R"
            number = int(re.search(r"\d+", part).group())
            parts.append(f"({kind}[{number}]|{kind}[{number + 1}]<<32)")
        elif part.startswith("UR") and "desc" in text:
            number = int(part[2:])
            parts.append(f"(U[{number}]|U[{number + 1}]<<32)")
        else:
            parts.append(value(re.sub(r"\.X\d+$", "", part)))
    return "+".join(parts) or "0"


COMPARE = {"LT": "<", "LE": "<=", "GT": ">", "GE": ">=", "EQ": "==", "NE": "!="}
FLOAT_COMPARE = {"LT": "<", "LE": "<=", "GT": ">", "GE": ">=", "EQ": "==", "NE": "!=", "LTU": "<", "LEU": "<=", "GTU": ">",
                 "GEU": ">=", "EQU": "==", "NEU": "!="}


def translate(instruction):
    """(places written, statements) of an instruction that computes; no statements: what it writes is unknown."""
    name, o = instruction.name, [x.replace(".reuse", "") for x in instruction.operands]
    base = instruction.base
    if base.startswith("U") and base not in ("UTMALDG", "UTMASTG", "UTMAREDG", "UTMACMDFLUSH", "UTMACCTL", "UBLKCP", "UBLKRED",
                                             "UCGABAR_ARV", "UCGABAR_WAIT", "USETMAXREG", "UTMAPF", "UBLKPF"):
        base, name = base[1:], name[1:]
    parts = name.split(".")

    def out(count=1):
        place = to_register(o[0])
        return following(place, count)

    if base in ("MOV", "R2UR") and len(o) == 2:
        return out(), f"{put(out()[0])}={value(o[1])}"
    if base == "R2UR":  # P0, UR, R: P0 says whether lanes are left whose number is another; of one lane none are
        place, left = to_register(o[1]), to_predicate(o[0])
        return [place], f"{put(place)}={value(o[2])}" + (f";{put(left)}=0" if "OR" not in parts else "")
    if base == "CS2R":
        places = out(2)
        return places, ";".join(f"{put(p)}=0" for p in places) if o[1] == "SRZ" else ""
    if base in ("S2R", "S2UR"):
        return out(), f"{put(out()[0])}=W.special({o[1]!r})"
    if base in ("LDC", "DC"):  # ULDC loses its U
        match, count = CONSTANT.match(o[1]), words(name)
        places = out(count)
        if o[1].startswith("c[0x2]") and count == 1:  # the targets of a jump by a table
            return places, f"{put(places[0])}=W.table({address(o[1])})"
        if match and not NUMBER.match(match.group(2)) and parts[-1] not in ("U8", "S8", "U16", "S16"):
            return places, f"t=({address(o[1])})//4;" + ";".join(f"{put(p)}=K[t+{i}]" for i, p in enumerate(places))
        if not match or not NUMBER.match(match.group(2)):
            return places, ""
        at = int(match.group(2), 16)
        if parts[-1] in ("U8", "S8", "U16", "S16"):
            bits = int(parts[-1][1:])
            return places, f"{put(places[0])}=K[{at // 4}]>>{at % 4 * 8}&{(1 << bits) - 1}"
        return places, ";".join(f"{put(p)}=K[{at // 4 + i}]" for i, p in enumerate(places))
    if base in ("IADD3", "IADD", "VIADD"):
        if parts[1:2] == ["64"]:
            places = out(2)
            return places, ""
        place, rest, carries = to_register(o[0]), o[1:], []
        while len(rest) > 3 and PREDICATE.match(rest[0]) and len(carries) < 2:
            carries.append(to_predicate(rest.pop(0)))
        terms = [x for x in rest if not PREDICATE.match(x)]
        taken = [predicate(x) for x in rest if PREDICATE.match(x)] if "X" in parts else []
        total = "+".join([carried(x) for x in terms] + taken)
        text = f"t={total};{put(place)}=t&{MASK}"
        if carries:
            text += f";{put(carries[0])}=int(t>{MASK})"
            if len(carries) > 1:
                text += f";{put(carries[1])}=int(t>{2 * MASK + 1})"
        return [place, *carries], text
    if base == "IMAD" or base == "IMUL":
        place, rest, carry = to_register(o[0]), o[1:], None
        if PREDICATE.match(rest[0]):
            carry = to_predicate(rest.pop(0))
        terms = [x for x in rest if not PREDICATE.match(x)]
        taken = "+".join(predicate(x) for x in rest[3:] if PREDICATE.match(x)) if "X" in parts else ""
        a, b = value(terms[0]), value(terms[1])
        if "WIDE" in parts or "HI" in parts:
            if "U32" not in parts:
                a, b = f"signed({a})", f"signed({b})"
            third = to_register(terms[2]) if REGISTER.match(terms[2]) else None
            c = f"({put(third)}|{third[0]}[{third[1] + 1}]<<32)" if third else "0" if terms[2] in ("RZ", "URZ") else value(terms[2])
            if "HI" in parts:
                return [place], f"{put(place)}=({a}*{b}+{c})>>32&{MASK}"
            low, high = following(place, 2)
            return [low, high, carry], f"t={a}*{b}+{c};{put(low)}=t&{MASK};{put(high)}=t>>32&{MASK}" + \
                (f";{put(carry)}=int(t>>64!=0)" if carry else "")
        total = f"{a}*{b}+{value(terms[2])}" + ("+" + taken if taken else "")
        return [place, carry], f"{put(place)}=({total})&{MASK}"
    if base == "ISETP":
        first, second = to_predicate(o[0]), to_predicate(o[1])
        a, b, other = value(o[2]), value(o[3]), predicate(o[4])
        if "U32" not in parts:
            a, b = f"signed({a})", f"signed({b})"
        compare = COMPARE[parts[1]]
        test = f"int({a}-{b}{compare}0)"
        if "EX" in parts:
            low = predicate(o[5])
            test = {"LT": f"W.extend({a}-{b},-1,{low})", "LE": f"W.extend({a}-{b},-1,{low})", "GT": f"W.extend({a}-{b},1,{low})",
                    "GE": f"W.extend({a}-{b},1,{low})", "EQ": f"both(int({a}-{b}==0),{low})",
                    "NE": f"either(int({a}-{b}!=0),{low})"}[parts[1]]
        join = "either" if "OR" in parts else "both"
        text = f"t=W.attempt(lambda:{test});{put(first)}={join}(t,{other});{put(second)}={join}(inverse(t),{other})"
        return [first, second], text
    if base == "FSETP":
        first, second = to_predicate(o[0]), to_predicate(o[1])
        if parts[1] == "FTZ" or parts[1] not in FLOAT_COMPARE or "|" in o[2] + o[3]:
            return [first, second], ""
        test = f"int(to_single({value(o[2])}){FLOAT_COMPARE[parts[1]]}to_single({value(o[3])}))"
        join = "either" if "OR" in parts else "both"
        return [first, second], f"t=W.attempt(lambda:{test});{put(first)}={join}(t,{predicate(o[4])});" \
            f"{put(second)}={join}(inverse(t),{predicate(o[4])})"
    if base in ("SEL", "FSEL"):
        place = to_register(o[0])
        return [place], f"t={predicate(o[3])};{put(place)}=None if t is None else {value(o[1])} if t else {value(o[2])}"
    if base in ("VIMNMX", "IMNMX", "VIADDMNMX"):
        place, wide = to_register(o[0]), "U32" in parts
        read = (lambda x: value(x)) if wide else (lambda x: f"signed({value(x)})")
        a, b, chosen = read(o[1]), read(o[2]), o[3]
        if base == "VIADDMNMX":
            total = f"(({value(o[1])}+{value(o[2])})&{MASK})"
            a, b, chosen = total if wide else f"signed({total})", read(o[3]), o[4]
        relu = "RELU" in parts
        text = f"{'min' if chosen == 'PT' else 'max'}({a},{b})"
        if chosen not in ("PT", "!PT"):
            return [place], ""
        return [place], f"t={text};{put(place)}={'max(t,0)' if relu else 't'}&{MASK}"
    if base == "IABS":
        return out(), f"{put(out()[0])}=abs(signed({value(o[1])}))&{MASK}"
    if base == "LEA":
        place, rest, carry = to_register(o[0]), o[1:], None
        if PREDICATE.match(rest[0]):
            carry = to_predicate(rest.pop(0))
        a, b = value(rest[0]), carried(rest[1])
        if "HI" not in parts:
            return [place, carry], f"t=({a}<<{int(rest[2], 0)}&{MASK})+{b};{put(place)}=t&{MASK}" + \
                (f";{put(carry)}=int(t>{MASK})" if carry else "")
        if "SX32" in parts:
            shift = int(rest[2], 0)
            taken = "+" + predicate(rest[3]) if "X" in parts else ""
            wide = f"(signed({a})<<{shift})"
        else:
            shift = int(rest[3], 0)
            taken = "+" + predicate(rest[4]) if "X" in parts else ""
            wide = f"(({value(rest[2])}<<32|{a})<<{shift})"
        return [place, carry], f"t=({wide}>>32&{MASK})+{b}{taken};{put(place)}=t&{MASK}" + \
            (f";{put(carry)}=int(t>{MASK})" if carry else "")
    if base == "LOP3":
        rest, first = o, None
        if PREDICATE.match(rest[0]):
            first, rest = to_predicate(rest[0]), rest[1:]
        place = to_register(rest[0])
        text = f"t=lop3({int(rest[4], 0)},{value(rest[1])},{value(rest[2])},{value(rest[3])});{put(place)}=t"
        return [place, first], text + (f";{put(first)}=int((t&{MASK})!=0)" if first else "")
    if base == "PLOP3":
        first, second = to_predicate(o[0]), to_predicate(o[1])
        inputs = ",".join(predicate(x) for x in o[2:5])
        return [first, second], f"a,b,c={inputs};{put(first)}=table3({int(o[5], 0)},a,b,c);{put(second)}=table3({int(o[6], 0)},a,b,c)"
    if base == "SHF":
        if "W" in parts:
            return out(), ""
        return out(), f"{put(out()[0])}=funnel({name!r},{value(o[1])},{value(o[2])},{value(o[3])})"
    if base == "PRMT":
        return out(), f"{put(out()[0])}=prmt({value(o[1])},{value(o[2])},{value(o[3])})"
    if base == "I2F" and name in ("I2F.RP", "I2F.U32.RP"):
        read = value(o[1]) if "U32" in parts else f"signed({value(o[1])})"
        return out(), f"{put(out()[0])}=from_single(float({read}))"
    if base == "I2F" and name == "I2F.U64.RP":
        place = to_register(o[1])
        return out(), f"{put(out()[0])}=from_single(float({put(place)}|{place[0]}[{place[1] + 1}]<<32))"
    if base == "MUFU" and name == "MUFU.RCP":
        return out(), f"{put(out()[0])}=rcp({value(o[1])})"
    if base == "F2I" and name in ("F2I.FTZ.U32.TRUNC.NTZ", "F2I.U32.TRUNC.NTZ"):
        return out(), f"{put(out()[0])}=min(max(int(to_single({value(o[1])})),0),{MASK})"
    if base == "F2I" and name == "F2I.U64.TRUNC":
        low, high = out(2)
        return [low, high], f"t=max(int(to_single({value(o[1])})),0);{put(low)}=t&{MASK};{put(high)}=t>>32"
    if base == "POPC":
        return out(), f"{put(out()[0])}=bin({value(o[1])}).count('1')"
    if base == "SHFL":
        place = to_register(o[1])
        return [to_predicate(o[0]), place], f"{put(place)}={value(o[2])}"
    if base in ("VOTE", "VOTEU", "OTEU"):
        taken = [to_predicate(x) if PREDICATE.match(x) else to_register(x) for x in o[:-1]]
        places = [x for x in taken if x and x[0] in "PQ"]
        votes = [x for x in taken if x and x[0] in "RU"]  # of the one lane that is followed
        return taken, ";".join([f"{put(p)}={predicate(o[-1])}" for p in places] +
                               [f"{put(p)}=W.special('SR_EQMASK')" for p in votes if o[-1] in ("PT", "UPT")])
    if base == "FLO":
        return out(), f"t={value(o[1])};{put(out()[0])}=t.bit_length()-1 if t else {MASK}"
    if base == "ELECT":
        first = to_predicate(o[0])
        return [first], f"{put(first)}=1"
    if base == "P2R":
        return out(), f"{put(out()[0])}=W.pack({value(o[2])},{int(o[3], 0)})"
    if base == "R2P":
        return [], f"W.unpack({value(o[1])},{int(o[2], 0)})"
    if base == "HFMA2" and o[1] in ("-RZ", "RZ") and o[2] in ("RZ", "-RZ"):  # a constant: two halves
        halves = [struct.unpack("<H", struct.pack("<e", float(x)))[0] if not NUMBER.match(x) or "x" not in x else 0 for x in o[3:5]]
        return out(), f"{put(out()[0])}={halves[0] << 16 | halves[1]}"
    if base == "SETMAXREG" or base == "USETMAXREG":
        return [], "Q[0]=1"
    return None


def written(instruction):
    """The places that an instruction not computed here writes: all of its first operands that can be, unless it only reads."""
    if instruction.base in ("ST", "STG", "STS", "STL", "STSM", "RED", "REDG", "BAR", "SYNCS", "NOP", "BSSY", "BSYNC", "UTMALDG",
                            "UTMASTG", "UTMAREDG", "UBLKCP", "UBLKRED", "UTMACCTL", "CCTL", "WARPSYNC", "MEMBAR", "FENCE", "DEPBAR",
                            "WARPGROUP", "YIELD", "NANOSLEEP", "ERRBAR", "CGAERRBAR", "UTMACMDFLUSH", "ENDCOLLECTIVE", "BMOV",
                            "UCGABAR_ARV", "UCGABAR_WAIT", "WARPSYNC", "EXIT", "HGMMA"):
        return []
    places = []
    for operand in instruction.operands[:3]:
        operand = operand.replace(".reuse", "")
        if PREDICATE.match(operand) and not operand.startswith("!"):
            places.append(to_predicate(operand))
        elif REGISTER.match(operand):
            place = to_register(operand)
            wide = words(instruction.name) if instruction.base not in ("F2F", "DADD", "DMUL", "DFMA") else 2
            places += following(place, wide)
            break
        else:
            break
    return [p for p in places if p]


NAMES = {name: globals()[name] for name in ("signed", "to_single", "from_single", "rcp", "both", "either", "inverse", "table3", "lop3",
                                            "prmt", "funnel", "UNKNOWN")}


def compile_step(instruction):
    """A function (R, U, P, Q, K, W) that does what the instruction does to registers, or None for one with a special part."""
    done = translate(instruction)
    places, text = done if done is not None else (written(instruction), "")
    places = [p for p in places if p]
    forget = ";".join(f"{put(p)}=None" for p in places) or "pass"
    body = f"  try:\n   {text}\n  except UNKNOWN:\n   {forget}\n" if text else f"  {forget}\n"
    code = f"def step(R,U,P,Q,K,W):\n _=None\n if 1:\n{body}"
    scope = dict(NAMES)
    exec(code, scope)  # noqa: S102
    return scope["step"], places


class Kernel:
    """A kernel's instructions with what each does, made when it is first passed."""

    def __init__(self, name, code, base, table=b""):
        self.name, self.code, self.base, self.table = name, code, base, table
        self.steps = [None] * len(code)
        self.plain = [None] * len(code)  # those without a condition, that neither jump nor touch memory

    def step(self, at):
        if self.steps[at] is None:
            self.steps[at] = compile_step(self.code[at])
            if self.code[at].guard is None:
                self.plain[at] = self.steps[at][0]
        return self.steps[at]


class Launch:
    """A launch of a kernel: the constant bank as its parameters fill it."""

    def __init__(self, kernel, grid, threads, cluster, shared, parameters):
        self.kernel, self.grid, self.threads, self.cluster, self.shared = kernel, grid, threads, cluster, shared
        bank = bytearray(kernel.base + len(parameters) + 64)
        struct.pack_into("<IIIIII", bank, 0, threads, 1, 1, *grid)
        struct.pack_into("<I", bank, 0x28, 0x100000)  # the stack
        struct.pack_into("<I", bank, 0x140, int(cluster > 1))
        struct.pack_into("<Q", bank, 0x198, 1 << 60)  # where the parameters lie as memory
        bank[kernel.base:kernel.base + len(parameters)] = parameters
        self.bank = [x for x, in struct.iter_unpack("<I", bytes(bank[:len(bank) // 4 * 4]))]


class Block:
    """What the threads of a block that are walked share."""

    def __init__(self, launch, index, memory=None, load=None):
        self.launch, self.index = launch, index
        self.memory, self.load = memory or {}, load
        self.writes = {}    # address -> [(thread, its time, value)]
        self.arrivals = {}  # barrier -> {thread: [times]}
        self.draws = 0      # tickets


# What a walk notes beside the instruction, by place in the trace: the barriers that it meets.
#   ("wait", barrier, k)              until the k-th phase is over (-1: the one before the first, which is)
#   ("arrive", barrier, announced)    what the instruction says of bytes to come, encoded
#   ("load", barrier, multicast)      a copy whose bytes arrive at the barrier
#   ("sync", number, threads), ("meet", number, threads)   named barriers; meet does not wait
MEMORY = {"LDS", "LDL", "LDG", "LD", "STG", "ST", "STS", "STL", "ATOMG", "ATOM"}
BARRIERS = {"SYNCS", "BAR", "UTMALDG", "UBLKCP", "UCGABAR_ARV", "UCGABAR_WAIT"}


class Walk:
    """One thread's way through a block. trace: numbers of instructions; events: place in the trace -> what happened there."""

    def __init__(self, block, thread, most=MOST_STEPS, stop=None):
        self.block, self.thread, self.stop = block, thread, stop
        self.trace, self.events, self.guesses, self.places = [], {}, {}, {}
        self.R, self.U, self.P, self.Q = [None] * 260, [None] * 68, [None] * 8, [None] * 8
        self.P[7] = self.Q[7] = 1
        self.local, self.view, self.phases, self.time = {}, {}, {}, 0
        self.run(most)

    # -- what instructions ask

    def special(self, name):
        grid, index = self.block.launch.grid, self.block.index
        return {"SR_TID.X": self.thread, "SR_TID.Y": 0, "SR_TID.Z": 0, "SR_CTAID.X": index % grid[0],
                "SR_CTAID.Y": index // grid[0] % grid[1], "SR_CTAID.Z": index // grid[0] // grid[1], "SR_LANEID": self.thread % 32,
                "SR_EQMASK": 1 << self.thread % 32, "SR_LTMASK": (1 << self.thread % 32) - 1,
                "SR_CgaCtaId": index % self.block.launch.cluster, "SR_NTID": self.block.launch.threads}.get(name)

    def attempt(self, test):
        try:
            return test()
        except UNKNOWN:
            return None

    def extend(self, difference, direction, low):
        """A comparison of 64 bits by its high halves' difference, and the result of the low ones."""
        return low if difference == 0 else int((difference > 0) == (direction > 0))

    def pack(self, rest, mask):
        known, bits = (rest.known, rest.bits) if isinstance(rest, Partly) else (0, 0) if rest is None else (MASK, rest)
        for i in range(7):
            if mask >> i & 1:
                known = known & ~(1 << i) | (self.P[i] is not None) << i
                bits = bits & ~(1 << i) | (self.P[i] or 0) << i
        return bits if known == MASK else Partly(known, bits)

    def unpack(self, bits, mask):
        for i in range(7):
            if mask >> i & 1:
                try:
                    self.P[i] = int((bits & 1 << i) != 0)
                except TypeError:
                    self.P[i] = None

    def table(self, at):
        return struct.unpack_from("<I", self.block.launch.kernel.table, at)[0]

    def number(self, expression):
        """The value of an expression over the registers now; None where it is unknown."""
        try:
            return eval(expression, {"R": self.R, "U": self.U, "P": self.P, "Q": self.Q, "K": self.block.launch.bank, **NAMES})  # noqa: S307
        except UNKNOWN:
            return None

    def tick(self):
        self.time += 1
        return self.time

    def seen(self, barrier, k):
        """The k-th wait at a barrier: what the others had written before their k-th arrival there is seen from now on."""
        for other, times in self.block.arrivals.get(barrier, {}).items():
            if other != self.thread and times:
                self.view[other] = max(self.view.get(other, 0), times[min(k, len(times) - 1)])

    def arrive(self, barrier):
        self.block.arrivals.setdefault(barrier, {}).setdefault(self.thread, []).append(self.tick())

    def shared_load(self, at):
        best, own = None, None
        for thread, time, number in self.block.writes.get(at, ()):
            if thread == self.thread:
                own = (number,)
            elif time <= self.view.get(thread, 0):
                best = (number,)
        return (best or own or (None,))[0]

    # -- instructions that are not arithmetic

    def memory(self, i):
        base, o = i.base, [x.replace(".reuse", "") for x in i.operands]
        if base in ("ATOMG", "ATOM"):  # a ticket
            place = to_register(o[1])
            grid, cluster = self.block.launch.grid, self.block.launch.cluster
            number = self.block.index // cluster + self.block.draws * (grid[0] * grid[1] * grid[2] // cluster)
            self.block.draws += 1
            if place:
                self.R[place[1]] = number
            return
        if base in ("LDS", "LDL", "LDG", "LD"):
            place, count = to_register(o[0]), words(i.name)
            at = self.number(address(o[-1]))
            self.places[len(self.trace) - 1] = at
            for n, where in enumerate(following(place, count)):
                if where is None:
                    continue
                got = None
                if at is not None:
                    if base == "LDS":
                        got = self.shared_load(at + 4 * n)
                    elif base == "LDL":
                        got = self.local.get(at + 4 * n)
                    else:
                        got = self.block.memory.get(at + 4 * n)
                if got is None and base in ("LDG", "LD") and self.block.load is not None and "STRONG" not in i.name:
                    got = self.block.load(i, at, n)
                (self.R if where[0] == "R" else self.U)[where[1]] = got
            return
        at, count = self.number(address(o[0])), words(i.name)
        cluster_shared = base == "ST" and "desc" not in o[0]  # shared memory of a block of the cluster, this one if it is the first
        if base in ("STG", "ST") and not cluster_shared:
            self.places[len(self.trace) - 1] = at
            return
        if base in ("STS", "STL", "ST"):
            place = to_register(o[1])
            for n, where in enumerate(following(place, count)):
                number = 0 if where is None else self.R[where[1]]
                if at is not None and base != "STL":
                    self.block.writes.setdefault(at + 4 * n, []).append((self.thread, self.tick(), number))
                elif at is not None:
                    self.local[at + 4 * n] = number
            return

    def barrier(self, i):
        base, name, o = i.base, i.name, [x.replace(".reuse", "") for x in i.operands]
        here = len(self.trace) - 1
        if base == "SYNCS":
            at = self.number(address(next(x for x in o if "[" in x)))
            if "PHASECHK" in name:
                self.P[int(o[0][1:])] = 1
                parity = self.number(value(o[2])) if len(o) > 2 else None
                # The first phase that a barrier is waited for with parity 1 is over from the start.
                last, k = self.phases.get(at, (None, -2 if parity else -1))
                if parity != last or parity is None:
                    k += 1
                self.phases[at] = (parity, k)
                if k >= 0:
                    self.seen(at, k)
                self.events[here] = ("wait", at, k)
            elif "ARRIVE" in name:
                self.arrive(at)
                announced = self.number(value(o[-1])) if "A1T0" not in name else 0
                self.events[here] = ("arrive", at, announced)
            return
        if base == "UCGABAR_ARV":  # the barrier of the cluster
            self.arrive("cluster")
            return
        if base == "UCGABAR_WAIT":
            self.seen("cluster", len(self.block.arrivals["cluster"][self.thread]) - 1)
            return
        if base in ("UTMALDG", "UBLKCP"):
            number = int(re.search(r"\[UR(\d+)\]", o[0]).group(1))
            self.events[here] = ("load", self.U[number + 1], "MULTICAST" in name)
            return
        if base == "BAR":
            number = self.number(value(o[0]))
            threads = self.number(value(o[1])) if len(o) > 1 else self.block.launch.threads
            key = ("bar", number)
            k = len(self.block.arrivals.get(key, {}).get(self.thread, []))
            self.arrive(key)
            if "SYNC" in name or "RED" in name:
                self.seen(key, k)
                self.events[here] = ("sync", number, threads)
            else:
                self.events[here] = ("meet", number, threads)
            return

    # -- the way

    def guess(self, at, target):
        """Whether to jump where that is unknown."""
        self.guesses[at] = self.guesses.get(at, 0) + 1
        if target is None or target <= at:
            return False
        code = self.block.launch.kernel.code
        return any(code[k].base in ("NANOSLEEP", "BPT") or code[k].base == "CALL" and k < at + 6
                   for k in range(at + 1, min(at + 8, target, len(code))))

    def run(self, most):
        kernel, bank = self.block.launch.kernel, self.block.launch.bank
        code, trace = kernel.code, self.trace
        R, U, P, Q, steps, plain = self.R, self.U, self.P, self.Q, kernel.steps, kernel.plain
        at, calls, note = 0, [], self.trace.append
        while at < len(code):
            note(at)
            step = plain[at]
            if step is not None:
                step(R, U, P, Q, bank, self)
                at += 1
                continue
            i = code[at]
            if len(trace) >= most:
                if most < MOST_STEPS:
                    return  # enough was seen
                raise Problem(f"{kernel.name}: a walk of more than {most} instructions")
            guard = 1
            if i.guard:
                file = Q if "U" in i.guard else P
                digit = i.guard[-1]
                guard = 1 if digit == "T" else file[int(digit)]
                if i.guard[0] == "!":
                    guard = inverse(guard)
            base = i.base
            if base == "BRA" or base == "JMP":
                extra = [x for x in i.operands[:-1] if PREDICATE.match(x)]
                taken = guard
                for x in extra:
                    taken = both(taken, self.number(predicate(x)))
                if "DIV" in i.name or "CONV" in i.name:
                    taken = 0
                if taken is None:
                    taken = self.guess(at, i.target)
                at = i.target if taken else at + 1
                if at is None:
                    raise Problem(f"{kernel.name}: a jump to an unknown place: {i.text}")
                if self.stop is not None and self.stop(self):
                    return
                continue
            if guard == 0:
                at += 1
                continue
            if base == "EXIT":
                if guard == 1:
                    return
                self.guesses[at] = self.guesses.get(at, 0) + 1
                at += 1
                continue
            if base == "CALL":
                calls.append(at + 1)
                at = i.target
                if at is None:
                    raise Problem(f"{kernel.name}: a call of what is not here: {i.text}")
                continue
            if base == "RET":
                if not calls:
                    raise Problem(f"{kernel.name}: a return without a call")
                at = calls.pop()
                continue
            if base == "BRX":  # to the place in the register: what is added is where the next instruction stands
                place = self.number(value(i.operands[0].split()[0]))
                if place is None:
                    raise Problem(f"{kernel.name}: a jump by a table to an unknown place")
                at = (place - code[0].place) // 16
                continue
            if guard is None:
                for place in kernel.step(at)[1]:
                    {"R": R, "U": U, "P": P, "Q": Q}[place[0]][place[1]] = None
            elif base in MEMORY:
                self.memory(i)
            elif base in BARRIERS:
                self.barrier(i)
            else:
                step = steps[at] or kernel.step(at)
                step[0](R, U, P, Q, bank, self)
            at += 1
