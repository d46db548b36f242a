// The configuration of a run as people write it: every key in every spelling, with odd values, given twice, misspelt, and under
// the names that other programs use. What is wrong is one line that names the key; nothing crashes, hangs or takes much memory.
#include "core/config.h"
#include "core/durable.h"
#include "core/text.h"
#include "tests/support/check.h"
#include "train/run_plan.h"

#include <fcntl.h>
#include <stdio.h>
#include <time.h>
#include <unistd.h>

static const char usual[] = "folder: x\ndata.corpus: none\ntrain.steps: 10\n";

static const Key *keys;
static int key_count;
static const char *folder;

static void write_file(const char *path, const char *text) {  // thousands of them: none needs to outlive a crash
    FILE *file = fopen(path, "w");
    CHECK(file != NULL && fputs(text, file) >= 0 && fclose(file) == 0);
}

// Reads `text` as a file with these overrides.
static Error *read_run(RunConfig *config, const char *text, char *const *overrides, int count) {
    char *path = path_join(folder, "run.yaml");
    *config = (RunConfig){0};
    write_file(path, text);
    Error *error = run_config_read(config, path, overrides, count);
    free(path);
    return error;
}

// What the message of such a configuration is, or "" where there is no error; in a buffer of the caller's.
static const char *message_of(Buffer *out, const char *text, char *override, ErrorKind *kind) {
    RunConfig config;
    Error *error = read_run(&config, text, &override, override != NULL);
    buffer_clear(out);
    buffer_text(out, error != NULL ? error->message : "");
    if (kind != NULL && error != NULL) {
        *kind = error->kind;
    }
    error_free(error);
    run_config_free(&config);
    return out->data;
}

// The usual configuration without `key`.
static char *without(const char *key) {
    Buffer text = {0};
    buffer_text(&text, "");
    for (const char *line = usual; *line != 0; line = strchr(line, '\n') + 1) {
        if (!text_starts_with(line, key) || line[strlen(key)] != ':') {
            buffer_append(&text, line, strcspn(line, "\n") + 1);
        }
    }
    return text.data;
}

// Appends "a:\n  b:\n    c: value".
static void nested(Buffer *out, const char *name, const char *value) {
    int depth = 0;
    for (const char *p = name; *p != 0; p++) {
        if (*p == '.') {
            buffer_printf(out, ":\n%*s", ++depth * 2, "");
        } else {
            buffer_byte(out, *p);
        }
    }
    buffer_printf(out, ": %s\n", value);
}

// A value that each key accepts.
static const char *good_value(const Key *key) {
    return key->type == KEY_LIST          ? "[a]"
           : key->type == KEY_PROPORTIONS ? "{a: 1}"
           : key->default_value != NULL   ? key->default_value
                                          : "x";
}

// A value that is not that one, of a key that has two.
static const char *another_value(const Key *key) {
    switch (key->type) {
    case KEY_LIST:
        return "[b, c]";
    case KEY_PROPORTIONS:
        return "{b: 2}";
    case KEY_BOOL:
        return strcmp(key->default_value, "true") == 0 ? "false" : "true";
    case KEY_CHOICE:
        return key->choices[strcmp(key->default_value, key->choices[0]) == 0];
    case KEY_INT:
    case KEY_FLOAT: {
        static char limit[40];
        snprintf(limit, sizeof limit, "%.17g", atof(key->default_value) == key->least ? key->most : key->least);
        return limit;
    }
    default:
        return "y";
    }
}

// ---- Suggestions
// ---------------------------------------------------------------------------------------------------------------------

