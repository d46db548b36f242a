// Model families: see families.h.
#include "train/model/families.h"

#include <stdio.h>

// GPT-2 (Radford et al. 2019): LayerNorm, biases everywhere, learned positions, tanh GELU, tied head. Its matrices are stored
// [in, out].
static const FamilySwitch gpt2_switches[] = {
    {"model.norm", "layer"},       {"model.norm_epsilon", "1e-5"},    {"model.norm_bias", "true"},
    {"model.qkv_bias", "true"},    {"model.attention_bias", "true"},  {"model.ffn_bias", "true"},
    {"model.position", "learned"}, {"model.activation", "gelu_tanh"}, {"model.gated", "false"},
    {"model.tied_head", "true"},
};
static const FamilyName gpt2_names[] = {
    {"embedding.token", "transformer.wte.weight", "", false},
    {"embedding.position", "transformer.wpe.weight", "", false},
    {"layers.*.attention.norm.weight", "transformer.h.*.ln_1.weight", "", false},
    {"layers.*.attention.norm.bias", "transformer.h.*.ln_1.bias", "", false},
    {"layers.*.attention.qkv.weight", "transformer.h.*.attn.c_attn.weight", "", true},
    {"layers.*.attention.qkv.bias", "transformer.h.*.attn.c_attn.bias", "", false},
    {"layers.*.attention.out.weight", "transformer.h.*.attn.c_proj.weight", "", true},
    {"layers.*.attention.out.bias", "transformer.h.*.attn.c_proj.bias", "", false},
    {"layers.*.mlp.norm.weight", "transformer.h.*.ln_2.weight", "", false},
    {"layers.*.mlp.norm.bias", "transformer.h.*.ln_2.bias", "", false},
    {"layers.*.mlp.up.weight", "transformer.h.*.mlp.c_fc.weight", "", true},
    {"layers.*.mlp.up.bias", "transformer.h.*.mlp.c_fc.bias", "", false},
    {"layers.*.mlp.down.weight", "transformer.h.*.mlp.c_proj.weight", "", true},
    {"layers.*.mlp.down.bias", "transformer.h.*.mlp.c_proj.bias", "", false},
    {"final_norm.weight", "transformer.ln_f.weight", "", false},
    {"final_norm.bias", "transformer.ln_f.bias", "", false},
    {"head.weight", "lm_head.weight", "", false},
};

// LLaMA (Touvron et al. 2023): RMSNorm, no biases, rotary positions over halves, SwiGLU, untied head.
static const FamilySwitch llama_switches[] = {
    {"model.norm", "rms"},
    {"model.norm_epsilon", "1e-5"},
    {"model.norm_bias", "false"},
    {"model.qkv_bias", "false"},
    {"model.attention_bias", "false"},
    {"model.ffn_bias", "false"},
    {"model.position", "rotary"},
    {"model.rotary_theta", "10000"},
    {"model.rotary_fraction", "1"},
    {"model.rotary_interleaved", "false"},
    {"model.activation", "silu"},
    {"model.gated", "true"},
    {"model.tied_head", "false"},
};
static const FamilyName llama_names[] = {
    {"embedding.token", "model.embed_tokens.weight", "", false},
    {"layers.*.attention.norm.weight", "model.layers.*.input_layernorm.weight", "", false},
    {"layers.*.attention.qkv.weight", "model.layers.*.self_attn.q_proj.weight", "query", false},
    {"layers.*.attention.qkv.weight", "model.layers.*.self_attn.k_proj.weight", "key", false},
    {"layers.*.attention.qkv.weight", "model.layers.*.self_attn.v_proj.weight", "value", false},
    {"layers.*.attention.qkv.bias", "model.layers.*.self_attn.q_proj.bias", "query", false},
    {"layers.*.attention.qkv.bias", "model.layers.*.self_attn.k_proj.bias", "key", false},
    {"layers.*.attention.qkv.bias", "model.layers.*.self_attn.v_proj.bias", "value", false},
    {"layers.*.attention.out.weight", "model.layers.*.self_attn.o_proj.weight", "", false},
    {"layers.*.attention.out.bias", "model.layers.*.self_attn.o_proj.bias", "", false},
    {"layers.*.mlp.norm.weight", "model.layers.*.post_attention_layernorm.weight", "", false},
    {"layers.*.mlp.up.weight", "model.layers.*.mlp.gate_proj.weight", "gate", false},
    {"layers.*.mlp.up.weight", "model.layers.*.mlp.up_proj.weight", "up", false},
    {"layers.*.mlp.up.bias", "model.layers.*.mlp.gate_proj.bias", "gate", false},
    {"layers.*.mlp.up.bias", "model.layers.*.mlp.up_proj.bias", "up", false},
    {"layers.*.mlp.down.weight", "model.layers.*.mlp.down_proj.weight", "", false},
    {"layers.*.mlp.down.bias", "model.layers.*.mlp.down_proj.bias", "", false},
    {"final_norm.weight", "model.norm.weight", "", false},
    {"head.weight", "lm_head.weight", "", false},
};

#define COUNT(array) ((int)(sizeof(array) / sizeof *(array)))

// The one list of families: each row is NAME_switches and NAME_names.
#define FAMILIES(ROW) ROW(gpt2) ROW(llama)

#define FAMILY(name) {#name, name##_switches, COUNT(name##_switches), name##_names, COUNT(name##_names)},
const Family families[] = {FAMILIES(FAMILY)};

#define NAME(name) #name,
const char *const family_names[] = {FAMILIES(NAME) NULL};

int family_find(const char *name) {
    int family = 0;
    while (strcmp(families[family].name, name) != 0) {
        ensure(++family < COUNT(families), "no family %s", name);
    }
    return family;
}

const char *family_name(const char *pattern, int64_t layer, char *out, size_t size) {
    const char *star = strchr(pattern, '*');
    int written;
    if (star == NULL) {
        written = snprintf(out, size, "%s", pattern);
    } else {
        written = snprintf(out, size, "%.*s%lld%s", (int)(star - pattern), pattern, (long long)layer, star + 1);
    }
    ensure(written >= 0 && (size_t)written < size, "the name %s is too long", pattern);
    return out;
}
