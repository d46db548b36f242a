// Preparing a run: corpora, order, model, memory plan (trainer_state.h).
#include "train/trainer_state.h"

#include "core/text.h"
#include "parallel/sharding.h"
#include "train/run_device.h"

// ---- Prepare: what each rank can do alone
// -----------------------------------------------------------------------------------------------

static Error *open_corpora(Trainer *t) {
    const RunConfig *config = t->config;
    TRY(corpus_open(config->data.corpus, &t->corpus));
    if (t->corpus.tokenizer_path != NULL) {
        TRY(tokenizer_load(t->corpus.tokenizer_path, &t->tokenizer));
        if (t->corpus.tokenizer_fingerprint != 0 && tokenizer_fingerprint(t->tokenizer) != t->corpus.tokenizer_fingerprint) {
            return damaged("%s is not the tokenizer that made %s; build the corpus again", t->corpus.tokenizer_path,
                           t->corpus.path);
        }
    } else if (config->model.vocabulary == 0) {
        return failure("%s: corpus %s does not tell its vocabulary; set model.vocabulary", t->config_path, t->corpus.path);
    }
    if (config->data.validation == NULL) {
        return NULL;
    }
    t->has_validation = true;
    TRY(corpus_open(config->data.validation, &t->validation));
    if (t->corpus.tokenizer_fingerprint != 0 && t->validation.tokenizer_fingerprint != 0 &&
        t->corpus.tokenizer_fingerprint != t->validation.tokenizer_fingerprint) {
        return failure("%s and %s were built with different tokenizers; build one of them again", t->corpus.path,
                       t->validation.path);
    }
    return NULL;
}

LoaderOptions trainer_loader_options(const Trainer *t) {
    const RunConfig *config = t->config;
    return (LoaderOptions){.order = t->order,
                           .corpus = &t->corpus,
                           .vocabulary = config->model.vocabulary,
                           .sequences = config->train.micro_batch,
                           .length = config->data.sequence_length,
                           .micro_batches = t->micro_batches,
                           .rank = t->mesh->coordinate[MESH_DATA],
                           .ranks = t->mesh->size[MESH_DATA],
                           .first_step = t->step,
                           .prefetch = (int)config->data.prefetch,
                           .documents_apart = config->data.documents_apart};
}

int64_t trainer_bucket_bytes(const Trainer *t) {
    return (int64_t)(t->config->parallel.bucket_mib * 1048576);
}

// This rank's slices of weights and moments: its even part of the flat arrays (each data-parallel rank saves a part of what all
// hold).
static void make_slices(Trainer *t) {
    const ParamTable *table = &t->model->table;
    t->tensors = memory_zeroed((size_t)table->count, sizeof *t->tensors);
    ShardTensor *places = memory_new((size_t)table->count, sizeof *places);
    for (int32_t i = 0; i < table->count; i++) {
        const Param *param = &table->rows[i];
        places[i] = (ShardTensor){param->offset, param->count};
        t->tensors[i] =
            (CheckpointTensor){.name = param->name, .dims = param->rank, .shape = {param->shape[0], param->shape[1]}};
    }
    ShardPiece *pieces;
    Range own = shard_part(table->elements, t->world->size, t->world->rank);
    int count = shard_pieces(places, table->count, own, &pieces);
    t->slices = memory_zeroed((size_t)count * SLICE_KINDS + 1, sizeof *t->slices);
    for (int kind = 0; kind < SLICE_KINDS; kind++) {
        for (int i = 0; model_has(t->model, (ModelArray)kind) && i < count; i++) {
            t->slices[t->slice_count++] =
                (CheckpointSlice){pieces[i].tensor, (SliceKind)kind, pieces[i].begin, pieces[i].end, NULL};
        }
    }
    free(pieces);
    free(places);
}

// What libraries still take after the plan is made: code that is first used by the kernels, MPI and HDF5, their buffers,
// threads' stacks. Measured on x86-64 with Open MPI 4.1 and HDF5 1.10: 6 to 8 MiB.
enum { LIBRARY_BYTES = 8 << 20 };
// On a card, beside its context: what cuBLASLt and lazily loaded kernels take, and NCCL for a group. Guesses, not measured.
enum { CARD_LIBRARY_BYTES = 256 << 20, CARD_NCCL_BYTES = 512 << 20 };

