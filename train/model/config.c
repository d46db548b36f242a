// What a model is: see config.h.
#include "train/model/config.h"

#include "core/config.h"
#include "core/hash.h"
#include "train/model/families.h"

#include <inttypes.h>
#include <math.h>

static const char *const norm_names[] = {"layer", "rms", NULL};
static const char *const position_names[] = {"learned", "rotary", "none", NULL};
static const char *const activation_names[] = {"none", "gelu_tanh", "gelu_erf", "relu", "silu", NULL};

enum { HEAD_WIDTH_MOST = 4096 };

#define AT(field) offsetof(ModelConfig, field)
// What counts for a model's identity: shapes always, a switch where it is not what a model without that switch has.
#define SHAPE .identity = true
#define SWITCH(without) .identity = true, .neutral = (without)

const Key model_keys[] = {
    {"model.family", KEY_CHOICE, AT(family), "gpt2", .choices = family_names,
     .help = "Sets every switch below that is not given; shapes keep their own defaults.",
     .also = "model_type arch architecture model_family model_name"},
    {"model.layers", KEY_INT, AT(layers), "12", 1, 4096, .help = "Blocks.", SHAPE,
     .also = "n_layer n_layers num_layers num_hidden_layers depth n_blocks num_blocks"},
    {"model.width", KEY_INT, AT(width), "768", 1, 1 << 18, NULL, "channels", "Width of the residual stream.", SHAPE,
     .also = "n_embd n_embed d_model dim hidden_size hidden_dim embed_dim embedding_dim model_dim emb_dim"},
    {"model.heads", KEY_INT, AT(heads), "12", 1, 1 << 14, .help = "Query heads.", SHAPE,
     .also = "n_head n_heads nheads num_heads num_attention_heads attention_heads"},
    {"model.groups", KEY_INT, AT(groups), "0", 0, 1 << 14, .help = "Key/value heads, a divisor of the heads; 0: as many.",
     SHAPE, .also = "n_kv_head n_kv_heads num_kv_heads num_key_value_heads num_query_groups kv_heads"},
    {"model.head_width", KEY_INT, AT(head_width), "0", 0, HEAD_WIDTH_MOST, NULL, "channels",
     "Width of one head; 0: width / heads.", SHAPE, .also = "head_dim head_size d_head kv_channels"},
    {"model.ffn_width", KEY_INT, AT(ffn_width), "0", 0, 1 << 20, NULL, "channels",
     "Inner width of the feed-forward part; 0: 4 times the width, gated 8/3 of it rounded up to a multiple of 64.", SHAPE,
     .also = "intermediate_size hidden_dim ffn_hidden_size ffn_dim d_ff mlp_dim mlp_width n_inner ffn_size hidden_ffn"},
    {"model.context", KEY_INT, AT(context), "1024", 1, 1 << 24, NULL, "tokens", "Positions: the longest sequence.", SHAPE,
     .also = "block_size context_length ctx_len n_ctx n_positions max_position_embeddings context_size context_window "
             "max_seq_len max_seq_length"},
    {"model.vocabulary", KEY_INT, AT(vocabulary), "0", 0, 1 << 28, NULL, "tokens",
     "Rows of the embedding; 0: the tokenizer's vocabulary.", SHAPE,
     .also = "vocab_size n_vocab vocab padded_vocab_size vocabulary_size"},
    {"model.norm", KEY_CHOICE, AT(norm), "layer", .choices = norm_names, .help = "LayerNorm or RMSNorm (by family).",
     SWITCH("layer"), .also = "norm_type normalization rms_norm rmsnorm layer_norm layernorm norm_layer"},
    {"model.norm_epsilon", KEY_FLOAT, AT(norm_epsilon), "1e-5", 1e-12, 1, .help = "Added to the variance (by family).",
     SWITCH("1e-05"), .also = "norm_eps layer_norm_eps layer_norm_epsilon layernorm_epsilon rms_norm_eps ln_eps"},
    {"model.norm_bias", KEY_BOOL, AT(norm_bias), "true", .help = "Biases in the norms (by family).", SWITCH("false"),
     .also = "bias"},
    {"model.qkv_bias", KEY_BOOL, AT(qkv_bias), "true", .help = "Biases of queries, keys and values (by family).",
     SWITCH("false"), .also = "bias attn_bias"},
    {"model.attention_bias", KEY_BOOL, AT(attention_bias), "true", .help = "Bias of attention's output (by family).",
     SWITCH("false"), .also = "bias attn_bias"},
    {"model.ffn_bias", KEY_BOOL, AT(ffn_bias), "true", .help = "Biases of the feed-forward part (by family).", SWITCH("false"),
     .also = "bias mlp_bias"},
    {"model.position", KEY_CHOICE, AT(position), "learned", .choices = position_names,
     .help = "How a token knows its place (by family).", SWITCH("none"),
     .also = "position_embedding position_embeddings position_embedding_type pos_emb positional_encoding rope use_rope"},
    {"model.rotary_theta", KEY_FLOAT, AT(rotary_theta), "10000", 1, 1e12, .help = "Base of the rotary wavelengths (by family).",
     SWITCH("1e+04"), .also = "rope_theta rope_base rotary_base rotary_emb_base theta"},
    {"model.rotary_fraction", KEY_FLOAT, AT(rotary_fraction), "1", 0.001, 1,
     .help = "The part of each head that is turned (by family).", SWITCH("1"),
     .also = "rotary_pct rotary_percent partial_rotary_factor rope_fraction"},
    {"model.rotary_interleaved", KEY_BOOL, AT(rotary_interleaved), "false",
     .help = "Turn pairs (2i, 2i+1) instead of (i, i + half) (by family).", SWITCH("false"), .also = "rope_interleaved"},
    {"model.activation", KEY_CHOICE, AT(activation), "gelu_tanh", .choices = activation_names,
     .help = "The feed-forward part's nonlinearity (by family).", SWITCH("none"),
     .also = "act hidden_act act_fn activation_function hidden_activation nonlinearity"},
    {"model.gated", KEY_BOOL, AT(gated), "false", .help = "Gated units: activation(gate) times up (by family).",
     SWITCH("false"), .also = "swiglu use_swiglu glu gated_mlp"},
    {"model.tied_head", KEY_BOOL, AT(tied_head), "true", .help = "The head is the token embedding (by family).",
     SWITCH("false"),
     .also = "tie_weights tie_embeddings tie_word_embeddings tied_embeddings weight_tying tie_embedding share_embeddings"},
    {"model.embedding_scale", KEY_FLOAT, AT(embedding_scale), "1", 1e-6, 1e6, .help = "Multiplies the token embedding.",
     SWITCH("1"), .also = "scale_embeddings embedding_multiplier embed_scale"},
    {"model.dropout", KEY_FLOAT, AT(dropout), "0", 0, 0.99,
     .help = "Probability of dropping an element of the embedding, of attention and of each branch, in training.",
     .also = "attn_pdrop resid_pdrop embd_pdrop attention_dropout hidden_dropout dropout_rate dropout_p"},
    {"model.init_deviation", KEY_FLOAT, AT(init_deviation), "0.02", 0, 10, .help = "Deviation of initial matrices.",
     .also = "init_std initializer_range init_method_std initialization_std"},
    {"model.init_scale_residual", KEY_BOOL, AT(init_scale_residual), "true",
     .help = "Projections into the residual stream start sqrt(2 layers) times smaller."},
};
const int model_key_count = sizeof model_keys / sizeof *model_keys;