static const struct {
    const char *given, *meant;  // "a b": both; "": nothing
} mistakes[] = {
    {"lr", "optimizer.learning_rate"},
    {"optimizer.lr", "optimizer.learning_rate"},
    {"train.lr", "optimizer.learning_rate"},
    {"learning_rate", "optimizer.learning_rate"},
    {"learningRate", "optimizer.learning_rate"},
    {"train.learning-rate", "optimizer.learning_rate"},
    {"optimizer.learning_rte", "optimizer.learning_rate"},
    {"optimiser.learning_rate", "optimizer.learning_rate"},
    {"max_lr", "optimizer.learning_rate"},
    {"wd", "optimizer.weight_decay"},
    {"weight_decay", "optimizer.weight_decay"},
    {"optimizer.wd", "optimizer.weight_decay"},
    {"betas", "optimizer.beta1 optimizer.beta2"},
    {"optimizer.betas", "optimizer.beta1 optimizer.beta2"},
    {"beta1", "optimizer.beta1"},
    {"adam_beta2", "optimizer.beta2"},
    {"eps", "optimizer.epsilon"},
    {"optimizer.eps", "optimizer.epsilon"},
    {"grad_clip", "optimizer.clip"},
    {"max_grad_norm", "optimizer.clip"},
    {"train.gradient_clipping", "optimizer.clip"},
    {"optim", "optimizer.kind"},
    {"optimizer.type", "optimizer.kind"},
    {"bs", "train.batch_tokens train.micro_batch"},
    {"batch_size", "train.batch_tokens train.micro_batch"},
    {"train.batch_size", "train.batch_tokens train.micro_batch"},
    {"micro_batch_size", "train.micro_batch"},
    {"global_batch_size", "train.batch_tokens"},
    {"gradient_accumulation", "train.batch_tokens"},
    {"gradient_accumulation_steps", "train.batch_tokens"},
    {"steps", "train.steps"},
    {"max_steps", "train.steps"},
    {"train.max_steps", "train.steps"},
    {"max_iters", "train.steps"},
    {"schedule.total_steps", "train.steps"},
    {"train.step", "train.steps"},
    {"epochs", "train.steps train.tokens data.epochs"},
    {"train.epochs", "train.steps train.tokens"},
    {"data.epoch", "data.epochs"},
    {"num_train_epochs", "train.steps train.tokens data.epochs"},
    {"warmup", "schedule.warmup_steps"},
    {"schedule.warmup", "schedule.warmup_steps"},
    {"warmup_steps", "schedule.warmup_steps"},
    {"train.warmup_steps", "schedule.warmup_steps"},
    {"optimizer.warmup", "schedule.warmup_steps"},
    {"min_lr", "schedule.floor"},
    {"schedule.min_lr", "schedule.floor"},
    {"lr_scheduler", "schedule.kind"},
    {"lr_decay_iters", "schedule.decay_steps"},
    {"n_layer", "model.layers"},
    {"model.n_layer", "model.layers"},
    {"num_layers", "model.layers"},
    {"num_hidden_layers", "model.layers"},
    {"n_head", "model.heads"},
    {"num_attention_heads", "model.heads"},
    {"model.num_heads", "model.heads"},
    {"num_key_value_heads", "model.groups"},
    {"model.n_kv_heads", "model.groups"},
    {"n_embd", "model.width"},
    {"d_model", "model.width"},
    {"hidden_size", "model.width"},
    {"model.dim", "model.width"},
    {"intermediate_size", "model.ffn_width"},
    {"d_ff", "model.ffn_width"},
    {"head_dim", "model.head_width"},
    {"vocab_size", "model.vocabulary"},
    {"seq_len", "data.sequence_length"},
    {"train.seq_len", "data.sequence_length"},
    {"context_length", "model.context"},
    {"block_size", "model.context"},
    {"max_position_embeddings", "model.context"},
    {"rope_theta", "model.rotary_theta"},
    {"hidden_act", "model.activation"},
    {"tie_word_embeddings", "model.tied_head"},
    {"bias", "model.norm_bias model.qkv_bias model.attention_bias model.ffn_bias"},
    {"attn_pdrop", "model.dropout"},
    {"train.dropout", "model.dropout"},
    {"model_type", "model.family"},
    {"dtype", "train.type"},
    {"precision", "train.type"},
    {"train.dtype", "train.type"},
    {"bf16", "train.type"},
    {"gradient_checkpointing", "train.recompute"},
    {"save_interval", "checkpoint.every"},
    {"save_every", "checkpoint.every"},
    {"checkpoint.interval", "checkpoint.every"},
    {"checkpoint_every", "checkpoint.every"},
    {"save_total_limit", "checkpoint.keep_last"},
    {"eval_interval", "validation.every"},
    {"eval_iters", "validation.samples"},
    {"validation_every", "validation.every"},
    {"log_interval", "log.every"},
    {"logging_steps", "log.every"},
    {"log.interval", "log.every"},
    {"every", "checkpoint.every validation.every samples.every log.every"},
    {"random_seed", "seed"},
    {"train.seed", "seed"},
    {"sed", "seed"},
    {"out_dir", "folder"},
    {"output_dir", "folder"},
    {"train.folder", "folder"},
    {"resume", "folder"},
    {"dataset", "data.corpus"},
    {"corpus", "data.corpus"},
    {"val_data", "data.validation"},
    {"num_workers", "data.prefetch"},
    {"tp", "parallel.tensor"},
    {"pipeline_parallel_size", "parallel.pipeline"},
    {"samples.max_new_tokens", "samples.tokens"},
    {"samples.max_tokens", "samples.tokens"},
    {"samples.top", "samples.top_k samples.top_p"},
    {"samples.topk", "samples.top_k"},
    {"gpu", "card"},
    {"num_threads", "threads"},
    {"train.max_stepz", "train.steps"},
    // What is nothing of ours.
    {"wandb_project", ""},
    {"compile", ""},
    {"flash_attention", ""},
    {"tokenizer", ""},
    {"lora_rank", ""},
    {"x", ""},
    {"", ""},
    {".", ""},
    {"optimizer.", ""},
    {"model.xyzzy", ""},
    {"zero_stage", "parallel.zero"},
    {"fsdp", ""},
    {"teacher", ""},
    {"nodes", ""},
    {"hooks", ""},
};

