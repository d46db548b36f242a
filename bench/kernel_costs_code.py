"""Kernels' machine code as text: finds the disassembler, takes cubins out of object files, and reads what stands in them.

A kernel's instructions become Instruction objects with the control bits that the scheduler obeys (as worked out by maxas and
its successors; the same since Volta). An instruction is 128 bits; of them
    105-108   stall: cycles until the next instruction of the warp may issue
    110-112   the scoreboard that is set until a result has come (7: none)
    113-115   the scoreboard that is set until operands have been read (7: none)
    116-121   the scoreboards that must be clear before this one issues
"""
import glob
import os
import pathlib
import re
import shutil
import struct
import subprocess
import sys
import tempfile


class Problem(Exception):
    """What a user can mend: one line."""


TOOLS = pathlib.Path(__file__).resolve().parent.parent / "build-cards/tools"


def tool(name):
    """The path of a tool of the CUDA toolkit, or of Python's package for it: in TOOLS, or where Python finds packages."""
    folders = ["/usr/local/cuda/bin"]
    for folder in [str(TOOLS), *sys.path]:
        folders += glob.glob(os.path.join(folder or ".", "nvidia/cu*/bin"))
    found = shutil.which(name) or shutil.which(name, path=os.pathsep.join(folders))
    if found is None:
        wanted = "nvidia-cuda-nvdisasm nvidia-cuda-cuobjdump" if name in ("nvdisasm", "cuobjdump") else f"nvidia-cuda-{name}"
        raise Problem(f"{name} of the CUDA toolkit is not here: pip install --target {TOOLS} {wanted}")
    return found


def compiler_version():
    """nvcc's build, such as V13.0.88; kernels of another one differ. "unknown" where there is none."""
    try:
        told = subprocess.run([tool("nvcc"), "--version"], capture_output=True, text=True, check=True).stdout
        return re.search(r"V[\d.]+", told).group()
    except (Problem, OSError, subprocess.CalledProcessError, AttributeError):
        return "unknown"


# ---- ELF

