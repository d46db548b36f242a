#!/usr/bin/env python3
"""bench/kernel_costs: instructions are read and walked as the machine would, and what is added to a kernel shows in its numbers.

What reads text and follows it is tried on a few lines of machine code, without a compiler. Where nvcc and the disassembler are, a
matrix product is compiled as it is and with a planted exponential, fence and spill; where there is a build for cards too
(cmake --preset cards), the predicted times of the four are compared.
"""
import contextlib
import io
import json
import os
import pathlib
import re
import subprocess
import sys
import tempfile
import unittest

ROOT = pathlib.Path(os.environ["ATHANOR_SOURCE"])
sys.path.insert(0, str(ROOT / "bench"))
import kernel_costs  # noqa: E402
import kernel_costs_code as code_of  # noqa: E402
from kernel_costs_time import Clock, clock_rate  # noqa: E402
from kernel_costs_walk import Block, Kernel, Launch, Partly, Walk, compile_step, lop3  # noqa: E402

# Counts down from a parameter, tells thread 0 alone to store, and stops: as nvdisasm -hex -c prints it. Control bits are those of
# the compiler: the load sets scoreboard 1, and the comparison waits for it.
LISTING = """
.text._Z4loopPii:
        /*0000*/                   LDC R0, c[0x0][0x218] ;                          /* 0x0000860000007b82 */
                                                                                    /* 0x000e420000000800 */
        /*0010*/                   S2R R3, SR_TID.X ;                               /* 0x0000000000037919 */
                                                                                    /* 0x000e820000002100 */
.L_x_0:
        /*0020*/                   VIADD R0, R0, 0xffffffff ;                       /* 0xffffffff00007836 */
                                                                                    /* 0x002fca0000000000 */
        /*0030*/                   FFMA R5, R5, R5, R5.reuse ;                      /* 0x0000000505057223 */
                                                                                    /* 0x000fc20000000005 */
        /*0040*/                   ISETP.NE.AND P0, PT, R0, RZ, PT ;                /* 0x000000ff0000720c */
                                                                                    /* 0x000fda0003f05270 */
        /*0050*/               @P0 BRA `(.L_x_0) ;                                  /* 0xfffffffc00f00947 */
                                                                                    /* 0x000fca000383ffff */
        /*0060*/                   ISETP.NE.AND P0, PT, R3, RZ, PT ;                /* 0x000000ff0300720c */
                                                                                    /* 0x004fda0003f05270 */
        /*0070*/               @P0 EXIT ;                                           /* 0x000000000000094d */
                                                                                    /* 0x000fca0003800000 */
        /*0080*/                   STG.E desc[UR4][R6.64], R5 ;                     /* 0x0000000506007986 */
                                                                                    /* 0x000fc2000c101904 */
        /*0090*/                   EXIT ;                                           /* 0x000000000000794d */
                                                                                    /* 0x000fca0003800000 */
"""


def read(text=LISTING):
    return code_of.read_listing(text.splitlines())


def walk(code, parameters=b"", thread=0, block=None):
    launch = Launch(Kernel("k", code, 0x210), [1, 1, 1], 128, 1, 0, parameters)
    return Walk(block or Block(launch, 0), thread)


class Machine:
    """Registers to try single instructions on."""

    def __init__(self, **values):
        self.R, self.U, self.P, self.Q = [None] * 260, [None] * 68, [None] * 7 + [1], [None] * 7 + [1]
        for name, number in values.items():
            getattr(self, name[0])[int(name[1:])] = number

    def do(self, text):
        name, _, operands = text.partition(" ")
        instruction = code_of.Instruction(0, None, name, code_of.split_operands(operands), 0, operands)
        helper = walk([])
        helper.R, helper.U, helper.P, helper.Q = self.R, self.U, self.P, self.Q
        compile_step(instruction)[0](self.R, self.U, self.P, self.Q, [0] * 256, helper)
        return self