static void list_meant(const char *given, Buffer *out) {
    const Key *meant[KEYS_MEANT];
    int found = keys_meant(keys, key_count, given, meant);
    buffer_clear(out);
    buffer_text(out, "");
    for (int i = 0; i < found; i++) {
        buffer_printf(out, "%s%s", i > 0 ? " " : "", meant[i]->name);
    }
}

static bool has_word(const char *list, const char *word) {
    size_t length = strlen(word);
    for (const char *p = strstr(list, word); p != NULL; p = strstr(p + 1, word)) {
        if ((p == list || p[-1] == ' ') && (p[length] == 0 || p[length] == ' ')) {
            return true;
        }
    }
    return false;
}

static void test_mistakes(void) {
    Buffer meant = {0}, text = {0};
    for (size_t i = 0; i < sizeof mistakes / sizeof *mistakes; i++) {
        list_meant(mistakes[i].given, &meant);
        bool same = strlen(meant.data) == strlen(mistakes[i].meant);
        for (const char *word = mistakes[i].meant; same && *word != 0;) {  // in any order
            char one[64];
            snprintf(one, sizeof one, "%.*s", (int)strcspn(word, " "), word);
            same = has_word(meant.data, one);
            word += strlen(one) + (word[strlen(one)] == ' ');
        }
        if (!same) {
            buffer_printf(&meant, " for %s", mistakes[i].given);
            CHECK_TEXT(meant.data, mistakes[i].meant);
        }
    }
    // As they are told, in a file and on the command line.
    const char *told = message_of(&text, "folder: x\noptimizer: {lr: 1}\n", NULL, NULL);
    CHECK(strstr(told, ":2: unknown key optimizer.lr; did you mean optimizer.learning_rate (Peak learning rate)?") != NULL);
    ErrorKind kind = ERROR_FAILURE;
    told = message_of(&text, usual, "max_steps=5", &kind);
    CHECK_TEXT(told, "command line: unknown key max_steps; did you mean train.steps (Length of the run)?");
    CHECK(kind == ERROR_USAGE);
    told = message_of(&text, usual, "optimizer=adamw", NULL);
    CHECK_TEXT(told, "command line: optimizer is a section, it must hold keys; did you mean optimizer.kind (The optimizer)?");
    static const char *const sections[][2] = {
        {"optimiser: {learning_rate: 1}", "optimizer"},       {"optim: {lr: 1}", "optimizer"},
        {"training: {steps: 5, batch_tokens: 6}", "train"},   {"modle: {}", "model"},
        {"trainer: {max_steps: 5, micro_batch: 1}", "train"}, {"lr_schedule: {warmup: 5, min_lr: 1}", "schedule"},
        {"network: {layers: 5, width: 3, bias: no}", "model"}};
    for (size_t i = 0; i < sizeof sections / sizeof *sections; i++) {
        char *want = memory_format("; did you mean %s?", sections[i][1]);
        told = message_of(&text, sections[i][0], NULL, NULL);
        if (!CHECK(strstr(told, want) != NULL)) {
            printf("%s: %s\n", sections[i][0], told);
        }
        free(want);
    }
    told = message_of(&text, "wandb: {project: x, entity: y}", NULL, NULL);
    CHECK(strstr(told, "unknown section wandb; the sections are model, data, train,") != NULL);
    buffer_free(&meant);
    buffer_free(&text);
}