class Cubin:
    """The kernels of a cubin: name -> (index of its symbol, bytes of parameters, [(offset, size) by place], base of them)."""

    def __init__(self, path):
        self.path = path
        self.data = data = pathlib.Path(path).read_bytes()
        if data[:4] != b"\x7fELF":
            raise Problem(f"{path} is no cubin")
        offset, = struct.unpack_from("<Q", data, 0x28)
        size, count, names = struct.unpack_from("<HHH", data, 0x3A)
        sections = []
        for i in range(count):
            name, kind = struct.unpack_from("<II", data, offset + i * size)
            _, _, at, length, link, info = struct.unpack_from("<QQQQII", data, offset + i * size + 8)
            sections.append((name, kind, at, length, link))
        self.sections = {self.text(sections[names][2] + s[0]): s for s in sections}
        _, _, at, length, link = self.sections[".symtab"]
        self.kernels = {}
        for index in range(length // 24):
            name, info, _, section, _, _ = struct.unpack_from("<IBBHQQ", data, at + index * 24)
            symbol = self.text(sections[link][2] + name)
            if info & 15 == 2 and ".nv.info." + symbol in self.sections:
                self.kernels[symbol] = (index, *self.parameters(symbol))

    def text(self, at):
        return self.data[at:self.data.index(b"\0", at)].decode()

    def table(self, kernel):
        """The constants that a kernel's jumps by a table read."""
        _, _, at, length, _ = self.sections.get(".nv.constant2." + kernel, (0, 0, 0, 0, 0))
        return self.data[at:at + length]

    def parameters(self, kernel):
        """The attributes of .nv.info: a byte of form, a byte of kind, then a value, or (form 4) a size and so many bytes."""
        _, _, at, length, _ = self.sections[".nv.info." + kernel]
        end, places, base, size = at + length, {}, 0x210, 0
        while at < end:
            form, kind, value = struct.unpack_from("<BBH", self.data, at)
            at += 4
            if form == 4:
                if kind == 0x17:  # a parameter
                    _, ordinal, offset, flags = struct.unpack_from("<IHHI", self.data, at)
                    places[ordinal] = (offset, flags >> 18)
                elif kind == 0x0A:  # where they lie in the constant bank
                    _, base, size = struct.unpack_from("<IHH", self.data, at)
                at += value
        return size, [places[i] for i in sorted(places)], base


def cubins(path, folder):
    """The cubins for sm_90a (or sm_90) of an object file, or the cubin that it is."""
    data = pathlib.Path(path).read_bytes()
    if data[:4] == b"\x7fELF" and data[0x12:0x14] == struct.pack("<H", 190):
        return [Cubin(path)]
    place = tempfile.mkdtemp(dir=folder)
    done = subprocess.run([tool("cuobjdump"), "-xelf", "sm_90", os.path.abspath(path)], cwd=place, capture_output=True, text=True)
    found = sorted(glob.glob(place + "/*sm_90*.cubin"))
    if done.returncode != 0 or not found:
        raise Problem(f"{path} holds no code for sm_90: {(done.stderr.strip().splitlines() or ['nothing was found'])[0]}")
    return [Cubin(name) for name in found]


def demangle(names):
    """The names as C++ writes them, without the parameters."""
    told = subprocess.run(["c++filt"], input="\n".join(names), capture_output=True, text=True).stdout.splitlines()
    return dict(zip(names, told)) if len(told) == len(names) else {name: name for name in names}


# ---- Instructions

class Instruction:
    __slots__ = ("place", "guard", "name", "base", "operands", "stall", "result", "read", "wait", "text", "target")

    def __init__(self, place, guard, name, operands, bits, text):
        self.place, self.guard, self.name, self.operands, self.text = place, guard, name, operands, text
        self.base, self.target = name.split(".")[0], None
        control = bits >> 105
        self.stall, self.result, self.read = control & 15, control >> 5 & 7, control >> 8 & 7
        self.wait = control >> 11 & 63


LINE = re.compile(r"\s+/\*([0-9a-f]{4,})\*/\s+(?:@(!?U?P[0-9T]+)\s+)?([A-Z][\w.]*)\s*(.*?)\s*;?\s*/\* 0x([0-9a-f]{16}) \*/")
HIGH = re.compile(r"\s+/\* 0x([0-9a-f]{16}) \*/")
LABEL = re.compile(r"^(\.L_x_\d+|\.text\.\w+|\$[\w$.]+):")
TARGET = re.compile(r"`\((\.L_x_\d+|\$[^)]+)\)")


def split_operands(text):
    """At the commas, but for those in brackets."""
    parts, depth, start = [], 0, 0
    for i, letter in enumerate(text):
        depth += (letter in "[(") - (letter in "])")
        if letter == "," and depth == 0:
            parts.append(text[start:i].strip())
            start = i + 1
    last = text[start:].strip()
    return parts + [last] if last else parts


def read_listing(lines):
    """The kernels of nvdisasm's text (-hex): name -> instructions. Jumps know the number of the instruction they go to."""
    kernels, code, labels, waiting, pending = {}, None, {}, None, []

    def finish():
        for instruction in code or []:
            match = TARGET.search(instruction.text)
            if match:
                instruction.target = labels.get(match.group(1))

    for line in lines:
        if waiting is not None:
            match = HIGH.match(line)
            if not match:
                raise Problem(f"this text of nvdisasm cannot be read: {line.strip()[:80]}")
            place, guard, name, text, low = waiting
            waiting = None
            for label in pending:
                labels[label] = len(code)
            pending = []
            code.append(Instruction(place, guard, name, split_operands(text), int(match.group(1), 16) << 64 | int(low, 16), text))
            continue
        match = LINE.match(line)
        if match:
            waiting = int(match.group(1), 16), match.group(2), match.group(3), match.group(4), match.group(5)
            continue
        match = LABEL.match(line)
        if match and match.group(1).startswith(".text."):
            finish()
            code, labels, pending = [], {}, []
            kernels[match.group(1)[6:]] = code
        elif match:
            pending.append(match.group(1))
    finish()
    return kernels


def disassemble(cubin, names):
    """The instructions of the kernels named."""
    indices = ",".join(str(cubin.kernels[name][0]) for name in names)
    done = subprocess.run([tool("nvdisasm"), "-hex", "-c", "-fun", indices, cubin.path], capture_output=True, text=True)
    if done.returncode != 0:
        raise Problem(f"nvdisasm: {(done.stderr.strip().splitlines() or ['failed'])[0]}")
    return read_listing(done.stdout.splitlines())
