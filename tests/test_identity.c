// train/model/config.h, core/keys.h: a model's identity outlives its switches. Hashes stand here as numbers: they are in users'
// checkpoints, so none of them may ever change. A number that differs means that old runs would be refused.
#include "core/config.h"
#include "tests/support/check.h"
#include "train/model/families.h"

static ModelConfig resolve(const char *yaml) {
    bool seen[128] = {false};
    ModelConfig config = {0};
    ensure(model_key_count <= 128, "room for %d keys", model_key_count);
    keys_defaults(model_keys, model_key_count, &config);
    CHECK_OK(config_read_text(model_keys, model_key_count, &config, "x.yaml", yaml, strlen(yaml), seen));
    CHECK_OK(model_config_resolve(&config, seen, 0, "x.yaml"));
    return config;
}

static const char gpt2[] = "model: {family: gpt2, vocabulary: 50257}\n";
static const char llama[] = "model: {family: llama, layers: 16, width: 2048, heads: 32, groups: 8, ffn_width: 8192,\n"
                            "  context: 2048, vocabulary: 128256, rotary_theta: 500000}\n";
static const char mixed[] = "model: {family: llama, layers: 2, width: 20, heads: 4, groups: 1, head_width: 8, ffn_width: 24,\n"
                            "  context: 16, vocabulary: 37, norm: layer, norm_epsilon: 1e-6, qkv_bias: true, gated: false,\n"
                            "  activation: gelu_erf, rotary_fraction: 0.5, rotary_interleaved: true, tied_head: true,\n"
                            "  embedding_scale: 1.7, dropout: 0.2}\n";

static const struct {
    const char *yaml;
    uint64_t now, v1;
} pinned[] = {
    {gpt2, 0x4ac35bfb28a4ead1, 0xea8e6faa9278f4c9},
    {llama, 0xfeb834d7a485bc59, 0x7132c825b4e2a032},
    {mixed, 0xa6e39b7c1b5e4fef, 0x599132551153e8eb},
};
enum { PINNED = sizeof pinned / sizeof *pinned };

static uint64_t hash_v1(const ModelConfig *config) {
    return model_config_hash_v1(model_keys, model_key_count, config);
}

static void test_pinned(void) {
    for (int i = 0; i < PINNED; i++) {
        ModelConfig config = resolve(pinned[i].yaml);
        CHECK(model_config_hash(&config) == pinned[i].now);
        CHECK(hash_v1(&config) == pinned[i].v1);
        for (int other = 0; other < PINNED; other++) {
            CHECK(model_config_matches(&config, pinned[other].now) == (other == i));
            CHECK(model_config_matches(&config, pinned[other].v1) == (other == i));
        }
    }
}

// Another value of the key, within its range.
static void change(const Key *key, ModelConfig *config) {
    void *value = (char *)config + key->offset;
    switch (key->type) {
    case KEY_BOOL:
        *(bool *)value = !*(bool *)value;
        break;
    case KEY_INT:
        *(int64_t *)value += 1;
        break;
    case KEY_FLOAT:
        *(double *)value *= 0.75;
        break;
    default:
        ensure(key->type == KEY_CHOICE, "%s has another type", key->name);
        *(int *)value = *(int *)value == 0 ? 1 : 0;
    }
}

// Each key that changes what the parameters mean changes the identity, from each of the configurations; no other does.
static void test_each_key(void) {
    static const char *const free_keys[] = {"model.family", "model.dropout", "model.init_deviation",
                                            "model.init_scale_residual"};
    for (int i = 0; i < PINNED; i++) {
        ModelConfig config = resolve(pinned[i].yaml);
        for (int k = 0; k < model_key_count; k++) {
            ModelConfig other = config;
            change(&model_keys[k], &other);
            bool counts = true;
            for (int f = 0; f < 4; f++) {
                counts = counts && strcmp(model_keys[k].name, free_keys[f]) != 0;
            }
            Error *error = model_config_same(&config, &other, "run");
            CHECK((model_config_hash(&config) != model_config_hash(&other)) == counts);
            CHECK((hash_v1(&config) != hash_v1(&other)) == counts);
            CHECK(model_config_matches(&other, hash_v1(&config)) == !counts);
            CHECK((error != NULL && strstr(error->message, model_keys[k].name) != NULL) == counts);
            error_free(error);
        }
    }
}

// Shapes always count; a switch's neutral value is a value of it, as it is printed, and not by chance the shape's.
static void test_neutral(void) {
    for (int k = 0; k < model_key_count; k++) {
        const Key *key = &model_keys[k];
        if (key->neutral != NULL) {
            ModelConfig config = {0};
            CHECK(key->identity && key->type != KEY_INT);
            CHECK_OK(key_parse(key, &config, key->neutral, "neutral"));
            CHECK(key_neutral(key, &config));
        }
    }
}

// The table as a later version has it: with a switch more.
typedef struct LaterConfig {
    ModelConfig model;
    int64_t window;
    bool query_norm;
} LaterConfig;

static void test_later_switch(void) {
    enum { MOST = 128 };
    static Key later[MOST];
    int count = 0;
    // Before all others, in the middle, anywhere: the order of the rows is for the reader.
    later[count++] = (Key){"model.window", KEY_INT, offsetof(LaterConfig, window), "4096", .identity = true, .neutral = "0"};
    for (int k = model_key_count - 1; k >= 0; k--) {
        later[count++] = model_keys[k];
    }
    later[count++] =
        (Key){"model.query_norm", KEY_BOOL, offsetof(LaterConfig, query_norm), "false", .identity = true, .neutral = "false"};
    for (int i = 0; i < PINNED; i++) {
        LaterConfig config = {.model = resolve(pinned[i].yaml)};
        CHECK(keys_identity(later, count, &config) == pinned[i].now);
        CHECK(model_config_hash_v1(later, count, &config) == pinned[i].v1);
        // Used, it counts: no run from before passes for such a model.
        config.query_norm = true;
        CHECK(keys_identity(later, count, &config) != pinned[i].now);
        CHECK(model_config_hash_v1(later, count, &config) != pinned[i].v1);
        config.query_norm = false;
        config.window = 4096;
        CHECK(keys_identity(later, count, &config) != pinned[i].now);
        CHECK(model_config_hash_v1(later, count, &config) != pinned[i].v1);
    }
}

// Two values exchanged between two keys are another model.
static void test_exchanged(void) {
    ModelConfig a = resolve(gpt2), b = a;
    b.width = a.context;
    b.context = a.width;
    CHECK(model_config_hash(&a) != model_config_hash(&b));
}

static void test_families(void) {
    for (int i = 0; family_names[i] != NULL; i++) {
        CHECK(strcmp(families[i].name, family_names[i]) == 0);
        CHECK_I64(family_find(family_names[i]), i);
        CHECK(keys_find(model_keys, model_key_count, "model.family")->choices[i] == family_names[i]);
    }
    CHECK_I64(resolve(llama).family, family_find("llama"));
}

int main(void) {
    RUN(test_pinned);
    RUN(test_each_key);
    RUN(test_neutral);
    RUN(test_later_switch);
    RUN(test_exchanged);
    RUN(test_families);
    return check_report();
}