// One slip in the last word of `key` must lead back to it: alone, or among as near ones, or to one of the section that was
// named.
static int slip(const Key *key, const char *section, const char *word, Buffer *meant) {
    char *given = *section != 0 ? memory_format("%s.%s", section, word) : memory_string(word);
    int wrong = 0;
    list_meant(given, meant);
    bool own = *section != 0 && text_starts_with(meant->data, section) && meant->data[strlen(section)] == '.';
    if (keys_find(keys, key_count, given) == NULL && meant->size > 0 && !has_word(meant->data, key->name) && !own) {
        printf("%s, a slip of %s, suggests %s\n", given, key->name, meant->data);
        wrong = 1;
    }
    free(given);
    return wrong;
}

static void test_slips(void) {
    Buffer meant = {0};
    int wrong = 0, tried = 0, none = 0;
    static const char *const others[] = {"", "optimizer", "model", "train", "xyzzy", "wandb.run"};
    for (int k = 0; k < key_count; k++) {
        const char *dot = strrchr(keys[k].name, '.'), *last = dot != NULL ? dot + 1 : keys[k].name;
        char own[64];
        snprintf(own, sizeof own, "%.*s", dot != NULL ? (int)(dot - keys[k].name) : 0, keys[k].name);
        size_t n = strlen(last);
        for (size_t i = 0; i < n; i++) {
            char words[3][80];
            snprintf(words[0], 80, "%.*s%s", (int)i, last, last + i + 1);         // dropped
            snprintf(words[1], 80, "%.*s%c%s", (int)i, last, last[i], last + i);  // doubled
            snprintf(words[2], 80, "%s", last);
            if (i + 1 < n) {  // swapped
                words[2][i] = last[i + 1];
                words[2][i + 1] = last[i];
            }
            for (int w = 0; w < 3; w++) {
                if (strlen(words[w]) < 3 || strcmp(words[w], last) == 0) {
                    continue;
                }
                wrong += slip(&keys[k], own, words[w], &meant);
                none += !has_word(meant.data, keys[k].name) &&
                        keys_find(keys, key_count, words[w]) == NULL;  // in its own section it is always found
                tried++;
                for (size_t o = 0; o < sizeof others / sizeof *others; o++) {
                    wrong += slip(&keys[k], others[o], words[w], &meant);
                    tried++;
                }
            }
        }
    }
    CHECK(tried > 10000);
    CHECK_I64(wrong, 0);
    CHECK_I64(none, 0);
    buffer_free(&meant);
}

// No two keys claim one word unless both are told, and every other word leads to its key.
static void test_also(void) {
    Buffer meant = {0};
    for (int k = 0; k < key_count; k++) {
        for (const char *word = keys[k].also; word != NULL && *word != 0;) {
            char one[64];
            snprintf(one, sizeof one, "%.*s", (int)strcspn(word, " "), word);
            word += strlen(one) + (word[strlen(one)] == ' ');
            list_meant(one, &meant);
            if (!CHECK(has_word(meant.data, keys[k].name))) {
                printf("%s of %s leads to %s\n", one, keys[k].name, meant.data);
            }
        }
    }
    buffer_free(&meant);
}

// ---- One key, one place
// --------------------------------------------------------------------------------------------------------------

