#!/usr/bin/env python3
"""What PyTorch does in the place of bench_gpu's rows, served as bench_gpu serves its own: started by bench/gpu_table.py.

    bench/gpu_peers.py [--device cpu]

Answers each line of standard input with one. "NAME SECONDS KEY=VALUE...", a row as `bench_gpu --list` tells it: the seconds of
one run (a mean over runs that take at least SECONDS together, after one that does not count) and in words what ran; or "absent:
why"; or "error: why" where the card failed, which nothing but a new process mends, so that this one ends. A peer is held for
further lines of the same name; "release" frees it and answers "released". --device cpu is for rehearsals: the same code with small
sizes on a machine without a card.
"""
import gc
import re
import sys
import time

try:
    import torch
    import torch.nn.functional as F
    from torch.nn.attention import SDPBackend, sdpa_kernel
except ImportError as error:
    torch, no_torch = None, str(error)

DEVICE = "cuda"


class Absent(Exception):
    """There is no such peer here; says why."""


def finish():
    if DEVICE == "cuda":
        torch.cuda.synchronize()


def timed(run, seconds):
    """Seconds of one run of a function, as bench_gpu measures."""
    run()
    finish()
    start, runs, more = time.perf_counter(), 0, 1
    while True:
        for _ in range(more):
            run()
        runs += more
        finish()
        passed = time.perf_counter() - start
        if passed >= seconds:
            return passed / runs
        more = runs


def normal(*shape):
    return torch.randn(*shape, device=DEVICE, dtype=torch.bfloat16) * 0.5


def first_line(error):
    return (str(error).splitlines() or [type(error).__name__])[0][:200]


def product_peer(name, _):
    """Without an epilogue as it is, with one compiled: what is kept for the backward pass is among the results."""
    form, what, shape = re.match(r"product/(\w+)/([^/]+)/([0-9x]+)$", name).groups()
    rows, inner, outer = map(int, shape.split("x"))
    x, w, dy, bias = normal(rows, inner), normal(outer, inner), normal(rows, outer), normal(outer)

    def up_gelu():
        pre = F.linear(x, w, bias)
        return F.gelu(pre, approximate="tanh"), pre

    def down_gelu():
        return torch.ops.aten.gelu_backward(dy @ w, pre, approximate="tanh")

    def up_gated():
        pre = F.linear(x, w)
        gate, value = pre.chunk(2, -1)
        return F.silu(gate) * value, pre

    def down_gated():
        d, (gate, value) = dy @ w, pre.chunk(2, -1)
        s = torch.sigmoid(gate)
        return torch.cat((d * value * s * (1 + gate * (1 - s)), d * gate * s), -1)

    epilogues = {"up-gelu": up_gelu, "down-gelu": down_gelu, "up-gated": up_gated, "down-gated": down_gated,
                 "residual": lambda: F.linear(x, w, bias) + dy, "bias": lambda: F.linear(x, w, bias)}
    kind = next((kind for kind in epilogues if what.endswith(kind)), None)
    if kind is not None:
        pre = normal(rows, inner * (2 if "gated" in kind else 1)) if form == "input" else None
        return torch.compile(epilogues[kind]), "compiled"
    return {"forward": lambda: F.linear(x, w), "input": lambda: dy @ w, "weight": lambda: dy.t() @ x}[form], "eager"


def classifier_peer(name, _):
    """Cross-entropy in fp32 of logits in bf16, compiled; with the gradients that the row has."""
    _, kind, shape = name.split("/")
    rows, width, vocabulary = map(int, shape.split("x"))
    x, w = normal(rows, width), normal(vocabulary, width)
    targets = torch.randint(vocabulary, (rows,), device=DEVICE)
    loss = torch.compile(lambda: F.cross_entropy(F.linear(x, w).float(), targets))
    if kind == "loss":
        return torch.no_grad()(loss), "compiled"
    wanted = [x.requires_grad_()] + ([w.requires_grad_()] if kind == "whole" else [])
    return lambda: torch.autograd.grad(loss(), wanted), "compiled"


def attention_peer(name, _):
    """FlashAttention-2 or cuDNN, whichever is faster here; in rows "deterministic" asked to be so."""
    kind, place = name.split("/")[1:]
    batch, length, heads, groups, width = map(int, re.findall(r"\d+", place))
    q = normal(batch, heads, length, width).requires_grad_()
    k, v = (normal(batch, groups, length, width).requires_grad_() for _ in range(2))
    if kind == "deterministic":
        torch.use_deterministic_algorithms(True)
        torch.utils.deterministic.fill_uninitialized_memory = False  # which would cost it a pass over its results

    def with_backend(backend):
        def forward():
            with sdpa_kernel(backend):
                return F.scaled_dot_product_attention(q, k, v, is_causal=True, enable_gqa=heads != groups)

        if kind == "forward":
            return torch.no_grad()(forward)
        out = forward()
        gradient = torch.randn_like(out)
        return lambda: torch.autograd.grad(out, (q, k, v), gradient, retain_graph=True)

    best, reasons = None, []
    for backend in (SDPBackend.FLASH_ATTENTION, SDPBackend.CUDNN_ATTENTION):
        try:
            run = with_backend(backend)
            seconds = timed(run, 0.01)
        except RuntimeError as error:
            reasons.append(f"{backend.name}: {first_line(error).split('. ')[0]}")
            continue
        if best is None or seconds < best[0]:
            best = (seconds, run, backend.name)
    if best is None:
        raise Absent("; ".join(reasons))
    return best[1], best[2] + "".join(f" (absent: {reason})" for reason in reasons)


