// The memory plan of a run: see run_plan.h.
#include "train/run_plan.h"

#include "core/text.h"
#include "data/tokens/loader.h"
#include "kernels/scratch.h"
#include "parallel/buckets.h"
#include "train/checkpoint/stream_file.h"
#include "train/model/decoder.h"

// What libraries still take after the plan is made: code that is first used by the kernels, MPI and HDF5, their buffers,
// threads' stacks. Measured on x86-64 with Open MPI 4.1 and HDF5 1.10: 7 to 11 MiB.
enum { LIBRARY_BYTES = 12 << 20 };
// On a card, beside its context: what cuBLASLt and lazily loaded kernels take, and NCCL for a group. Guesses, not measured.
enum { CARD_LIBRARY_BYTES = 256 << 20, CARD_NCCL_BYTES = 512 << 20 };

static StageShare stage_share(const RunConfig *config, int ranks, int64_t micro_batches, int rank) {
    PipelineKind kind = (PipelineKind)config->parallel.schedule;
    int least = kind == PIPELINE_INTERLEAVED || kind == PIPELINE_ZB_V ? 2 : 1;
    int chunks = config->parallel.chunks > 0 ? (int)config->parallel.chunks : least;
    // In order the leaves go through the stages one after the other.
    StageShare share = {{kind, ranks, chunks, (int)micro_batches}, rank};
    return ranks > 1 ? share : (StageShare){0};
}

// The share of a data-parallel rank in sums that are made in order (train.reproducible).
static LeafShare leaf_share(const RunConfig *config, int ranks, int rank) {
    int parts = config->train.reproducible ? (int)config->train.reproducible_parts : 0;
    return (LeafShare){parts, rank, ranks, parts > 0 ? buckets_in_order_floats(run_bucket_bytes(config), ranks) : 0};
}

RunLayout run_layout_of(const RunConfig *config, const int size[MESH_AXES], int rank) {
    Mesh mesh = {0};
    memcpy(mesh.size, size, sizeof mesh.size);
    mesh_coordinate(&mesh, rank, mesh.coordinate);
    int tensor = size[MESH_TENSOR], data = size[MESH_DATA];
    ContextShare context = {mesh.coordinate[MESH_CONTEXT], size[MESH_CONTEXT]};
    int64_t micro_batches = run_config_micro_batches(config, data, mesh.coordinate[MESH_DATA]);
    LeafShare leaves = leaf_share(config, data, mesh.coordinate[MESH_DATA]);
    return (RunLayout){.ranks = data * tensor * size[MESH_PIPELINE] * size[MESH_CONTEXT],
                       .rank = rank,
                       .data_ranks = data * context.ranks,
                       .tensor = {mesh.coordinate[MESH_TENSOR], tensor, tensor > 1 && config->parallel.sequence},
                       .stages = stage_share(config, size[MESH_PIPELINE], micro_batches / leaves_here(&leaves),
                                             mesh.coordinate[MESH_PIPELINE]),
                       .context = context,
                       .data_rank = mesh.coordinate[MESH_DATA] * context.ranks + context.rank,
                       .micro_batches = micro_batches};
}

int64_t run_bucket_bytes(const RunConfig *config) {
    return (int64_t)(config->parallel.bucket_mib * 1048576);
}

ModelOptions run_model_options(const RunConfig *config) {
    return (ModelOptions){.sequences = config->train.micro_batch,
                          .length = config->data.sequence_length,
                          .recompute = (Recompute)config->train.recompute,
                          .optimizer = (OptimizerKind)config->optimizer.kind,
                          .head_rows = config->train.head_rows,
                          .masters = config->train.masters,
                          .deterministic = config->train.deterministic,
                          .moments = (MomentType)config->optimizer.moments,
                          .weight_decay = config->optimizer.weight_decay};
}

ModelOptions run_rank_options(const RunConfig *config, const RunLayout *layout) {
    ModelOptions options = run_model_options(config);
    options.tensor = layout->tensor;
    options.context = layout->context;
    options.stages = layout->stages;
    options.leaves = leaf_share(config, layout->data_ranks, layout->data_rank);
    if (config->parallel.zero > 0) {
        options.shard = layout->data_rank;
        options.shards = layout->data_ranks;
        options.zero = (int)config->parallel.zero;
    }
    return options;
}

// Weights and moments that this rank saves, and what its sums of gradients take of the host meanwhile, in bytes.
static int64_t saved_bytes(const RunConfig *config, const RunLayout *layout, const Machine *machine, int64_t *sums) {
    ModelOptions options = run_rank_options(config, layout);
    ParamTable table;
    SavedPart *parts;
    params_create(&config->model, &table);
    ModelWeights weights = {.table = &table, .placement = model_placement(&table, &options, machine->type)};
    int count = weights_saved(&weights, layout->data_ranks, layout->data_rank, &parts);
    int64_t bytes = 0;
    for (int i = 0; i < count; i++) {
        DataType type = weights_type(&weights, parts[i].array, parts[i].row);
        int64_t elements = parts[i].end - parts[i].begin;
        bytes += elements * data_type_bytes(type) + data_type_scales(type, elements) * (int64_t)sizeof(float);
    }
    // MPI takes twice what it reduces in parts.
    const Placement *placement = &weights.placement;
    *sums = placement->units != NULL && placement->share.whole_gradients == 0
                ? 2 * placement->slots * (int64_t)sizeof(float)
                : buckets_bytes(placement->gradients, run_bucket_bytes(config), layout->data_ranks);
    weights_free(&weights);
    params_free(&table);
    free(parts);
    return bytes;
}