static void test_twice(void) {
    Buffer text = {0}, message = {0};
    int compared = 0;
    for (int k = 0; k < key_count; k++) {
        const char *name = keys[k].name, *value = good_value(&keys[k]);
        for (int form = 0; form < 4; form++) {  // dotted or nested, first and second
            buffer_clear(&text);
            form % 2 == 0 ? buffer_printf(&text, "%s: %s\n", name, value) : nested(&text, name, value);
            size_t lines = 1;
            for (const char *p = text.data; p < text.data + text.size - 1; p++) {
                lines += *p == '\n';
            }
            form / 2 == 0 ? buffer_printf(&text, "%s: %s\n", name, value) : nested(&text, name, value);
            const char *told = message_of(&message, text.data, NULL, NULL);
            char first[64];
            snprintf(first, sizeof first, "first in line %d", form == 3 || strchr(name, '.') == NULL ? 1 : (int)lines);
            if (!CHECK(strstr(told, "twice") != NULL && strstr(told, first) != NULL)) {
                printf("%s: %s\n%s", name, told, text.data);
            }
        }
        // On the command line the last counts, of lists and maps whole.
        RunConfig once, twice;
        char *override = memory_format("%s=%s", name, value), *other = memory_format("%s=%s", name, another_value(&keys[k]));
        Buffer expected = {0}, got = {0};
        Error *error = read_run(&once, usual, (char *[]){override}, 1);
        Error *second = read_run(&twice, usual, (char *[]){other, override}, 2);
        CHECK((error == NULL) == (second == NULL));
        if (error == NULL && second == NULL) {
            compared++;
            key_print(&keys[k], &once, &expected);
            key_print(&keys[k], &twice, &got);
            CHECK_TEXT(got.data, expected.data);
        }
        error_free(error);
        error_free(second);
        buffer_free(&expected);
        buffer_free(&got);
        free(other);
        run_config_free(&once);
        run_config_free(&twice);
        free(override);
    }
    CHECK(compared > key_count - 4);
    // Parts of one section may stand apart, and an including file may say it again.
    CHECK_TEXT(message_of(&message, "folder: x\ndata: {corpus: x}\ntrain: {steps: 1}\ntrain.z_loss: 0\n", NULL, NULL), "");
    CHECK(strstr(message_of(&message, "folder: x\ntrain: {steps: 1}\ndata: {corpus: x}\ntrain: {z_loss: 0}\n", NULL, NULL),
                 ":4: 'train' stands twice, first in line 2") != NULL);
    CHECK(strstr(message_of(&message, "folder: x\ndata:\n  mixture:\n    a: 1\n    b: 2\n    a: 3\n", NULL, NULL),
                 ":6: 'a' stands twice, first in line 4") != NULL);
    char *base = path_join(folder, "base.yaml");
    write_file(base, usual);
    CHECK_TEXT(message_of(&message, "include: base.yaml\nfolder: y\ntrain: {steps: 3}\n", NULL, NULL), "");
    CHECK_TEXT(message_of(&message, "include: [base.yaml, base.yaml]\n", NULL, NULL), "");
    free(base);
    buffer_free(&text);
    buffer_free(&message);
}

// ---- Spellings
// -----------------------------------------------------------------------------------------------------------------------

// What a key becomes, as it is printed; "!" where it is refused.
static void value_of(const Key *key, const char *written, bool on_command_line, Buffer *out) {
    char *text = without(key->name), *override = memory_format("%s=%s", key->name, written);
    char *file = memory_format("%s%s: %s\n", text, key->name, written);
    RunConfig config = {0};
    bool seen[RUN_KEYS_MOST];
    char *path = path_join(folder, "spelling.yaml");
    keys_defaults(keys, key_count, &config);
    write_file(path, on_command_line ? text : file);
    Error *error = config_read(keys, key_count, &config, path, &override, on_command_line, seen);
    buffer_clear(out);
    if (error != NULL) {
        buffer_text(out, "!");
        if (!CHECK(strstr(error->message, key->name) != NULL && strchr(error->message, '\n') == NULL)) {
            printf("%s: %s: %s\n", key->name, written, error->message);
        }
        CHECK(!on_command_line || error->kind == ERROR_USAGE);
    } else {
        key_print(key, &config, out);
    }
    error_free(error);
    run_config_free(&config);
    free(path);
    free(file);
    free(override);
    free(text);
}