class Reading(unittest.TestCase):
    def test_instructions(self):
        code = read()["_Z4loopPii"]
        self.assertEqual([i.base for i in code], ["LDC", "S2R", "VIADD", "FFMA", "ISETP", "BRA", "ISETP", "EXIT", "STG", "EXIT"])
        self.assertEqual(code[5].target, 2)
        self.assertEqual([i.guard for i in code], [None] * 5 + ["P0", None, "P0", None, None])
        self.assertEqual(code[8].operands, ["desc[UR4][R6.64]", "R5"])
        # The compiler's marks: who sets scoreboards 1 and 2, who waits for them, and how long the next must wait.
        self.assertEqual([i.result for i in code[:3]], [1, 2, 7])
        self.assertEqual([i.wait for i in code[:7]], [0, 0, 2, 0, 0, 0, 4])
        self.assertEqual([code[n].stall for n in (2, 4)], [5, 13])

    def test_broken_text(self):
        with self.assertRaisesRegex(code_of.Problem, "cannot be read"):
            read("\n".join(line for n, line in enumerate(LISTING.splitlines()) if n != 10))


class Walking(unittest.TestCase):
    def test_loop(self):
        for count in (1, 7):
            made = walk(read()["_Z4loopPii"], b"\0" * 8 + count.to_bytes(4, "little"))
            self.assertEqual(len(made.trace), 2 + 4 * count + 4)
            self.assertEqual(made.guesses, {})
        self.assertEqual(len(walk(read()["_Z4loopPii"], b"\0" * 8 + b"\1\0\0\0", thread=3).trace), 8)  # no store

    def test_arithmetic(self):
        for text, given, wanted in (
                ("IADD3 R1, P0, R2, R3, RZ", {"R2": 0xFFFFFFFF, "R3": 2}, {"R1": 1, "P0": 1}),
                ("IADD3 R1, P0, -R2, R3, RZ", {"R2": 5, "R3": 4}, {"R1": 0xFFFFFFFF, "P0": 0}),
                ("IADD3 R1, P0, -R2, R3, RZ", {"R2": 0, "R3": 4}, {"R1": 4, "P0": 1}),
                ("IADD3.X R1, R2, ~R3, RZ, P0, !PT", {"R2": 9, "R3": 4, "P0": 1}, {"R1": 5}),
                ("IMAD R1, R2, R3, -R4", {"R2": 7, "R3": 6, "R4": 2}, {"R1": 40}),
                ("IMAD.WIDE.U32 R2, R4, R5, R6", {"R4": 1 << 31, "R5": 4, "R6": 1, "R7": 1}, {"R2": 1, "R3": 3}),
                ("IMAD.HI.U32 R1, R2, R3, RZ", {"R2": 0xAAAAAAAB, "R3": 300}, {"R1": 200}),
                ("LEA R1, P0, R2, R3, 0x2", {"R2": 3, "R3": 5}, {"R1": 17, "P0": 0}),
                ("LEA.HI.X R1, R2, R3, R4, 0x4, P0", {"R2": 0xF0000000, "R3": 2, "R4": 1, "P0": 1}, {"R1": 0x1F + 3}),
                ("SHF.R.S32.HI R1, RZ, 0x1f, R2", {"R2": 0x80000000}, {"R1": 0xFFFFFFFF}),
                ("SHF.L.U64.HI R1, R2, 0x4, R3", {"R2": 0xF0000000, "R3": 1}, {"R1": 0x1F}),
                ("LOP3.LUT P0, R1, R2, 0xf, RZ, 0xc0, !PT", {"R2": 0x30}, {"R1": 0, "P0": 0}),
                ("LOP3.LUT R1, R2, R3, R4, 0x96, !PT", {"R2": 1, "R3": 3, "R4": 7}, {"R1": 5}),
                ("ISETP.LT.AND P0, P1, R2, 0x0, PT", {"R2": 0xFFFFFFFF}, {"P0": 1, "P1": 0}),
                ("ISETP.LT.U32.AND P0, PT, R2, 0x1, PT", {"R2": 0xFFFFFFFF}, {"P0": 0}),
                ("ISETP.GE.U32.AND.EX P0, PT, R2, R3, PT, P1", {"R2": 4, "R3": 4, "P1": 0}, {"P0": 0}),
                ("ISETP.EQ.OR P0, PT, R2, RZ, P1", {"P1": 1}, {"P0": 1}),
                ("SEL R1, R2, R3, !P0", {"R2": 1, "R3": 2, "P0": 1}, {"R1": 2}),
                ("VIADDMNMX.U32 R1, R2, R3, 0x2, PT", {"R2": 0, "R3": 0xFFFFFFFF}, {"R1": 2}),
                ("VIMNMX R1, R2, R3, !PT", {"R2": 0xFFFFFFFF, "R3": 3}, {"R1": 3}),
                ("PRMT R1, R2, 0x7632, R3", {"R2": 0x11223344, "R3": 0x55667788}, {"R1": 0x55661122}),
                ("PLOP3.LUT P0, PT, P1, P2, PT, 0x80, 0x0", {"P1": 0}, {"P0": 0}),
                ("FADD R1, R2, R3", {"R1": 5}, {"R1": None})):
            with self.subTest(text):
                machine = Machine(**given).do(text)
                for name, number in wanted.items():
                    self.assertEqual(getattr(machine, name[0])[int(name[1:])], number, name)

    def test_division(self):
        """The compiler's way to divide: a reciprocal in floating point, then mended."""
        for a, b in ((1000, 7), (16384, 3), (5, 9), (4095, 1)):
            machine = Machine(R1=a, R2=b)
            for text in ("I2F.U32.RP R3, R2", "MUFU.RCP R3, R3", "VIADD R4, R3, 0xffffffe", "F2I.FTZ.U32.TRUNC.NTZ R5, R4",
                         "IMAD.MOV.U32 R4, RZ, RZ, RZ", "IMAD.MOV R6, RZ, RZ, -R5", "IMAD R6, R6, R2, RZ", "IMAD.HI.U32 R5, R5, R6, R4",
                         "IMAD.HI.U32 R5, R5, R1, RZ"):
                machine.do(text)
            self.assertIn(machine.R[5], (a // b, a // b - 1))

    def test_unknown_bits(self):
        known = lop3(0xC0, None, 0xFFFFFFFD, 0)
        self.assertIsInstance(known, Partly)
        self.assertEqual(lop3(0xC0, lop3(0xFC, known, 8, 0), 8, 0), 8)
        self.assertEqual(lop3(0xC0, known, 2, 0), 0)

    def test_hidden_writes(self):
        """What another thread wrote is seen behind its arrival at a barrier that was waited for, and not before."""
        block = Block(Launch(Kernel("k", [], 0x210), [1, 1, 1], 384, 1, 0, b""), 0)
        writer, reader = (walk([], block=block, thread=t) for t in (0, 128))
        for number in (10, 11):
            block.writes.setdefault(64, []).append((0, writer.tick(), number))
            writer.arrive("full")
        self.assertIsNone(reader.shared_load(64))
        reader.seen("full", 0)
        self.assertEqual(reader.shared_load(64), 10)
        reader.seen("full", 1)
        self.assertEqual(reader.shared_load(64), 11)


def instructions(*lines):
    """Instructions as (text, stall, result, wait)."""
    made = []
    for n, (text, stall, result, wait) in enumerate(lines):
        name, _, operands = text.partition(" ")
        bits = (stall | result << 5 | 7 << 8 | wait << 11) << 105
        made.append(code_of.Instruction(16 * n, None, name, code_of.split_operands(operands), bits, operands))
    return made


class Timing(unittest.TestCase):
    def time(self, lines, threads=(128,)):
        code = instructions(*lines, ("EXIT ", 1, 7, 0))
        return Clock(code, {t: walk(code, thread=t) for t in threads}, threads)

    def test_slots_and_pipes(self):
        adds = [("FADD R1, R2, R3", 1, 7, 0)] * 100
        self.assertAlmostEqual(self.time(adds).time, 100, delta=10)
        self.assertAlmostEqual(self.time(adds, (128, 256)).time, 200, delta=10)  # one scheduler
        self.assertAlmostEqual(self.time([("MUFU.EX2 R1, R1", 1, 0, 0)] * 100).time, 800, delta=30)

    def test_scoreboards(self):
        self.assertGreater(self.time([("LDG.E R1, desc[UR4][R2.64]", 1, 0, 0), ("FADD R1, R1, R1", 1, 7, 1)]).time, 280)
        self.assertLess(self.time([("LDG.E R1, desc[UR4][R2.64]", 1, 0, 0), ("FADD R2, R2, R2", 1, 7, 0)]).time, 20)

    def test_tensor_cores(self):
        product = [("HGMMA.64x256x16.F32.BF16 R24, gdesc[UR4], R24", 1, 7, 0)] * 3 + \
            [("HGMMA.64x256x16.F32.BF16 R24, gdesc[UR4], R24, gsb0", 1, 7, 0), ("WARPGROUP.DEPBAR.LE gsb0, 0x0", 1, 7, 0)]
        one, two = self.time(product), self.time(product, (128, 256))
        self.assertEqual((one.tensor_busy, two.tensor_busy), (512, 1024))
        self.assertAlmostEqual(two.time - one.time, 512, delta=10)
        # 64 x 32 x 16 from shared memory alone: its operands, 3 KiB, take longer than its 16 cycles.
        narrow = self.time([("HGMMA.64x32x16.F32.BF16 R24, gdesc[UR4], R24", 1, 7, 0)] * 8)
        self.assertEqual(narrow.tensor_busy, 8 * 24)

    def test_fences(self):
        plain = self.time([("MEMBAR.ALL.CTA ", 1, 7, 0)]).time
        self.assertGreater(self.time([("MEMBAR.ALL.GPU ", 1, 7, 0)]).time, plain + 300)

    def test_clock(self):
        self.assertGreater(clock_rate(0.2), clock_rate(0.9))
        self.assertAlmostEqual(clock_rate(0.97) * 0.97 * 4096 * 132 / 1e12, 798, delta=16)  # what it is calibrated by


class Documents(unittest.TestCase):
    RESULTS = {"a row": {"value": 500, "unit": "TFLOP/s", "us": 2.0, "kernels": []}}

    def check(self, made_by, results):
        with tempfile.NamedTemporaryFile("w", suffix=".md") as file:
            file.write(kernel_costs.markdown(self.RESULTS, made_by, None))
            file.flush()
            told = io.StringIO()
            with contextlib.redirect_stdout(told):
                code = kernel_costs.check(file.name, results, "V1.0", None)
            return code, told.getvalue()

    def test_check(self):
        other = {"a row": {**self.RESULTS["a row"], "value": 501}}
        self.assertEqual(self.check("V1.0", self.RESULTS)[0], 0)
        code, told = self.check("V1.0", other)
        self.assertEqual(code, 1)
        self.assertIn("- | a row | 500", told)
        self.assertIn("+ | a row | 501", told)
        code, told = self.check("V2.0", other)
        self.assertEqual((code, "not compared" in told), (0, True))

    def test_before_and_after(self):
        before = {"commit": "abc", "compiler": "V1.0", "rows": {"a row": {**self.RESULTS["a row"], "value": 400}}}
        self.assertIn("| a row | 400 → 500 TFLOP/s | 2.0 |", kernel_costs.markdown(self.RESULTS, "V1.0", before))

    def test_committed(self):
        """The document has a row for each thing that is predicted, and the numbers before are of the same rows."""
        names = [row.name for row in kernel_costs.product_rows() + kernel_costs.attention_rows() + kernel_costs.memory_rows()]
        names += [name for name, _, _ in kernel_costs.sums()]
        text = (ROOT / "docs/kernel_costs.md").read_text()
        self.assertEqual([name for name in names if f"| {name} |" not in text], [])
        self.assertEqual(list(json.loads((ROOT / "bench/kernel_costs_before.json").read_text())["rows"]), names)

    def test_errors_are_one_line(self):
        with tempfile.NamedTemporaryFile("wb", suffix=".o") as cut:
            cut.write(b"\x7fELF")
            cut.flush()
            self.check_errors(cut.name)

    def check_errors(self, cut):
        for arguments, told in ((["--build", "/nonexistent"], "holds no kernels"), (["/nonexistent.o"], "is no file"), ([cut], "bench/kernel_costs: "),
                                (["--rows", "("], "no regular expression"), (["--against", str(ROOT / "README.md")], "holds no numbers"),
                                (["--against", "/nonexistent"], "/nonexistent: No such file"), (["--json", "/nonexistent/x"], "/nonexistent/x: No such file"),
                                (["--check", "/nonexistent"], "/nonexistent: No such file")):
            done = subprocess.run([ROOT / "bench/kernel_costs", *arguments], capture_output=True, text=True)
            self.assertEqual((done.returncode, done.stderr.count("\n")), (1, 1), done.stderr)
            self.assertIn(told, done.stderr)


# ---- A product with something planted

PLANTED = {
    "as it is": "",
    "exponential": "template <typename T> __device__ __forceinline__ uint32_t with_expf(float a, float b) {\n"
                   "    return pack_two<T>(expf(a), b);\n}\n#define pack_two with_expf\n",
    "fence": "__device__ __forceinline__ void fence_twice() {\n    fence_async();\n    __threadfence();\n}\n#define fence_async fence_twice\n",
    "spill": "__device__ __forceinline__ void fence_spilled() {\n    volatile int held[8];\n"
             "    for (int i = 0; i < 8; i++) {\n        held[i] = (int)threadIdx.x * i;\n    }\n"
             "    asm volatile(\"\" ::\"r\"(held[threadIdx.x / 3 % 8]));\n    fence_async();\n}\n#define fence_async fence_spilled\n",
}
ROWS = "124M up forward"


def unit(planted):
    return ('#include "kernels/cuda/activation.h"\n#include "kernels/cuda/ptx.h"\nnamespace BACKEND {\n' + PLANTED[planted] +
            '}\n#include "kernels/cuda/matmul_sm90.h"\nnamespace BACKEND {\n'
            "void *const product = (void *)sm90_product<bf16, 256, PRODUCT_FORWARD, ACTIVATION_GELU_TANH>;\n}\n")


class Planted(unittest.TestCase):
    @classmethod
    def setUpClass(cls):
        try:
            nvcc = code_of.tool("nvcc")
            code_of.tool("nvdisasm")
        except code_of.Problem as problem:
            raise unittest.SkipTest(str(problem)) from None
        cls.folder = tempfile.TemporaryDirectory(prefix="athanor-costs-")
        cls.cubins = {}
        for name in PLANTED:
            source = pathlib.Path(cls.folder.name, name.replace(" ", "-") + ".cu")
            source.write_text(unit(name))
            cls.cubins[name] = str(source.with_suffix(".cubin"))
            subprocess.run([nvcc, "-cubin", "-arch=sm_90a", "-O3", "-DNDEBUG", "-std=c++20", "-lineinfo", "--expt-relaxed-constexpr", "-w",
                            "-DBACKEND=cuda", "-D_GNU_SOURCE", f"-I{ROOT}", "-o", cls.cubins[name], source], check=True)

    @classmethod
    def tearDownClass(cls):
        cls.folder.cleanup()

    def static(self, name):
        cubin, = code_of.cubins(self.cubins[name], self.folder.name)
        code, = code_of.disassemble(cubin, list(cubin.kernels)).values()
        return kernel_costs.kinds(code, range(len(code)))

    def test_instructions(self):
        plain = self.static("as it is")
        self.assertEqual((plain["spills"], plain["calls"] >= 0), (0, True))
        for name, kind, least in (("exponential", "MUFU", 32), ("fence", "fences", 4), ("spill", "spills", 8)):
            counts = self.static(name)
            self.assertGreaterEqual(counts[kind], plain[kind] + least, name)
            for other in ("wgmma", "MUFU", "fences", "spills"):
                if other != kind:
                    self.assertEqual(counts[other], plain[other], f"{name}: {other}")

    def test_predictions(self):
        if not list((ROOT / "build-cards").rglob("matmul_sm90.cu.o")) or not (ROOT / "build-cards/libathanor_kernels.a").exists():
            self.skipTest("no build for cards here: cmake --preset cards && cmake --build --preset cards")
        told = {}
        for name, cubin in self.cubins.items():
            numbers = os.path.join(self.folder.name, "numbers.json")
            subprocess.run([ROOT / "bench/kernel_costs", "--kernels", cubin, "--rows", ROWS, "--json", numbers], check=True,
                           stdout=subprocess.DEVNULL)
            told[name] = next(iter(json.loads(pathlib.Path(numbers).read_text())["rows"].values()))
        plain = told["as it is"]["kernels"][0]
        for name, kind, least in (("exponential", "MUFU", 64), ("fence", "fences", 8), ("spill", "spills", 8)):
            planted = told[name]["kernels"][0]
            self.assertGreaterEqual(planted[kind], plain[kind] + least, name)
            self.assertGreater(planted["end slots"], plain["end slots"], name)
            self.assertGreater(planted["exposed"], plain["exposed"], name)
            self.assertGreaterEqual(told[name]["us"], told["as it is"]["us"], name)
        self.assertEqual(plain["spills"], 0)


if __name__ == "__main__":
    unittest.main(verbosity=2)
