// What all ranks of a run must have the same (trainer_state.h).
#include "train/trainer_state.h"

#include "core/durable.h"
#include "core/version.h"
#include "parallel/same.h"

#include <inttypes.h>

// The program's own bytes tell builds apart that call themselves the same.
static void add_build(Buffer *facts) {
    int64_t bytes = 0;
    uint64_t hash = 0;
    Error *error = file_hash("/proc/self/exe", &bytes, &hash);
    error_free(error);  // no /proc: the names must do
    same_add(facts, "the build", "%s %s %s %s %016" PRIx64, ATHANOR_VERSION, ATHANOR_COMMIT, ATHANOR_COMPILER,
             ATHANOR_BUILD_TYPE, hash);
}

static void add_keys(Buffer *facts, const RunConfig *config) {
    int count;
    const Key *keys = run_config_keys(&count);
    for (int i = 0; i < count; i++) {
        if (!keys[i].per_rank) {
            Buffer value = {0};
            key_print(&keys[i], config, &value);
            same_add(facts, keys[i].name, "%s", value.data);
            buffer_free(&value);
        }
    }
}

Error *trainer_compare_given(const RunConfig *config, Comm *world) {
    if (world->size == 1) {
        return NULL;
    }
    Buffer facts = {0};
    add_build(&facts);
    add_keys(&facts, config);
    Error *error = same_on_all(world, &facts);
    buffer_free(&facts);
    return error;
}

static void add_corpus(Buffer *facts, const char *what, const Corpus *corpus) {
    same_add(facts, what, "%s, of fingerprint %016" PRIx64 ", tokenizer %016" PRIx64 ", vocabulary %" PRId64, corpus->path,
             corpus->fingerprint, corpus->tokenizer_fingerprint, corpus->vocabulary);
}

Error *trainer_compare_prepared(const Trainer *t) {
    Buffer facts = {0};
    add_corpus(&facts, "data.corpus", &t->corpus);
    if (t->has_validation) {
        add_corpus(&facts, "data.validation", &t->validation);
    }
    same_add(&facts, "the tokenizer", "%016" PRIx64, t->tokenizer != NULL ? tokenizer_fingerprint(t->tokenizer) : 0);
    same_add(&facts, "the order of samples", "%016" PRIx64, order_fingerprint(t->order));
    same_add(&facts, "the device", "%s of %s", t->device->kind == DEVICE_CPU ? "a CPU" : "a card",
             data_type_name(t->device->type));
    add_keys(&facts, t->config);  // what followed from the rest
    Error *error = same_on_all(t->world, &facts);
    buffer_free(&facts);
    return error;
}
