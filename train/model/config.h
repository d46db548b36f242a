// What a model is: the switches of one decoder block.
//
// Every family of decoder-only transformers is one row of these switches (families.c), never another forward pass.
//
//   x = embedding_scale * token_table[token] (+ position_table[position])
//   L times:  x += attention(norm(x)) Wout (+ b)          attention over H query heads that share G key/value heads
//             x += mlp(norm(x)),  mlp(n) = activation(n Wup (+ b)) Wdown (+ b)
//                                 gated:  (activation(n Wgate) * (n Wup)) Wdown
//   logits = norm(x) Whead^T,  Whead = token_table where tied
//
// A run reads it from the section `model` of its configuration: model_keys is one part of the run's table of keys. The
// family fills every switch that the user did not give, then zeros that mean "the usual" are worked out:
//
//   keys_defaults(...); config_read(..., seen); model_config_resolve(&config, seen of the model's keys, vocabulary, name)
#pragma once

#include "core/keys.h"
#include "kernels/kernels.h"

typedef enum PositionScheme {
    POSITION_LEARNED,  // a table of vectors added to the token's
    POSITION_ROTARY,   // queries and keys turned (Su et al. 2021)
    POSITION_NONE,
} PositionScheme;

typedef struct ModelConfig {
    int family;  // of families (families.h)
    // Shape.
    int64_t layers, width, heads;
    int64_t groups;      // key/value heads
    int64_t head_width;  // D
    int64_t ffn_width;   // F
    int64_t context;     // positions
    int64_t vocabulary;
    // Switches.
    int norm;  // NormKind
    double norm_epsilon;
    bool norm_bias, qkv_bias, attention_bias, ffn_bias;  // attention_bias: of the output projection
    int position;                                        // PositionScheme
    double rotary_theta, rotary_fraction;
    bool rotary_interleaved;
    int activation;  // Activation
    bool gated, tied_head;
    double embedding_scale;
    // Training.
    double dropout;
    double init_deviation;
    bool init_scale_residual;  // the projections into the residual start sqrt(2 L) times smaller (Radford et al. 2019)
} ModelConfig;

// The keys of section "model", offsets within ModelConfig. To embed one: copy the rows and add offsetof(Outer, model).
extern const Key model_keys[];
extern const int model_key_count;

// Completes a config that was read with model_keys: takes the family's value for each switch with seen[i] false (seen NULL:
// none was given), works out groups, head_width, ffn_width and vocabulary where they are 0, and checks everything. `seen` has
// model_key_count entries. corpus_vocabulary: the number of the tokenizer's ids, 0 if unknown. `where` starts the message.
Error *model_config_resolve(ModelConfig *config, const bool *seen, int64_t corpus_vocabulary, const char *where) MUST_CHECK;

// Checks a complete config (one that comes from a file).
Error *model_config_check(const ModelConfig *config, const char *where) MUST_CHECK;

// Reads a YAML file with a section `model` alone, such as configs/models/gpt2-124m.yaml, and resolves it. Waits for its first
// caller: plans of a model without a run.
Error *model_config_read(const char *path, int64_t corpus_vocabulary, ModelConfig *out) MUST_CHECK;

// The identity of the model: equal for configs whose parameters mean the same (dropout and initialisation do not count). It
// outlives the switches: one that is added later counts only where a model uses it (keys_identity).
uint64_t model_config_hash(const ModelConfig *config);

// What version 0.1.0 took for the identity, from a table that holds at least its keys: a switch that came later counts, so that
// no old checkpoint passes for a model that uses it.
uint64_t model_config_hash_v1(const Key *keys, int count, const void *config);

// Whether `hash`, which a checkpoint of any version names, is this model's.
bool model_config_matches(const ModelConfig *config, uint64_t hash);

// An error that names the first key in which two models differ, NULL where their identities are equal:
// "`what` is of another model: model.width is 128 there, 256 here".
Error *model_config_same(const ModelConfig *there, const ModelConfig *here, const char *what) MUST_CHECK;

// Widths that follow from the config.
int64_t model_qkv_width(const ModelConfig *config);        // (H + 2 G) D
int64_t model_attention_width(const ModelConfig *config);  // H D
int64_t model_up_width(const ModelConfig *config);         // F, 2 F where gated
int64_t model_rotary_width(const ModelConfig *config);     // even, 0 without rotary positions

// Floating-point operations of one training step (forward and backward) per token at sequence length T, with the causal half
// of attention counted: 6 per matrix weight, and attention's 6 T H D per layer. Waits for its first caller: the time model of
// plans.
double model_flops_per_token(const ModelConfig *config, int64_t length);
