#!/usr/bin/env python3
"""Measures the rows of bench_gpu beside their limits and PyTorch, in turn, and writes the table: called by bench/gpu.

    bench/gpu_table.py BENCH_GPU RESULTS COMMIT CHECKED PATTERN

Each row is measured ROUNDS times, ours, cuBLASLt's and PyTorch's one after the other in each round, so that clocks and heat are
the same for all; medians count. Tensor rows stand beside TENSOR_LIMIT, memory rows beside the copy row of the same run.
"""
import datetime
import pathlib
import re
import statistics
import subprocess
import sys
import time

ROUNDS, SECONDS, BUDGET_SECONDS = 5, 0.05, 420
TENSOR_LIMIT = 989.4e12  # dense bf16 of H100 and H200 SXM: boost clock times units; 790e12 is about what power allows

try:
    import torch
    import torch.nn.functional as F
    from torch.nn.attention import SDPBackend, sdpa_kernel
except ImportError:
    torch = None


class Ours:
    def __init__(self, program):
        self.process = subprocess.Popen([program, "--serve"], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, bufsize=1)

    def seconds(self, name):
        try:
            self.process.stdin.write(f"{name} {SECONDS}\n")
            line = self.process.stdout.readline().strip()
        except BrokenPipeError:
            line = ""
        if not line:
            sys.exit(f"bench/gpu: bench_gpu ended at row {name}")  # it said why
        if line.startswith("error"):
            raise RuntimeError(line)
        return float(line)


def timed(run):
    """Seconds of one run of a PyTorch function, as bench_gpu measures."""
    run()
    torch.cuda.synchronize()
    start, runs, more = time.perf_counter(), 0, 1
    while True:
        for _ in range(more):
            run()
        runs += more
        torch.cuda.synchronize()
        passed = time.perf_counter() - start
        if passed >= SECONDS:
            return passed / runs
        more = runs


def normal(*shape):
    return torch.randn(*shape, device="cuda", dtype=torch.bfloat16) * 0.5


def product_peer(name):
    form, _, shape = re.match(r"product/(\w+)/([^/]+)/([0-9x]+)$", name).groups()
    rows, inner, outer = map(int, shape.split("x"))
    x, w, dy = normal(rows, inner), normal(outer, inner), normal(rows, outer)
    return {"forward": lambda: F.linear(x, w), "input": lambda: dy @ w, "weight": lambda: dy.t() @ x}[form]


def attention_peer(name):
    batch, length, heads, groups, width = map(int, re.findall(r"\d+", name.split("/")[2]))
    q = normal(batch, heads, length, width).requires_grad_()
    k, v = (normal(batch, groups, length, width).requires_grad_() for _ in range(2))

    def with_backend(backend):
        def forward():
            with sdpa_kernel(backend):
                return F.scaled_dot_product_attention(q, k, v, is_causal=True, enable_gqa=heads != groups)

        if "/forward/" in name:
            return torch.no_grad()(forward)
        out = forward()
        gradient = torch.randn_like(out)
        return lambda: torch.autograd.grad(out, (q, k, v), gradient, retain_graph=True)

    # FlashAttention-2 and cuDNN, whichever is faster here.
    best = None
    for backend in (SDPBackend.FLASH_ATTENTION, SDPBackend.CUDNN_ATTENTION):
        try:
            run = with_backend(backend)
            seconds = timed(run)
        except RuntimeError as error:
            print(f"PyTorch, {name}, {backend}: {str(error).splitlines()[0]}", file=sys.stderr)
            continue
        best = (seconds, run) if best is None or seconds < best[0] else best
    return best and best[1]


def update_peer(_):
    parameter = torch.zeros(124475904, device="cuda", requires_grad=True)
    parameter.grad = torch.randn_like(parameter)
    optimizer = torch.optim.AdamW([parameter], fused=True)
    return optimizer.step