// A run that does not fit: says what would, with the largest micro-batch and the least recompute.
static Error *check_size(const Trainer *t, const ModelOptions *wanted) {
    MemoryPlan plan;
    model_plan(&t->config->model, wanted, t->device, &plan);
    Error *error = memory_plan_check(&plan, t->device);
    for (int64_t sequences = wanted->sequences; error != NULL && sequences >= 1; sequences--) {
        for (int recompute = wanted->recompute; recompute <= RECOMPUTE_FULL && wanted->sequences % sequences == 0;
             recompute++) {
            ModelOptions less = *wanted;
            less.sequences = sequences;
            less.recompute = (Recompute)recompute;
            less.batches = wanted->batches * wanted->sequences / sequences;
            model_plan(&t->config->model, &less, t->device, &plan);
            Error *still = memory_plan_check(&plan, t->device);
            if (still == NULL) {
                char bytes[32];
                Error *told = failure("%s. train.micro_batch=%lld train.recompute=%s would fit, with %s", error->message,
                                      (long long)sequences, recompute_names[recompute], text_bytes(bytes, (double)plan.total));
                error_free(error);
                return told;
            }
            error_free(still);
        }
    }
    return error;
}

static Error *make_model(Trainer *t) {
    const RunConfig *config = t->config;
    ModelOptions options = {.sequences = config->train.micro_batch,
                            .length = config->data.sequence_length,
                            .recompute = (Recompute)config->train.recompute,
                            .optimizer = (OptimizerKind)config->optimizer.kind,
                            .head_rows = config->train.head_rows,
                            .batches = t->micro_batches,
                            .no_masters = !config->train.masters,
                            .any_order = !config->train.deterministic,
                            .moments = (MomentType)config->optimizer.moments,
                            .weight_decay = config->optimizer.weight_decay};
    TRY(check_size(t, &options));
    TRY(model_create(t->device, &config->model, &options, &t->model));
    make_slices(t);
    MemoryPlan *plan = &t->model->plan;
    LoaderOptions loader = trainer_loader_options(t);
    memory_plan_add_host(plan, t->device, "batches", (int64_t)loader_bytes(&loader), "%lld + 1 micro-batches",
                         (long long)config->data.prefetch);
    if (t->world->size > 1) {
        memory_plan_add_host(plan, t->device, "reduction buffers",
                             buckets_bytes(t->model->table.elements, trainer_bucket_bytes(t), t->mesh->size[MESH_DATA]),
                             "two buckets of gradients");
    }
    if (t->device->kind == DEVICE_CUDA) {
        int64_t bytes = CARD_LIBRARY_BYTES + (t->world->size > 1 ? CARD_NCCL_BYTES : 0);
        memory_plan_add(plan, "libraries on the card", bytes, "their code and buffers, about");
    }
    memory_plan_add_host(plan, t->device, "libraries", LIBRARY_BYTES, "code and buffers first used later");
    memory_plan_add_host(plan, t->device, "checkpoint snapshot", (int64_t)checkpoint_snapshot_bytes(t->slices, t->slice_count),
                         "this rank's share of weights and moments");
    return NULL;
}

Error *trainer_prepare(Trainer *t) {
    RunConfig *config = t->config;
    TRY(open_corpora(t));
    TRY(run_config_resolve(config, t->corpus.vocabulary > 0 ? t->corpus.vocabulary : 0, t->mesh->size[MESH_DATA],
                           t->config_path));
    TRY(order_create(&t->corpus, config->data.sequence_length, &config->data.mixture, &config->data.epochs,
                     (uint64_t)config->seed, &t->order));
    t->micro_batches =
        config->train.batch_tokens / (config->train.micro_batch * config->data.sequence_length * t->mesh->size[MESH_DATA]);
    t->schedule = (Schedule){.kind = (ScheduleKind)config->schedule.kind,
                             .peak = config->optimizer.learning_rate,
                             .floor = config->schedule.floor,
                             .warmup_steps = config->schedule.warmup_steps,
                             .decay_steps = config->schedule.decay_steps,
                             .steps = config->train.steps};
    TRY(run_device_open(config, t->world->host_rank, t->world->host_size, &t->device));
    TRY(make_model(t));
    t->late = t->device->kind != DEVICE_CPU;
    return memory_plan_check(&t->model->plan, t->device);
}

Error *trainer_make_mesh(Trainer *t) {
    const RunConfig *config = t->config;
    if (config->parallel.tensor != 1 || config->parallel.pipeline != 1 || config->parallel.context != 1) {
        return failure(
            "%s: parallel.tensor, parallel.pipeline and parallel.context must be 1: this version is data-parallel only",
            t->config_path);
    }
    int sizes[MESH_AXES] = {(int)config->parallel.data, 1, 1, 1};
    return mesh_create(t->world, sizes, &t->mesh);
}