static Error *apply_family(ModelConfig *config, const bool *seen, const char *where) {
    const Family *family = &families[config->family];
    for (int i = 0; i < family->switch_count; i++) {
        const Key *key = keys_find(model_keys, model_key_count, family->switches[i].key);
        ensure(key != NULL, "family %s sets %s, which is no key", family->name, family->switches[i].key);
        if (seen == NULL || !seen[key - model_keys]) {
            TRY(key_parse(key, config, family->switches[i].value, where));
        }
    }
    return NULL;
}

Error *model_config_resolve(ModelConfig *config, const bool *seen, int64_t corpus_vocabulary, const char *where) {
    TRY(apply_family(config, seen, where));
    if (config->groups == 0) {
        config->groups = config->heads;
    }
    if (config->head_width == 0) {
        if (config->width % config->heads != 0) {
            return failure("%s: model.width %" PRId64 " is not a multiple of model.heads %" PRId64
                           "; change one or give model.head_width",
                           where, config->width, config->heads);
        }
        config->head_width = config->width / config->heads;
        if (config->head_width > HEAD_WIDTH_MOST) {
            return failure("%s: model.width %" PRId64 " in %" PRId64 " heads makes heads of %" PRId64
                           " channels, at most %d are possible; give more model.heads",
                           where, config->width, config->heads, config->head_width, HEAD_WIDTH_MOST);
        }
    }
    if (config->ffn_width == 0) {
        config->ffn_width = config->gated ? ((8 * config->width + 2) / 3 + 63) / 64 * 64 : 4 * config->width;
    }
    if (config->vocabulary == 0) {
        if (corpus_vocabulary <= 0) {
            return failure("%s: model.vocabulary is 0 and the corpus does not tell its own; give the number of token ids",
                           where);
        }
        config->vocabulary = corpus_vocabulary;
    }
    if (config->vocabulary < corpus_vocabulary) {
        return failure("%s: model.vocabulary %" PRId64 " is smaller than the tokenizer's %" PRId64
                       "; set it to at least that, or to 0 to take the tokenizer's",
                       where, config->vocabulary, corpus_vocabulary);
    }
    return model_config_check(config, where);
}