def norm_peer(name):
    rows, width = map(int, name.split("/")[2].split("x"))
    x, weight = normal(rows, width), normal(width)
    kind = name.split("/")[1]
    if kind == "layernorm":
        return lambda: F.layer_norm(x, (width,), weight)
    if kind == "rmsnorm":
        return torch.compile(lambda: F.rms_norm(x, (width,), weight))
    return None


SHAPES = {  # layers, width, heads, groups, feed-forward, vocabulary
    "gpt2-124m": (12, 768, 12, 12, 3072, 50304), "gpt2-350m": (24, 1024, 16, 16, 4096, 50304),
    "gpt2-1.3b": (24, 2048, 16, 16, 8192, 50304), "llama-1b": (16, 2048, 32, 8, 8192, 128256),
    "llama-3b": (28, 3072, 24, 8, 8192, 128256)}


def model_peer(name):
    """The same model in PyTorch: bf16 autocast over fp32 parameters, fused AdamW, torch.compile. Written for this comparison."""
    nn = torch.nn
    _, kind, place = name.split("/")
    layers, width, heads, groups, inner, vocabulary = SHAPES[kind]
    batch, length = map(int, re.findall(r"\d+", place))
    llama, head = kind.startswith("llama"), width // heads
    angles = torch.outer(torch.arange(length, device="cuda"), 10000.0 ** (-torch.arange(0, head, 2, device="cuda") / head))
    cos, sin = angles.cos().bfloat16(), angles.sin().bfloat16()

    def norm():
        return nn.RMSNorm(width) if llama else nn.LayerNorm(width)

    def turn(x):
        a, b = x.chunk(2, -1)
        return torch.cat((a * cos - b * sin, b * cos + a * sin), -1)

    class Block(nn.Module):
        def __init__(self):
            super().__init__()
            self.norm1, self.norm2 = norm(), norm()
            self.qkv = nn.Linear(width, (heads + 2 * groups) * head, bias=not llama)
            self.out = nn.Linear(width, width, bias=not llama)
            self.up = nn.Linear(width, 2 * inner if llama else inner, bias=not llama)
            self.down = nn.Linear(inner, width, bias=not llama)

        def forward(self, x):
            qkv = self.qkv(self.norm1(x)).view(batch, length, heads + 2 * groups, head).transpose(1, 2)
            q, k, v = qkv.split((heads, groups, groups), 1)
            if llama:
                q, k = turn(q), turn(k)
            y = F.scaled_dot_product_attention(q, k, v, is_causal=True, enable_gqa=heads != groups)
            x = x + self.out(y.transpose(1, 2).reshape(batch, length, width))
            h = self.up(self.norm2(x))
            if llama:
                gate, value = h.chunk(2, -1)
                return x + self.down(F.silu(gate) * value)
            return x + self.down(F.gelu(h, approximate="tanh"))

    class Model(nn.Module):
        def __init__(self):
            super().__init__()
            self.token = nn.Embedding(vocabulary, width)
            self.position = None if llama else nn.Embedding(length, width)
            self.blocks = nn.ModuleList(Block() for _ in range(layers))
            self.norm = norm()
            self.head = nn.Linear(width, vocabulary, bias=False)
            if not llama:
                self.head.weight = self.token.weight

        def forward(self, tokens, targets):
            x = self.token(tokens)
            if self.position is not None:
                x = x + self.position.weight
            for block in self.blocks:
                x = block(x)
            return F.cross_entropy(self.head(self.norm(x)).view(-1, vocabulary), targets.view(-1))

    with torch.device("cuda"):
        model = Model()
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-4, weight_decay=0.1, fused=True)
    tokens, targets = (torch.randint(vocabulary, (batch, length), device="cuda") for _ in range(2))
    compiled = torch.compile(model)

    def step():
        optimizer.zero_grad(set_to_none=True)
        with torch.autocast("cuda", dtype=torch.bfloat16):
            loss = compiled(tokens, targets)
        loss.backward()
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()

    return step