static void test_spellings(void) {
    static const struct {
        const char *written, *boolean, *whole, *number, *path, *list;  // "!": refused; "?": by the key's range
    } spellings[] = {
        {"null", "!", "!", "!", "null", "[]"},
        {"Null", "!", "!", "!", "null", "[]"},
        {"NULL", "!", "!", "!", "null", "[]"},
        {"~", "!", "!", "!", "null", "[]"},
        {"", "!", "!", "!", "null", "[]"},
        {"nULL", "!", "!", "!", "\"nULL\"", "[\"nULL\"]"},
        {"yes", "true", "!", "!", "!", "[\"yes\"]"},
        {"Yes", "true", "!", "!", "!", "[\"Yes\"]"},
        {"no", "false", "!", "!", "!", "[\"no\"]"},
        {"No", "false", "!", "!", "!", "[\"No\"]"},
        {"On", "true", "!", "!", "!", "[\"On\"]"},
        {"off", "false", "!", "!", "!", "[\"off\"]"},
        {"Off", "false", "!", "!", "!", "[\"Off\"]"},
        {"TRUE", "true", "!", "!", "!", "[\"TRUE\"]"},
        {"False", "false", "!", "!", "!", "[\"False\"]"},
        {"y", "!", "!", "!", "\"y\"", "[\"y\"]"},
        {"1", "!", "?1", "?1", "\"1\"", "[\"1\"]"},
        {"+1", "!", "?1", "?1", "\"+1\"", "[\"+1\"]"},
        {"1.0", "!", "?1", "?1", "\"1.0\"", "[\"1.0\"]"},
        {"1e0", "!", "?1", "?1", "\"1e0\"", "[\"1e0\"]"},
        {"1_0", "!", "?10", "?1e+01", "\"1_0\"", "[\"1_0\"]"},
        {"1e6", "!", "?1000000", "?1e+06", "\"1e6\"", "[\"1e6\"]"},
        {"1.5k", "!", "?1500", "?1.5e+03", "\"1.5k\"", "[\"1.5k\"]"},
        {"1Ki", "!", "?1024", "?1024", "\"1Ki\"", "[\"1Ki\"]"},
        {"0.5", "!", "!", "?0.5", "\"0.5\"", "[\"0.5\"]"},
        {"5e-1", "!", "!", "?0.5", "\"5e-1\"", "[\"5e-1\"]"},
        {".5", "!", "!", "?0.5", "\".5\"", "[\".5\"]"},
        {"0x10", "!", "!", "!", "\"0x10\"", "[\"0x10\"]"},
        {"0o17", "!", "!", "!", "\"0o17\"", "[\"0o17\"]"},
        {"017", "!", "!", "!", "\"017\"", "[\"017\"]"},
        {"0b1", "!", "!", "!", "\"0b1\"", "[\"0b1\"]"},
        {"1:30", "!", "!", "!", "\"1:30\"", "[\"1:30\"]"},
        {".inf", "!", "!", "!", "\".inf\"", "[\".inf\"]"},
        {"-.INF", "!", "!", "!", "\"-.INF\"", "[\"-.INF\"]"},
        {".nan", "!", "!", "!", "\".nan\"", "[\".nan\"]"},
        {"inf", "!", "!", "!", "\"inf\"", "[\"inf\"]"},
        {"nan", "!", "!", "!", "\"nan\"", "[\"nan\"]"},
        {"1e400", "!", "!", "!", "\"1e400\"", "[\"1e400\"]"},
    };
    Buffer value = {0};
    for (int k = 0; k < key_count; k++) {
        const Key *key = &keys[k];
        for (size_t s = 0; s < sizeof spellings / sizeof *spellings; s++) {
            bool null = strcmp(spellings[s].path, "null") == 0;
            const char *want = NULL;
            switch (key->type) {
            case KEY_BOOL:
                want = spellings[s].boolean;
                break;
            case KEY_INT:
                want = spellings[s].whole;
                break;
            case KEY_FLOAT:
                want = spellings[s].number;
                break;
            case KEY_PATH:
                want = spellings[s].path;
                break;
            case KEY_TEXT:  // has a default
                want = null ? *spellings[s].written == 0 ? NULL : "?" : NULL;
                break;
            case KEY_LIST:
                want = spellings[s].list;
                break;
            case KEY_CHOICE:
                want = "!";
                break;
            case KEY_PROPORTIONS:
                want = null ? "{}" : "!";
                break;
            }
            for (int line = 0; line < 2 && want != NULL; line++) {
                value_of(key, spellings[s].written, line == 1, &value);
                bool same = strcmp(value.data, want) == 0 ||
                            (*want == '?' && (strcmp(value.data, want + 1) == 0 || strcmp(value.data, "!") == 0)) ||
                            (key->type == KEY_TEXT);
                if (!same) {
                    printf("%s: '%s'\n", key->name, spellings[s].written);
                    CHECK_TEXT(value.data, want);
                }
            }
        }
    }
    // In quotes a word is a text.
    value_of(keys_find(keys, key_count, "data.validation"), "'null'", false, &value);
    CHECK_TEXT(value.data, "\"null\"");
    value_of(keys_find(keys, key_count, "samples.prompts"), "['~', \"\"]", false, &value);
    CHECK_TEXT(value.data, "[\"~\", \"\"]");
    value_of(keys_find(keys, key_count, "samples.prompts"), "[a, ~]", false, &value);
    CHECK_TEXT(value.data, "!");
    buffer_free(&value);
}

static void test_home(void) {
    Buffer value = {0};
    char *home = memory_string(getenv("HOME") != NULL ? getenv("HOME") : "");
    setenv("HOME", "/home/somebody", 1);
    for (int k = 0; k < key_count; k++) {
        if (keys[k].type != KEY_PATH) {
            continue;
        }
        for (int line = 0; line < 2; line++) {
            value_of(&keys[k], "~/runs/x", line == 1, &value);
            CHECK_TEXT(value.data, "\"/home/somebody/runs/x\"");
            value_of(&keys[k], "~other/x", line == 1, &value);
            CHECK_TEXT(value.data, "!");
            value_of(&keys[k], "a/~/x~", line == 1, &value);
            CHECK_TEXT(value.data, "\"a/~/x~\"");
        }
        value_of(&keys[k], "'~'", false, &value);
        CHECK_TEXT(value.data, "\"/home/somebody\"");
        value_of(&keys[k], "''", false, &value);
        CHECK_TEXT(value.data, "!");
    }
    unsetenv("HOME");
    value_of(keys_find(keys, key_count, "folder"), "~/x", false, &value);
    CHECK_TEXT(value.data, "!");
    setenv("HOME", home, 1);
    free(home);
    buffer_free(&value);
}

