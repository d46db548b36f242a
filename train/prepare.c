// Preparing a run: corpora, order, model, memory plan (trainer_state.h).
#include "train/trainer_state.h"

#include "core/log.h"
#include "core/text.h"
#include "train/layout_search.h"
#include "train/run_device.h"

// ---- Prepare: what each rank can do alone
// -----------------------------------------------------------------------------------------------

static Error *open_corpora(Trainer *t) {
    const RunConfig *config = t->config;
    TRY(error_wrap(corpus_open(config->data.corpus, &t->corpus), "data.corpus"));
    TRY(corpus_load_tokenizer(&t->corpus, &t->tokenizer));
    if (t->tokenizer == NULL && config->model.vocabulary == 0) {
        return failure("%s: corpus %s does not tell its vocabulary; set model.vocabulary", t->config_path, t->corpus.path);
    }
    if (config->data.validation == NULL) {
        return NULL;
    }
    t->has_validation = true;
    TRY(error_wrap(corpus_open(config->data.validation, &t->validation), "data.validation"));
    if (t->corpus.tokenizer_fingerprint != 0 && t->validation.tokenizer_fingerprint != 0 &&
        t->corpus.tokenizer_fingerprint != t->validation.tokenizer_fingerprint) {
        return failure("%s and %s were built with different tokenizers; build one of them again", t->corpus.path,
                       t->validation.path);
    }
    Tokenizer *tokenizer;
    TRY(corpus_load_tokenizer(&t->validation, &tokenizer));
    tokenizer_free(tokenizer);
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
                           .step_samples = config->train.batch_tokens / config->data.sequence_length,
                           .rank = t->mesh->coordinate[MESH_DATA],
                           .ranks = t->mesh->size[MESH_DATA],
                           .first_step = t->step,
                           .side_by_side = config->train.reproducible,
                           .prefetch = (int)config->data.prefetch,
                           .documents_apart = config->data.documents_apart};
}

// The tokens of the longest prompt of the samples, with the one that opens a document.
static int64_t prompt_tokens(const Trainer *t) {
    const Strings *prompts = &t->config->samples.prompts;
    size_t longest = 0;
    Encoder *encoder = t->tokenizer != NULL ? encoder_create(t->tokenizer) : NULL;
    for (size_t i = 0; i < prompts->count && encoder != NULL; i++) {
        Tokens tokens = {0};
        size_t size = strlen(prompts->items[i]);
        encoder_encode(encoder, prompts->items[i], utf8_valid_prefix(prompts->items[i], size), false, &tokens);
        longest = tokens.count > longest ? tokens.count : longest;
        free(tokens.ids);
    }
    encoder_free(encoder);
    return (int64_t)longest + 1;
}

// On a card all micro-batches of a step lie there before it begins; in a pipeline several are under way.
static Error *make_batches(Trainer *t) {
    int64_t sequences = t->config->train.micro_batch, length = t->config->data.sequence_length;
    size_t each = batch_cut_bytes(sequences, length, t->mesh->size[MESH_CONTEXT]);
    t->batch_bytes = (size_t)t->micro_batches * each;
    TRY(device_allocate(t->device, t->batch_bytes, &t->batch_memory));
    t->batches = memory_zeroed((size_t)t->micro_batches, sizeof *t->batches);
    for (int64_t m = 0; m < t->micro_batches; m++) {
        batch_place(&t->batches[m], (int32_t *)(void *)((char *)t->batch_memory + (size_t)m * each), sequences, length);
    }
    return NULL;
}

static RunLayout layout_of(const Trainer *t) {
    return run_layout_of(t->config, t->mesh->size, t->world->rank);
}

Error *trainer_make_model(Trainer *t) {
    RunLayout layout = layout_of(t);
    ModelOptions options = run_rank_options(t->config, &layout);
    TRY(model_create(t->device, &t->config->model, &options, &t->model));
    t->parts = model_parts(&t->model->weights, layout.data_ranks, layout.data_rank);
    return t->late || t->model->stages != NULL ? make_batches(t) : NULL;
}

// The device and what it has. Once.
static Error *open_device(Trainer *t) {
    if (t->device == NULL) {
        TRY(run_device_open(t->config, t->world->host_rank, t->world->host_size, &t->device));
        t->late = t->device->kind != DEVICE_CPU;
        t->machine = machine_of(t->device, t->world->host_size, run_device_sharers(t->device, t->world->host_size));
    }
    return NULL;
}

Error *trainer_prepare(Trainer *t) {
    RunConfig *config = t->config;
    TRY(run_config_resolve(config, t->corpus.vocabulary > 0 ? t->corpus.vocabulary : 0, t->mesh->size[MESH_DATA],
                           t->config_path));
    if (t->world->rank == 0) {
        run_config_remark(config);
    }
    TRY(order_create(&t->corpus, config->data.sequence_length, &config->data.mixture, &config->data.epochs,
                     (uint64_t)config->seed, &t->order));
    t->micro_batches = layout_of(t).micro_batches;
    t->schedule = (Schedule){.kind = (ScheduleKind)config->schedule.kind,
                             .peak = config->optimizer.learning_rate,
                             .floor = config->schedule.floor,
                             .warmup_steps = config->schedule.warmup_steps,
                             .decay_steps = config->schedule.decay_steps,
                             .steps = config->train.steps};
    TRY(open_device(t));
    RunLayout layout = layout_of(t);
    layout.prompt_tokens = prompt_tokens(t);
    ModelOptions options = run_rank_options(config, &layout);
    TRY(error_wrap(model_check_placement(&config->model, &options, t->device->type), "parallel.tensor"));
    run_plan(config, &layout, &t->machine, &t->plan);
    return run_plan_check(config, &layout, &t->machine);
}

Error *trainer_open(Trainer *t) {
    TRY(open_corpora(t));
    TRY(run_config_resolve_model(t->config, t->corpus.vocabulary > 0 ? t->corpus.vocabulary : 0, t->config_path));
    return t->config->parallel.layout == 1 ? open_device(t) : NULL;
}

// The layout that the search finds best, put into the configuration. All ranks ask it the same: of the least memory that any of
// them has.
static Error *choose_layout(Trainer *t) {
    RunConfig *config = t->config;
    Machine machine = t->machine;
    double least[2] = {-(double)machine.memory, -(double)machine.host_memory};
    TRY(comm_all_reduce_doubles(t->world, least, 2, COMM_MAX));
    machine.memory = -(int64_t)least[0];
    machine.host_memory = -(int64_t)least[1];
    LayoutCosts costs = layout_costs(&machine);
    LayoutScore *scores;
    int count = layout_search(config, &machine, t->world->size, &costs, &scores);
    if (count > 0) {
        char *why = layout_why(scores, count, &machine);
        log_info("layout    %s", why);
        free(why);
        config->parallel.data = scores[0].size[MESH_DATA];
        config->parallel.tensor = scores[0].size[MESH_TENSOR];
        config->parallel.pipeline = scores[0].size[MESH_PIPELINE];
        config->parallel.context = scores[0].size[MESH_CONTEXT];
        config->parallel.zero = scores[0].zero;
    }
    free(scores);
    return NULL;
}

Error *trainer_make_mesh(Trainer *t) {
    int sizes[MESH_AXES];
    if (t->config->parallel.layout == 1) {
        TRY(choose_layout(t));
    }
    TRY(run_layout_resolve(t->config, t->world->size, t->config_path, sizes));
    return mesh_create(t->world, sizes, &t->mesh);
}