PEERS = (("product/", product_peer), ("attention/", attention_peer), ("update/", update_peer), ("rows/", norm_peer),
         ("step/", model_peer))


def peer_of(name):
    """A PyTorch function that does what the row does, or None."""
    if torch is None or not torch.cuda.is_available():
        return None
    for prefix, make in PEERS:
        if name.startswith(prefix):
            try:
                return make(name)
            except Exception as error:  # a peer that cannot do a row is left out of it
                print(f"PyTorch, {name}: {error}", file=sys.stderr)
    return None


def describe_machine():
    try:
        line = subprocess.run(["nvidia-smi", "--query-gpu=name,driver_version,clocks.max.sm,power.limit", "--format=csv,noheader"],
                              capture_output=True, text=True, check=True).stdout.splitlines()[0]
    except (OSError, subprocess.CalledProcessError, IndexError):
        line = "unknown card"
    return line + (f"; PyTorch {torch.__version__}" if torch else "; no PyTorch")


def main():
    program, results, commit, checked, pattern = sys.argv[1:]
    listed = [line.split() for line in subprocess.run([program, "--list"], capture_output=True, text=True, check=True).stdout.splitlines()]
    rows = {name: (limit, float(work)) for name, limit, work in listed}
    chosen = [n for n in rows if re.search(pattern, n) and not n.endswith("/cublas")]
    if torch:
        torch.set_float32_matmul_precision("high")
    ours, start, bandwidth = Ours(program), time.time(), None
    lines = ["| row | ours | of the limit | cuBLASLt | ours / cuBLASLt | PyTorch | ours / PyTorch |", "|---|---|---|---|---|---|---|"]
    copies = [n for n in rows if n.startswith("rows/copy/")]
    for name in copies + [n for n in chosen if n not in copies]:
        if time.time() - start > BUDGET_SECONDS:
            lines.append(f"| {name} | not measured: time was up | | | | | |")
            continue
        limit, work = rows[name]
        peer = peer_of(name)
        times = {"ours": [], "cublas": [], "torch": []}
        try:
            for _ in range(ROUNDS):
                times["ours"].append(ours.seconds(name))
                if name + "/cublas" in rows:
                    times["cublas"].append(ours.seconds(name + "/cublas"))
                if peer:
                    times["torch"].append(timed(peer))
        except Exception as error:
            lines.append(f"| {name} | {str(error)[:120]} | | | | | |")
            continue
        finally:
            del peer
            if torch and torch.cuda.is_available():
                torch.cuda.empty_cache()
        speed = {k: work / statistics.median(v) for k, v in times.items() if v}
        if name in copies:
            bandwidth = speed["ours"]
        ceiling = TENSOR_LIMIT if limit == "tensor" else bandwidth
        unit, scale = ("TFLOP/s", 1e-12) if limit == "tensor" else ("GB/s", 1e-9)
        cells = [name, f"{speed['ours'] * scale:.0f} {unit}", f"{100 * speed['ours'] / ceiling:.0f} %" if ceiling else ""]
        for other in ("cublas", "torch"):
            known = other in speed
            cells += [f"{speed[other] * scale:.0f}" if known else "", f"{speed['ours'] / speed[other]:.2f}" if known else ""]
        lines.append("| " + " | ".join(cells) + " |")
        print(lines[-1], flush=True)
    ours.process.stdin.close()
    date = datetime.date.today().isoformat()
    text = [f"# A card, {date}, commit {commit}", "", describe_machine(), "", f"Checks: {checked}.", "",
            f"Medians of {ROUNDS} rounds in which ours and the peers take turns; inputs are normal random numbers. Limit of tensor rows: "
            f"{TENSOR_LIMIT * 1e-12:.0f} TFLOP/s (dense bf16 of an H200 at its highest clock); of memory rows: the copy row.", ""] + lines
    path = pathlib.Path(results) / f"gpu-{date}.md"
    path.write_text("\n".join(text) + "\n", encoding="utf-8")
    print(f"saved as {path}")


if __name__ == "__main__":
    main()