Error *model_config_check(const ModelConfig *config, const char *where) {
    for (int i = 0; i < model_key_count; i++) {
        // A config that comes from a file may hold anything: every range again, and no zero that means "the usual".
        const Key *key = &model_keys[i];
        if (key->type == KEY_INT) {
            int64_t value = *(const int64_t *)(const void *)((const char *)config + key->offset);
            if (value < 1 || (double)value > key->most) {
                return failure("%s: %s is %" PRId64 ", it must be between 1 and %.0f", where, key->name, value, key->most);
            }
        }
    }
    if (config->heads % config->groups != 0) {
        return failure("%s: model.groups %" PRId64 " does not divide model.heads %" PRId64, where, config->groups,
                       config->heads);
    }
    if (config->position == POSITION_ROTARY) {
        double turned = config->rotary_fraction * (double)config->head_width;
        if (turned != floor(turned) || (int64_t)turned % 2 != 0 || turned < 2) {
            return failure("%s: rotary positions turn %g of each head's %" PRId64
                           " channels, it must be an even number; change model.head_width or model.rotary_fraction",
                           where, turned, config->head_width);
        }
    }
    if (config->gated && config->activation == ACTIVATION_NONE) {
        return failure("%s: model.gated needs an activation; set model.activation", where);
    }
    if (config->dropout > 0 && config->width % 4 != 0) {
        return failure("%s: model.width %" PRId64 " must be a multiple of 4 where model.dropout is used", where, config->width);
    }
    return NULL;
}

Error *model_config_read(const char *path, int64_t corpus_vocabulary, ModelConfig *out) {
    *out = (ModelConfig){0};
    keys_defaults(model_keys, model_key_count, out);
    bool seen[sizeof model_keys / sizeof *model_keys] = {false};
    TRY(config_read(model_keys, model_key_count, out, path, NULL, 0, seen));
    return model_config_resolve(out, seen, corpus_vocabulary, path);
}

uint64_t model_config_hash(const ModelConfig *config) {
    return keys_identity(model_keys, model_key_count, config);
}

// The keys that version 0.1.0 hashed, in its order, whatever their values. Frozen.
static const char *const keys_v1[] = {
    "model.layers",          "model.width",           "model.heads",
    "model.groups",          "model.head_width",      "model.ffn_width",
    "model.context",         "model.vocabulary",      "model.norm",
    "model.norm_epsilon",    "model.norm_bias",       "model.qkv_bias",
    "model.attention_bias",  "model.ffn_bias",        "model.position",
    "model.rotary_theta",    "model.rotary_fraction", "model.rotary_interleaved",
    "model.activation",      "model.gated",           "model.tied_head",
    "model.embedding_scale",
};
enum { KEYS_V1 = sizeof keys_v1 / sizeof *keys_v1 };

static bool is_v1(const Key *key) {
    for (int i = 0; i < KEYS_V1; i++) {
        if (strcmp(keys_v1[i], key->name) == 0) {
            return true;
        }
    }
    return false;
}

static void print_line(const Key *key, const void *config, Buffer *text) {
    buffer_printf(text, "%s=", key->name);
    key_print(key, config, text);
    buffer_byte(text, '\n');
}

uint64_t model_config_hash_v1(const Key *keys, int count, const void *config) {
    Buffer text = {0};
    for (int i = 0; i < KEYS_V1; i++) {
        const Key *key = keys_find(keys, count, keys_v1[i]);
        ensure(key != NULL, "%s is no key any more", keys_v1[i]);
        print_line(key, config, &text);
    }
    for (int i = 0; i < count; i++) {
        if (keys[i].identity && !is_v1(&keys[i]) && !key_neutral(&keys[i], config)) {
            print_line(&keys[i], config, &text);
        }
    }
    uint64_t hash = hash64(text.data, text.size);
    buffer_free(&text);
    return hash;
}

bool model_config_matches(const ModelConfig *config, uint64_t hash) {
    return hash == model_config_hash(config) || hash == model_config_hash_v1(model_keys, model_key_count, config);
}

Error *model_config_same(const ModelConfig *there, const ModelConfig *here, const char *what) {
    Error *error = NULL;
    for (int i = 0; i < model_key_count && error == NULL; i++) {
        if (model_keys[i].identity) {
            Buffer a = {0}, b = {0};
            key_print(&model_keys[i], there, &a);
            key_print(&model_keys[i], here, &b);
            if (strcmp(a.data, b.data) != 0) {
                error = failure("%s is of another model: %s is %s there, %s here", what, model_keys[i].name, a.data, b.data);
            }
            buffer_free(&a);
            buffer_free(&b);
        }
    }
    return error;
}

int64_t model_qkv_width(const ModelConfig *config) {
    return (config->heads + 2 * config->groups) * config->head_width;
}

int64_t model_attention_width(const ModelConfig *config) {
    return config->heads * config->head_width;
}

int64_t model_up_width(const ModelConfig *config) {
    return config->gated ? 2 * config->ffn_width : config->ffn_width;
}

int64_t model_rotary_width(const ModelConfig *config) {
    return config->position == POSITION_ROTARY ? (int64_t)(config->rotary_fraction * (double)config->head_width) : 0;
}

double model_flops_per_token(const ModelConfig *config, int64_t length) {
    double attention = (double)model_attention_width(config), width = (double)config->width;
    double matrices = width * (double)model_qkv_width(config) + attention * width + width * (double)model_up_width(config) +
                      (double)config->ffn_width * width;
    double layer = 6 * matrices + 6 * (double)length * attention;
    return (double)config->layers * layer + 6 * width * (double)config->vocabulary;
}