// What a validation holds on the host: a batch, its losses, the bytes of each token.
static int64_t validation_bytes(const RunConfig *config) {
    int64_t sequences = config->train.micro_batch, length = config->data.sequence_length;
    int64_t losses = sequences * length * (int64_t)sizeof(float);
    return 2 * (int64_t)batch_bytes(sequences, length) + losses + config->model.vocabulary * (int64_t)sizeof(float);
}

// What sample texts take: a decoder for the longest, and what attention over it needs of a CPU beyond a training pass.
static void plan_samples(const RunConfig *config, const RunLayout *layout, const Machine *machine, MemoryPlan *out) {
    int64_t capacity = layout->prompt_tokens + config->samples.tokens, width = config->model.head_width;
    capacity = capacity < config->model.context ? capacity : config->model.context;
    ModelOptions options = run_rank_options(config, layout);
    decoder_plan(&config->model, &options, machine, 1, capacity, out);
    char threads[64];
    int64_t more =
        attention_scratch_bytes(capacity, width, false) - attention_scratch_bytes(config->data.sequence_length, width, true);
    if (machine->kind == DEVICE_CPU && more > 0) {
        memory_plan_add(out, "kernels' scratch for samples", machine->threads * more, "%s, about",
                        text_number_of(threads, machine->threads, "thread"));
    }
}

void run_plan(const RunConfig *config, const RunLayout *layout, const Machine *machine, MemoryPlan *out) {
    ModelOptions options = run_rank_options(config, layout);
    DeviceKind kind = machine->kind;
    bool card = kind != DEVICE_CPU;
    model_plan(&config->model, &options, machine, out);
    LoaderOptions loader = {
        .sequences = config->train.micro_batch, .length = config->data.sequence_length, .prefetch = (int)config->data.prefetch};
    int64_t sums, saved = saved_bytes(config, layout, machine, &sums);
    if (card || layout->stages.shape.ranks > 1) {
        memory_plan_add(out, card ? "micro-batches on the card" : "micro-batches of a step",
                        layout->micro_batches * (int64_t)batch_cut_bytes(config->train.micro_batch,
                                                                         config->data.sequence_length, layout->context.ranks),
                        "all %lld of a step", (long long)layout->micro_batches);
    }
    if (config->samples.every > 0 && config->samples.prompts.count > 0 &&
        (layout->data_rank == 0 || config->parallel.zero >= 3)) {
        plan_samples(config, layout, machine, out);
    }
    memory_plan_add_host(out, kind, "batches", (int64_t)loader_bytes(&loader), "%lld + 1 micro-batches",
                         (long long)config->data.prefetch);
    if (config->data.validation != NULL && config->validation.every > 0) {
        memory_plan_add_host(out, kind, "validation", validation_bytes(config), "a batch, its losses, bytes of tokens");
    }
    if (layout->ranks > 1) {
        memory_plan_add_host(out, kind, "reduction buffers", sums, "buckets of gradients");
    }
    if (kind == DEVICE_CUDA) {
        int64_t bytes = CARD_LIBRARY_BYTES + (layout->ranks > 1 ? CARD_NCCL_BYTES : 0);
        memory_plan_add(out, "libraries on the card", bytes, "their code and buffers, about");
    }
    memory_plan_add_host(out, kind, "libraries", LIBRARY_BYTES, "code and buffers first used later");
    memory_plan_add_host(out, kind, "checkpoint snapshot", saved, "this rank's share of weights and moments");
    memory_plan_add_host(out, kind, "checkpoint on its way to disk", STREAM_FILE_BYTES, "past the page cache");
}

// What the run needs with another micro-batch and recompute, in `plan`; the error where that does not fit either.
static Error *check_smaller(const RunConfig *config, const RunLayout *layout, const Machine *machine, int64_t sequences,
                            int recompute, MemoryPlan *plan) {
    RunConfig less = *config;
    RunLayout other = *layout;
    less.train.micro_batch = sequences;
    less.train.recompute = recompute;
    other.micro_batches = layout->micro_batches * config->train.micro_batch / sequences;
    LeafShare leaves = leaf_share(config, layout->data_ranks, layout->data_rank);
    other.stages.shape.micro_batches = (int)other.micro_batches / leaves_here(&leaves);
    run_plan(&less, &other, machine, plan);
    return memory_plan_check(plan, machine);
}

Error *run_plan_check(const RunConfig *config, const RunLayout *layout, const Machine *machine) {
    MemoryPlan plan;
    run_plan(config, layout, machine, &plan);
    Error *error = memory_plan_check(&plan, machine);
    int64_t wanted = config->train.micro_batch;
    // Where not even the least fits, there is nothing to search for.
    Error *least = error != NULL ? check_smaller(config, layout, machine, 1, RECOMPUTE_FULL, &plan) : NULL;
    bool search = error != NULL && least == NULL;
    error_free(least);
    for (int64_t sequences = wanted; search && sequences >= 1; sequences--) {
        for (int recompute = config->train.recompute; recompute <= RECOMPUTE_FULL && wanted % sequences == 0; recompute++) {
            Error *still = check_smaller(config, layout, machine, sequences, recompute, &plan);
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