def update_peer(name, _):
    _, kind, count = name.split("/")
    small = kind == "adamw-small"
    parameter = torch.zeros(int(count), device=DEVICE, dtype=torch.bfloat16 if small else torch.float32, requires_grad=True)
    parameter.grad = torch.randn_like(parameter)
    return (torch.optim.AdamW([parameter], fused=True).step,
            "fused AdamW, all of it in bf16" if small else "fused AdamW in fp32, without a copy in bf16")


def rows_peer(name, _):
    kind, shape = name.split("/")[1:]
    rows, width = map(int, shape.split("x"))
    x = normal(rows, width)
    if kind == "copy":
        y = torch.empty_like(x)
        return lambda: y.copy_(x), "eager"
    if kind == "add":
        y = normal(rows, width)
        return lambda: y.add_(x), "eager"
    if kind == "swiglu":
        return torch.compile(lambda: F.silu(x[:, :width // 2]) * x[:, width // 2:]), "compiled"
    if kind == "sum-of-squares":
        x = x.view(torch.float32)
        return torch.compile(lambda: x.square().sum()), "compiled"
    weight = normal(width)
    norm = {"layernorm": lambda: F.layer_norm(x, (width,), weight),
            "rmsnorm": torch.compile(lambda: F.rms_norm(x, (width,), weight))}[kind.removesuffix("-backward")]
    note = "eager" if kind.startswith("layernorm") else "compiled"
    if not kind.endswith("-backward"):
        return norm, note
    x.requires_grad_(), weight.requires_grad_()
    y = norm()
    gradient = torch.randn_like(y)
    return lambda: torch.autograd.grad(y, (x, weight), gradient, retain_graph=True), note


def model_peer(_, words):
    """The same model in PyTorch: bf16 autocast over fp32 parameters, fused AdamW, torch.compile. Written for this comparison.

    Where the row keeps the small state, bf16 parameters, gradients and moments: 8 bytes a parameter as ours, but updates that are
    rounded to nearest and moments of two bytes, and no recompute.
    """
    nn = torch.nn
    layers, width, heads, groups, inner, vocabulary, batch, length = (
        int(words[key]) for key in ("layers", "width", "heads", "groups", "inner", "vocabulary", "sequences", "length"))
    llama, head, small = words["family"] == "llama", width // heads, words["state"] == "small"
    angles = torch.outer(torch.arange(length, device=DEVICE), 10000.0 ** (-torch.arange(0, head, 2, device=DEVICE) / head))
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
            return F.cross_entropy(self.head(self.norm(x)).float().view(-1, vocabulary), targets.view(-1))

    torch.set_default_dtype(torch.bfloat16 if small else torch.float32)
    try:
        with torch.device(DEVICE):
            model = Model()
    finally:
        torch.set_default_dtype(torch.float32)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-4, weight_decay=0.1, fused=True)
    tokens, targets = (torch.randint(vocabulary, (batch, length), device=DEVICE) for _ in range(2))
    compiled = torch.compile(model)

    def step():
        optimizer.zero_grad(set_to_none=True)
        with torch.autocast(DEVICE, dtype=torch.bfloat16, enabled=not small):
            loss = compiled(tokens, targets)
        loss.backward()
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()

    return step, ("compiled; bf16 parameters, gradients and moments, no recompute" if small else
                  "compiled; bf16 autocast, fp32 parameters, fused AdamW")


PEERS = (("product/", product_peer), ("attention/", attention_peer), ("update/", update_peer), ("rows/", rows_peer),
         ("classifier/", classifier_peer), ("step/", model_peer))


def make(name, words):
    if torch is None:
        raise Absent(f"no PyTorch: {no_torch}")
    if DEVICE == "cuda" and not torch.cuda.is_available():
        raise Absent("this PyTorch sees no card")
    for prefix, peer in PEERS:
        if name.startswith(prefix):
            return peer(name, words)
    raise Absent("no peer was written for it")


def release():
    """Frees a peer's memory, which what was compiled, cycles and PyTorch's cache would keep."""
    if torch is None:
        return
    torch.use_deterministic_algorithms(False)
    torch._dynamo.reset()
    gc.collect()
    if DEVICE == "cuda" and torch.cuda.is_available():
        torch.cuda.empty_cache()


def main():
    global DEVICE
    if sys.argv[1:] == ["--device", "cpu"]:
        DEVICE = "cpu"
    elif sys.argv[1:]:
        sys.exit("gpu_peers.py: expected: gpu_peers.py [--device cpu]")
    if torch is not None:
        torch.set_float32_matmul_precision("high")
    held = {}
    for line in sys.stdin:
        words = line.split()
        lost = False
        if words == ["release"]:
            held = {}
            release()
            answer = "released"
        else:
            name, seconds = words[0], float(words[1])
            try:
                if name not in held:
                    held[name] = make(name, dict(word.split("=", 1) for word in words[2:]))
                run, note = held[name]
                answer = f"{timed(run, seconds):.9f} {note}"
            except Absent as error:
                answer = f"absent: {error}"
            except Exception as error:  # whatever PyTorch cannot do here; without memory it can still do the next row
                lost = "CUDA error" in str(error)
                answer = f"{'error' if lost else 'absent'}: {first_line(error)}"
                held = {}
            run = None
        print(answer, flush=True)
        if lost:
            sys.exit(1)


if __name__ == "__main__":
    main()
