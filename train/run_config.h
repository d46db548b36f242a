// The configuration of a run: every setting, from one table.
//
// `athanor train CONFIG.yaml` reads it, `athanor train --keys` prints it, docs/configuration.md is that print, and the resolved
// values are saved as RUN/config.yaml, which generate, eval and inspect read back.
#pragma once

#include "core/keys.h"
#include "kernels/kernels.h"
#include "train/model/config.h"
#include "train/schedule.h"

typedef enum RunDevice { RUN_DEVICE_AUTO, RUN_DEVICE_CPU, RUN_DEVICE_CUDA, RUN_DEVICE_SIMULATED } RunDevice;
typedef enum RunType { RUN_TYPE_AUTO, RUN_TYPE_FP32, RUN_TYPE_BF16, RUN_TYPE_FP16 } RunType;
extern const char *const run_device_names[], *const run_type_names[], *const run_products_names[];

enum { RUN_KEYS_MOST = 128 };

typedef struct RunConfig {
    char *folder;
    int64_t seed;
    int64_t threads;  // 0: the cores of the host shared by its ranks
    int device;       // RunDevice
    int64_t card;     // -1: dealt to the host's ranks in turn
    char *instruction_set;
    int products;  // of run_products_names, the first is auto

    ModelConfig model;
    bool model_seen[64];             // which of model_keys were given
    bool overridden[RUN_KEYS_MOST];  // which of run_config_keys were given on the command line

    struct {
        char *corpus, *validation;
        int64_t sequence_length;  // 0: the model's context
        Proportions mixture, epochs;
        bool documents_apart;
        int64_t prefetch;
    } data;

    struct {
        int64_t steps, tokens;  // one of the two; resolved to steps
        int64_t batch_tokens;   // of the whole step, all ranks
        int64_t micro_batch;    // sequences
        int recompute;
        int64_t head_rows;
        double z_loss;
        int64_t most_skipped, check_replicas;
        int type;  // RunType
        bool masters, graph, deterministic, reproducible;
        int64_t reproducible_parts;
    } train;

    struct {
        int kind;     // OptimizerKind
        int moments;  // MomentType
        double learning_rate, beta1, beta2, epsilon, weight_decay, clip;
    } optimizer;

    struct {
        int kind;  // ScheduleKind
        int64_t warmup_steps, decay_steps;
        double floor;
    } schedule;

    struct {
        int64_t every, keep_last, keep_every;
    } checkpoint;

    struct {
        int64_t every, samples;
    } validation;

    struct {
        int64_t every, tokens, top_k;
        Strings prompts;
        double temperature, top_p;
    } samples;

    struct {
        int64_t every;
    } log;

    struct {
        int layout;                               // 0: as the sizes say, 1: searched (layout_search.h)
        int64_t data, tensor, pipeline, context;  // data 0: all ranks that the others leave
        int schedule;                             // PipelineKind
        int64_t chunks;                           // 0: as few as the schedule has
        bool sequence;
        int64_t zero;
        double bucket_mib;
    } parallel;
} RunConfig;

// How ranks share a step of batch_tokens in sequences of `length` tokens: the largest train.micro_batch up to `at_most` for
// *ranks of them, or else for the largest smaller number, which *ranks is set to. 0 where one rank cannot take it either.
int64_t run_config_micro_batch(int64_t batch_tokens, int64_t length, int64_t at_most, int *ranks);

// The leaves of sums in order (train.reproducible_parts) of a step of so many micro-batches: what is given, or as many as can
// be up to 8.
int64_t run_config_parts(const RunConfig *config, int64_t micro_batches);

// The micro-batches of a step that fall to a data-parallel rank. Where they do not divide, the first ranks have one more: the
// step's samples are the same on any number of ranks. Of a resolved configuration.
int64_t run_config_micro_batches(const RunConfig *config, int ranks, int rank);

// The whole table, the model's keys under "model." included.
const Key *run_config_keys(int *count);

// Reads a configuration with overrides "key.path=value" and checks what can be checked without the corpus. `config` must be
// zeroed; free it in any case. What is wrong because of an override is ERROR_USAGE, here and in run_config_resolve.
Error *run_config_read(RunConfig *config, const char *path, char *const *overrides, int override_count) MUST_CHECK;

// The model alone, for what depends on nothing else; run_config_resolve does it too.
Error *run_config_resolve_model(RunConfig *config, int64_t corpus_vocabulary, const char *where) MUST_CHECK;

// Fills in what follows from the rest: the model's family defaults and vocabulary (corpus_vocabulary: 0 if unknown), the
// sequence length, batch_tokens, steps. Sizes that do not divide are errors that name sizes that do.
Error *run_config_resolve(RunConfig *config, int64_t corpus_vocabulary, int data_ranks, const char *where) MUST_CHECK;

// Logs what a resolved configuration asks for that will not come to pass: a warm-up or decay that is longer than the run, which
// is a warning since short trials of long recipes are common, and what is due less often than once.
void run_config_remark(const RunConfig *config);
void run_config_free(RunConfig *config);

// Appends the resolved configuration as YAML.
void run_config_write(const RunConfig *config, Buffer *out);

// Appends the reference of all keys as Markdown (docs/configuration.md).
void run_config_document(Buffer *out);
