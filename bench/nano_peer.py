"""The peer of bench/nano: nanoGPT's CPU recipe for a character-level model, on bytes, written plainly in PyTorch.

4 layers, 4 heads, width 128, context 64, batch 12, no dropout, no biases, tied head; AdamW(1e-3 -> 1e-4 cosine, 100 warm-up, betas 0.9 0.99,
decay 0.1 on matrices), clip 1.0, 2,000 steps; every 250 steps validation on the same 240 windows that athanor takes, at the end on all.
"""
import math
import sys
import time

import torch
import torch.nn as nn
import torch.nn.functional as F

LAYERS, HEADS, WIDTH, CONTEXT, BATCH, STEPS, VOCABULARY = 4, 4, 128, 64, 12, 2000, 256


class Block(nn.Module):
    def __init__(self):
        super().__init__()
        self.norm1, self.norm2 = nn.LayerNorm(WIDTH, bias=False), nn.LayerNorm(WIDTH, bias=False)
        self.qkv, self.out = nn.Linear(WIDTH, 3 * WIDTH, bias=False), nn.Linear(WIDTH, WIDTH, bias=False)
        self.up, self.down = nn.Linear(WIDTH, 4 * WIDTH, bias=False), nn.Linear(4 * WIDTH, WIDTH, bias=False)

    def forward(self, x):
        b, t, c = x.shape
        q, k, v = (y.view(b, t, HEADS, c // HEADS).transpose(1, 2) for y in self.qkv(self.norm1(x)).split(c, 2))
        y = F.scaled_dot_product_attention(q, k, v, is_causal=True)
        x = x + self.out(y.transpose(1, 2).reshape(b, t, c))
        return x + self.down(F.gelu(self.up(self.norm2(x))))


class Model(nn.Module):
    def __init__(self):
        super().__init__()
        self.token, self.position = nn.Embedding(VOCABULARY, WIDTH), nn.Embedding(CONTEXT, WIDTH)
        self.blocks = nn.ModuleList(Block() for _ in range(LAYERS))
        self.norm = nn.LayerNorm(WIDTH, bias=False)
        self.apply(lambda m: nn.init.normal_(m.weight, 0, 0.02) if isinstance(m, (nn.Linear, nn.Embedding)) else None)
        for block in self.blocks:
            for m in (block.out, block.down):
                nn.init.normal_(m.weight, 0, 0.02 / math.sqrt(2 * LAYERS))

    def forward(self, x, y):
        h = self.token(x) + self.position(torch.arange(x.shape[1]))
        for block in self.blocks:
            h = block(h)
        return F.cross_entropy((self.norm(h) @ self.token.weight.T).view(-1, VOCABULARY), y.view(-1))


def main():
    torch.manual_seed(1337)
    parts = {name: torch.frombuffer(bytearray(open(path, "rb").read()), dtype=torch.uint8).long() for name, path in zip(("train", "val"), sys.argv[1:])}

    def batch(part):
        data = parts[part]
        at = torch.randint(len(data) - CONTEXT, (BATCH,))
        return torch.stack([data[i:i + CONTEXT] for i in at]), torch.stack([data[i + 1:i + 1 + CONTEXT] for i in at])

    def held_out(most):
        """The mean loss over windows of the held-out text, spread evenly as athanor spreads them; most 0: all."""
        data, losses, count = parts["val"], 0.0, 0
        whole = (len(data) - 1 + CONTEXT - 1) // CONTEXT
        taken = min(most, whole) if most else whole
        starts = [int(j * whole / taken) * CONTEXT for j in range(taken)]
        starts = [i for i in starts if i + CONTEXT < len(data)]
        with torch.no_grad():
            for k in range(0, len(starts), BATCH):
                group = starts[k:k + BATCH]
                x = torch.stack([data[i:i + CONTEXT] for i in group])
                y = torch.stack([data[i + 1:i + 1 + CONTEXT] for i in group])
                losses += model(x, y).item() * len(group)
                count += len(group)
        return losses / count

    model = Model()
    groups = [{"params": [p for p in model.parameters() if p.dim() >= 2], "weight_decay": 0.1},
              {"params": [p for p in model.parameters() if p.dim() < 2], "weight_decay": 0.0}]
    optimizer = torch.optim.AdamW(groups, lr=1e-3, betas=(0.9, 0.99))
    start, validating = time.time(), 0.0
    for step in range(STEPS + 1):
        if step % 250 == 0:
            before = time.time()
            loss = held_out(240)
            validating += time.time() - before
            print(f"step {step}: held-out loss {loss:.4f}", flush=True)
        if step == STEPS:
            break
        rate = 1e-3 * (step + 1) / 100 if step < 100 else 1e-4 + 0.5 * (1 + math.cos(math.pi * (step - 100) / 1900)) * 9e-4
        for group in optimizer.param_groups:
            group["lr"] = rate
        model(*batch("train")).backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
    seconds = time.time() - start
    print(f"all of the held-out text: loss {held_out(0):.4f}")
    print(f"torch {torch.__version__}, {torch.get_num_threads()} threads: {seconds:.1f} s in all, {validating:.1f} s of it validating")


main()
