// The state of a run in progress, shared by the files that tell its story: prepare.c, resume.c, look.c, trainer.c. Not for
// others.
#pragma once

#include "data/tokens/kept_sums.h"
#include "data/tokens/loader.h"
#include "parallel/buckets.h"
#include "parallel/links.h"
#include "parallel/mesh.h"
#include "train/metrics.h"
#include "train/model_checkpoint.h"
#include "train/run_plan.h"
#include "train/run_record.h"
#include "train/saved_run.h"
#include "train/trainer.h"

#include <sys/stat.h>

typedef struct Trainer Trainer;

// Who looks into a run from within, for tests: called on every rank.
typedef struct TrainerWatch {
    void (*begun)(void *context, Trainer *t);            // before the first step; may still change the weights
    void (*gradients)(void *context, const Trainer *t);  // those of step t->step + 1, summed over the ranks
    void (*told)(void *context, const Trainer *t);       // t->control is that of step t->told
    void *context;
} TrainerWatch;

// See ending.c.
typedef struct Ending {
    Error *lost;       // this rank had no data for the step under way
    Batch blank;       // what it computed on instead; allocated when needed
    Error *gone;       // rank 0: the run folder is not there any more
    struct stat lock;  // rank 0: the run folder's, at the first look
    bool warned;       // of the launcher's limit
} Ending;

struct Trainer {
    const TrainerWatch *watch;  // NULL: nobody
    RunConfig *config;
    const char *config_path;
    Comm *world;
    Mesh *mesh;
    PipelineLinks *links;  // NULL without a pipeline
    Device *device;
    Corpus corpus, validation;
    bool has_validation;
    KeptSums *kept, *validation_kept;  // where they come without sums of their blocks
    Tokenizer *tokenizer;
    Order *order;
    Loader *loader;
    Machine machine;
    MemoryPlan plan;
    Model *model;
    Batch *batches;  // on a card and of a pipeline: where the micro-batches of a step lie; else NULL
    void *batch_memory;
    size_t batch_bytes;
    Buckets *buckets;
    CheckpointWriter *writer;
    ModelParts parts;  // what this rank saves
    uint64_t run;      // the run's identity, kept over resumes; rank 0
    Metrics *metrics;  // rank 0
    RunRecord record;
    Schedule schedule;
    int64_t micro_batches;  // per rank and step
    int64_t step;           // steps begun
    bool resumed;
    Ending ending;

    // On a card the results of a step come back while the next one runs.
    bool late;
    int64_t told;         // steps whose results are known
    StepControl control;  // of the last of these
    struct {
        double learning_rate, data_waited, comm_waited;
        MeshTraffic traffic;
    } pending[2];        // of step s at s % 2
    double told_at;      // when
    DeviceGraph *graph;  // the operations of a step, once they were recorded
};

// train_run with somebody who watches.
Error *train_run_watched(RunConfig *config, const char *config_path, Comm *world, const TrainerWatch *watch,
                         bool *stopped) MUST_CHECK;

// prepare.c: what comes before the first step. Each rank does it alone, and creates nothing on disk; all ranks have looked at
// the machine and planned before any of them allocates.
Error *trainer_open(Trainer *t) MUST_CHECK;
Error *trainer_make_mesh(Trainer *t) MUST_CHECK;  // collective where the layout is searched
Error *trainer_prepare(Trainer *t) MUST_CHECK;
Error *trainer_make_model(Trainer *t) MUST_CHECK;
LoaderOptions trainer_loader_options(const Trainer *t);

// compare.c: what is not the same on all ranks is told before it counts: how the ranks were started (before they exchange
// anything else), and what they then found (corpora, devices). Collective.
Error *trainer_compare_given(const RunConfig *config, Comm *world) MUST_CHECK;
Error *trainer_compare_prepared(const Trainer *t) MUST_CHECK;

// resume.c: the run folder, and going on from a checkpoint. trainer_make_writer and trainer_resume are collective; the latter
// starts afresh where there is none.
Error *trainer_make_writer(Trainer *t) MUST_CHECK;
Error *trainer_resume(Trainer *t) MUST_CHECK;
Error *trainer_write_files(Trainer *t) MUST_CHECK;
void trainer_begin_checkpoint(Trainer *t);  // the results of all steps must be known
// Waits for the save under way; that a needed one failed is an error. Collective.
Error *trainer_finish_checkpoint(Trainer *t, bool needed) MUST_CHECK;

// ending.c: how a run ends before its last step.
// The next micro-batch of this rank. Where it cannot be read, ending.lost tells, and the batch makes the step count for
// nothing.
const Batch *trainer_next_batch(Trainer *t);
void trainer_watch_folder(Trainer *t);  // sets ending.gone
// The end after a step that some rank had no data for, and where the folder is gone: saves what can be saved, and returns what
// was the matter. Collective.
Error *trainer_end_lost(Trainer *t) MUST_CHECK;
Error *trainer_end_gone(Trainer *t) MUST_CHECK;
// Warns once where a step of so many seconds and a save take longer than the launcher leaves a run that it stops.
void trainer_warn_grace(Trainer *t, double seconds);
void trainer_ending_free(Trainer *t);

// rehearse.c: chooses kernels and sizes scratch on a card. Collective.
Error *trainer_rehearse(Trainer *t) MUST_CHECK;

// look.c: validation and sample texts where they are due, or in any case at the `edge` of a run. Collective.
Error *trainer_look(Trainer *t, bool edge) MUST_CHECK;
bool trainer_looks(const Trainer *t);  // something of it is due after this step

// True at every `every`-th step; never where `every` is 0.
bool trainer_due(int64_t every, int64_t step);
