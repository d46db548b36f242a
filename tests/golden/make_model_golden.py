#!/usr/bin/env python3
"""Makes tests/golden/model/*.golden: what the published implementations compute on small random models.

    python3 tests/golden/make_model_golden.py        (needs torch and transformers; the tests themselves do not)

Each file: the line "athanor golden 1", then records "NAME TYPE COUNT\\n" followed by COUNT elements of little-endian data;
TYPE is f32, i32 or text (bytes). Records: config (our YAML), weight/NAME and grad/NAME under the published names, tokens,
targets, weights [B,T], logits [B,T,V], loss (of the weights and the z-loss), mean_loss (the library's own with labels).
Models run in float64 where the library does not insist on float32 (its norms, softmax and rotary tables).
"""
import os

import numpy
import torch
import transformers

FOLDER = os.path.join(os.path.dirname(os.path.abspath(__file__)), "model")
BATCH, LENGTH, VOCABULARY, Z_LOSS = 2, 17, 61, 1e-3


def record(out, name, kind, values):
    if kind == "text":
        data = values.encode()
        count = len(data)
    else:
        array = numpy.ascontiguousarray(values, dtype={"f32": "<f4", "i32": "<i4"}[kind]).reshape(-1)
        data, count = array.tobytes(), array.size
    out.write(f"{name} {kind} {count}\n".encode())
    out.write(data)


def randomise(model, generator):
    """Every parameter random, biases and norm weights included, and exactly representable in float32."""
    with torch.no_grad():
        for name, value in model.named_parameters():
            noise = torch.randn(value.shape, generator=generator, dtype=torch.float64)
            norm = value.dim() == 1 and name.endswith("weight")
            value.copy_(((1.0 if norm else 0.0) + 0.15 * noise).float().double())


def make(name, model, config):
    generator = torch.Generator().manual_seed(1234)
    model = model.double().eval()
    randomise(model, generator)
    tokens = torch.randint(0, VOCABULARY, (BATCH, LENGTH + 1), generator=generator)
    inputs, targets = tokens[:, :-1], tokens[:, 1:]
    weights = torch.rand((BATCH, LENGTH), generator=generator).float().double()
    weights[0, 3] = 0
    logits = model(inputs).logits.double()
    z = torch.logsumexp(logits, -1)
    losses = z - logits.gather(-1, targets[..., None])[..., 0]
    loss = (weights * (losses + Z_LOSS * z * z)).sum() / weights.sum()
    loss.backward()
    with torch.no_grad():
        mean_loss = model(tokens[:, :-1], labels=tokens[:, :-1]).loss
    with open(os.path.join(FOLDER, name + ".golden"), "wb") as out:
        out.write(b"athanor golden 1\n")
        record(out, "config", "text", config)
        record(out, "shape", "i32", [BATCH, LENGTH, VOCABULARY])
        record(out, "tokens", "i32", inputs.numpy())
        record(out, "targets", "i32", targets.numpy())
        record(out, "weights", "f32", weights.numpy())
        record(out, "z_loss", "f32", [Z_LOSS])
        record(out, "logits", "f32", logits.detach().numpy())
        record(out, "loss", "f32", [loss.item()])
        record(out, "mean_loss", "f32", [mean_loss.item()])
        for key, value in model.named_parameters():
            record(out, "weight/" + key, "f32", value.detach().numpy())
            record(out, "grad/" + key, "f32", value.grad.numpy())
    print(name, "loss", loss.item(), "parameters", sum(p.numel() for p in model.parameters()))


def yaml(**switches):
    return "model:\n" + "".join(f"  {key}: {value}\n" for key, value in switches.items())


def main():
    os.makedirs(FOLDER, exist_ok=True)
    eager = {"attn_implementation": "eager"}
    make(
        "gpt2",
        transformers.GPT2LMHeadModel(
            transformers.GPT2Config(n_layer=2, n_embd=32, n_head=4, n_positions=24, vocab_size=VOCABULARY, **eager)),
        yaml(family="gpt2", layers=2, width=32, heads=4, context=24, vocabulary=VOCABULARY))
    make(
        "llama",
        transformers.LlamaForCausalLM(
            transformers.LlamaConfig(num_hidden_layers=2, hidden_size=32, num_attention_heads=4, num_key_value_heads=2,
                                     intermediate_size=40, max_position_embeddings=24, vocab_size=VOCABULARY,
                                     rms_norm_eps=1e-5, tie_word_embeddings=False, **eager)),
        yaml(family="llama", layers=2, width=32, heads=4, groups=2, ffn_width=40, context=24, vocabulary=VOCABULARY))
    # Every optional switch of the LLaMA implementation the other way round.
    make(
        "llama-switched",
        transformers.LlamaForCausalLM(
            transformers.LlamaConfig(num_hidden_layers=2, hidden_size=24, num_attention_heads=3, num_key_value_heads=1,
                                     head_dim=16, intermediate_size=40, max_position_embeddings=24, vocab_size=VOCABULARY,
                                     rms_norm_eps=1e-6, tie_word_embeddings=True, attention_bias=True, mlp_bias=True,
                                     rope_parameters={"rope_type": "default", "rope_theta": 500000.0}, **eager)),
        yaml(family="llama", layers=2, width=24, heads=3, groups=1, head_width=16, ffn_width=40, context=24,
             vocabulary=VOCABULARY, norm_epsilon="1e-6", tied_head="true", qkv_bias="true", attention_bias="true",
             ffn_bias="true", rotary_theta=500000))


if __name__ == "__main__":
    main()