// ---- Odd values
// ----------------------------------------------------------------------------------------------------------------------

// Whether a message is fit to be read: one line that is not endless and has no number that no one wrote.
static bool sound(const char *message, const char *given) {
    static const char *const nonsense[] = {"nan",   "inf ",  "(null)", "-9223372036854775808", "18446744073709551615",
                                           "is -1", "has -1"};
    for (size_t i = 0; i < sizeof nonsense / sizeof *nonsense; i++) {
        if (strstr(message, nonsense[i]) != NULL && strstr(given, "-") == NULL) {
            return false;
        }
    }
    return strchr(message, '\n') == NULL && strlen(message) < 1000;
}

// Resolves and plans what was read; `name`: for messages of the test.
static Error *resolve_and_plan(RunConfig *config, const char *name) {
    TRY(run_config_resolve(config, 300, 3, "run.yaml"));
    Machine machine = {.kind = DEVICE_CPU, .type = TYPE_FP32, .threads = 8, .memory = (int64_t)1 << 34};
    RunLayout layout = {.ranks = 3, .data_ranks = 3, .prompt_tokens = 10};
    layout.micro_batches = config->train.batch_tokens / (config->train.micro_batch * config->data.sequence_length * 3);
    MemoryPlan plan;
    run_plan(config, &layout, &machine, &plan);
    bool sane = plan.total >= 0 && plan.host >= 0;
    for (int i = 0; i < plan.count; i++) {
        sane = sane && plan.lines[i].bytes >= 0;
    }
    if (!CHECK(sane)) {
        printf("%s: a plan of %lld bytes\n", name, (long long)plan.total);
    }
    return run_plan_check(config, &layout, &machine);
}

// Reads, resolves and plans with `key` set to `value`. What goes wrong is one line, and wrong usage that names the key unless
// it is only too large for the machine.
static void try_value(const Key *key, const char *value) {
    char *override = memory_format("%s=%s", key->name, value);
    char *text = memory_format("%smodel: {layers: 2, width: 32, heads: 4, context: 64}\n", usual);
    RunConfig config;
    clock_t start = clock();
    Error *error = read_run(&config, text, &override, 1);
    if (error == NULL) {
        error = resolve_and_plan(&config, override);
    }
    if (error != NULL) {
        bool large = strstr(error->message, "the run needs") != NULL;
        bool named = strstr(error->message, key->name) != NULL && error->kind == ERROR_USAGE;
        if (!CHECK(sound(error->message, value)) || !CHECK(large || named)) {
            printf("%.60s: %.300s\n", override, error->message);
        }
    }
    double seconds = (double)(clock() - start) / CLOCKS_PER_SEC;
    if (!CHECK(seconds < 3)) {
        printf("%.60s took %.1f s\n", override, seconds);
    }
    error_free(error);
    run_config_free(&config);
    free(text);
    free(override);
}

static void test_odd_values(void) {
    char *long_text = memory_zeroed(1 << 16, 1);
    memset(long_text, 'a', (1 << 16) - 1);
    for (int k = 0; k < key_count; k++) {
        const Key *key = &keys[k];
        char least[40], most[40], above[40];
        snprintf(least, sizeof least, "%.17g", key->least);
        snprintf(most, sizeof most, "%.17g", key->most);
        snprintf(above, sizeof above, "%.17g", key->most * 1.0001 + 1);
        const char *values[] = {least,
                                most,
                                above,
                                "0",
                                "-1",
                                "1",
                                "2",
                                "3",
                                "7",
                                "1e300",
                                "9223372036854775807",
                                "-9223372036854775808",
                                "",
                                " ",
                                "text",
                                "0.999999",
                                "1.0000001",
                                long_text,
                                "{}",
                                "[]",
                                "[",
                                "{a: -1}",
                                "{a: 0}",
                                "{a: 0, b: 0}",
                                "{a: 1e300, b: 1e308}",
                                "\x01",
                                "\xFF",
                                "\"",
                                "!x",
                                "&a b",
                                "*a",
                                "%",
                                "@",
                                "- 1",
                                "a: b"};
        for (size_t v = 0; v < sizeof values / sizeof *values; v++) {
            try_value(key, values[v]);
        }
    }
    free(long_text);
}

// The largest model that the table allows, with a micro-batch of many divisors: refused at once.
static void test_vast(void) {
    char *text =
        memory_format("%smodel: {layers: 4096, width: 262144, heads: 16384, head_width: 4096, ffn_width: 1048576, context: "
                      "16777216, vocabulary: 268435456}\ntrain.micro_batch: 720720\n",
                      usual);
    RunConfig config;
    clock_t start = clock();
    CHECK_OK(read_run(&config, text, NULL, 0));
    CHECK_FAILS(resolve_and_plan(&config, "vast"), "PiB of memory and");
    CHECK((double)(clock() - start) / CLOCKS_PER_SEC < 10);
    run_config_free(&config);
    free(text);
}

// ---- What is asked for and will not come to pass
// ---------------------------------------------------------------------------------------

// What run_config_remark logs of the usual run of 10 steps with more settings.
static void remark(const char *more, Buffer *out) {
    char *text = memory_format("%smodel: {layers: 2, width: 32, heads: 4, context: 64}\n%s", usual, more);
    char *path = path_join(folder, "log");
    RunConfig config;
    CHECK_OK(read_run(&config, text, NULL, 0));
    CHECK_OK(run_config_resolve(&config, 300, 1, "run.yaml"));
    fflush(stderr);
    int kept = dup(STDERR_FILENO), file = open(path, O_WRONLY | O_CREAT | O_TRUNC, 0600);
    dup2(file, STDERR_FILENO);
    run_config_remark(&config);
    fflush(stderr);
    dup2(kept, STDERR_FILENO);
    close(kept);
    close(file);
    buffer_clear(out);
    CHECK_OK(file_read(path, 1 << 20, out));
    buffer_text(out, "");
    run_config_free(&config);
    free(path);
    free(text);
}

static void test_remarks(void) {
    static const struct {
        const char *more, *told;  // NULL: nothing
    } cases[] = {
        {"checkpoint.every: 10\n", NULL},
        {"checkpoint.every: 0\nschedule.warmup_steps: 9\n", NULL},
        {"checkpoint.every: 0\nschedule.warmup_steps: 10\n", "schedule.warmup_steps is 10, but the run has 10 steps"},
        {"checkpoint.every: 0\nschedule.warmup_steps: 40\n", "still rising when it ends, at 25% of its peak"},
        {"checkpoint.every: 0\nschedule: {kind: wsd, decay_steps: 10}\n", NULL},
        {"checkpoint.every: 0\nschedule: {kind: wsd, decay_steps: 11}\n", "schedule.decay_steps is 11"},
        {"checkpoint.every: 0\nschedule: {kind: wsd, decay_steps: 8, warmup_steps: 3}\n",
         "the learning rate falls in the other 7"},
        {"checkpoint.every: 0\nschedule: {kind: wsd, warmup_steps: 3}\n", NULL},
        {"checkpoint.every: 0\nschedule: {kind: cosine, decay_steps: 800}\n", NULL},
        {"checkpoint.every: 11\n", "checkpoint.every is 11, more than the run's 10 steps: done at its ends only"},
        {"checkpoint.every: 11\nvalidation.every: 12\nsamples.every: 13\n", "note      checkpoint.every is 11, more"},
        {"checkpoint.every: 11\nvalidation.every: 12\nsamples.every: 13\ndata.validation: x\nsamples.prompts: [a]\n",
         "checkpoint.every is 11, validation.every is 12, samples.every is 13, more"},
    };
    Buffer told = {0};
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        remark(cases[i].more, &told);
        size_t lines = 0;
        for (const char *p = told.data; *p != 0; p++) {
            lines += *p == '\n';
        }
        bool right = cases[i].told == NULL ? lines == 0 : lines == 1 && strstr(told.data, cases[i].told) != NULL;
        if (!CHECK(right)) {
            printf("%s: %s\n", cases[i].more, told.data);
        }
    }
    buffer_free(&told);
}

int main(void) {
    keys = run_config_keys(&key_count);
    folder = check_folder();
    RUN(test_mistakes);
    RUN(test_slips);
    RUN(test_also);
    RUN(test_twice);
    RUN(test_spellings);
    RUN(test_home);
    RUN(test_odd_values);
    RUN(test_vast);
    RUN(test_remarks);
    return check_report();
}
