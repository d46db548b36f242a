// The configuration of a run: see run_config.h.
#include "train/run_config.h"

#include "core/config.h"
#include "core/log.h"
#include "core/text.h"
#include "train/model/plan.h"

#include <ctype.h>
#include <stdio.h>

const char *const run_device_names[] = {"auto", "cpu", "cuda", "simulated", NULL};
const char *const run_type_names[] = {"auto", "fp32", "bf16", "fp16", NULL};
const char *const run_products_names[] = {"auto", "ours", "cublas", "sm80", NULL};
static const char *const moment_names[] = {"fp32", "8bit", NULL};
static const char *const optimizer_names[] = {"adamw", "lion", "sgd", NULL};
static const char *const layout_names[] = {"given", "auto", NULL};
static const char *const pipeline_names[] = {"1f1b", "interleaved", "zb-h1", "zb-v", NULL};  // of PipelineKind
static const char *const schedule_names[] = {"cosine", "linear", "constant", "wsd", NULL};

#define AT(member) offsetof(RunConfig, member)
static const Key own_keys[] = {
    {"folder", KEY_PATH, AT(folder),
     .help = "The run folder: configuration, metrics, samples and checkpoints go there; a run continues from what it holds.",
     .also =
         "out_dir output_dir run_dir save_dir run_folder checkpoint_dir ckpt_dir resume resume_from resume_from_checkpoint"},
    {"seed", KEY_INT, AT(seed), "1234", 0, 9e15, .help = "Seed of initial weights, data order, dropout and samples.",
     .also = "random_seed rng_seed manual_seed"},
    {"device", KEY_CHOICE, AT(device), "auto", .choices = run_device_names,
     .help = "Where to compute; auto: on a card where there is one. simulated is for tests.",
     .also = "accelerator backend device_type use_cuda"},
    {"card", KEY_INT, AT(card), "-1", -1, 63, .help = "Number of the card; -1 deals a host's cards to its ranks in turn.",
     .per_rank = true, .also = "gpu gpu_id device_id cuda_device local_rank"},
    {"threads", KEY_INT, AT(threads), "0", 0, 4096, .help = "Threads of each rank; 0 shares the host's cores among its ranks.",
     .per_rank = true, .also = "num_threads n_threads nthreads omp_num_threads cpu_threads"},
    {"instruction_set", KEY_TEXT, AT(instruction_set), "auto",
     .help = "Instruction set of the CPU kernels: auto, or one that athanor doctor lists."},
    {"products", KEY_CHOICE, AT(products), "auto", .choices = run_products_names,
     .help = "Matrix products of a card: ours, cublas, sm80 (our portable ones), or auto: the faster by trial for each shape, "
             "kept in the run folder so that a run goes on with the same."},

    {"data.corpus", KEY_PATH, AT(data.corpus),
     .help = "The training corpus: a folder made by athanor data build, or the prefix of a Megatron .bin/.idx pair.",
     .also = "dataset data_path data_dir train_data train_path train_data_path train_dataset dataset_path dataset_dir"},
    {"data.validation", KEY_PATH, AT(data.validation), .help = "The held-out corpus, evaluated set by set; null: none.",
     .also = "val_data valid_data eval_data validation_data val_path valid_path eval_path valid_data_path val_dataset "
             "eval_dataset"},
    {"data.sequence_length", KEY_INT, AT(data.sequence_length), "0", 0, 1 << 24, .unit = "tokens",
     .help = "Length of a sample; 0: the model's context.",
     .also = "seq_len seq_length sequence_len seqlen max_seq_len max_seq_length max_length length sequence_size"},
    {"data.mixture", KEY_PROPORTIONS, AT(data.mixture),
     .help = "How often to draw from each set, relative, such as {Books: 2, Notes: 1}; sets not named are left out. Empty: in "
             "proportion to size.",
     .also = "mix sampling_weights data_mix data_weights mixture_weights data_mixture_weights blend"},
    {"data.epochs", KEY_PROPORTIONS, AT(data.epochs),
     .help = "Instead of data.mixture: how often to go through each set relative to the others; sets not named count 1.",
     .also = "num_epochs n_epochs num_train_epochs max_epochs"},
    {"data.documents_apart", KEY_BOOL, AT(data.documents_apart), "true",
     .help = "Keep attention and positions within documents.",
     .also = "reset_attention_mask reset_position_ids document_mask doc_mask intra_doc_masking"},
    {"data.prefetch", KEY_INT, AT(data.prefetch), "4", 1, 1024, .unit = "micro-batches",
     .help = "How many micro-batches the loader holds ready.", .also = "prefetch_factor num_workers prefetch_batches"},

    {"train.steps", KEY_INT, AT(train.steps), "0", 0, 9e15, .unit = "steps",
     .help = "Length of the run. Give this or train.tokens.",
     .also = "max_steps max_iters num_steps n_steps total_steps train_steps training_steps num_iterations iterations "
             "train_iters epochs num_epochs n_epochs num_train_epochs max_epochs"},
    {"train.tokens", KEY_INT, AT(train.tokens), "0", 0, 9e15, .unit = "tokens",
     .help = "Length of the run, rounded up to whole steps. Give this or train.steps.",
     .also = "max_tokens total_tokens num_tokens n_tokens train_tokens token_budget epochs num_epochs n_epochs "
             "num_train_epochs max_epochs"},
    {"train.batch_tokens", KEY_INT, AT(train.batch_tokens), "0", 0, 1e12, .unit = "tokens",
     .help = "Tokens of one step over all ranks, by gradient accumulation where it needs more than one micro-batch a rank; 0: "
             "one micro-batch a rank, which binds a run to its number of ranks.",
     .also = "bs batch_size batchsize global_batch_size train_batch_size total_batch_size batch_size_tokens tokens_per_batch "
             "tokens_per_step gradient_accumulation gradient_accumulation_steps grad_accum grad_accum_steps "
             "accumulate_grad_batches"},
    {"train.micro_batch", KEY_INT, AT(train.micro_batch), "8", 1, 1 << 20, .unit = "sequences",
     .help = "Sequences that a rank computes at a time.",
     .also =
         "bs batch_size batchsize micro_batch_size mbs device_batch_size per_device_batch_size per_device_train_batch_size"},
    {"train.recompute", KEY_CHOICE, AT(train.recompute), "none", .choices = recompute_names,
     .help = "Which activations the backward pass computes again instead of keeping: none; selective (norms and activation "
             "functions); full (everything but each layer's input).",
     .also = "activation_checkpointing gradient_checkpointing recompute_granularity checkpoint_activations remat"},
    {"train.head_rows", KEY_INT, AT(train.head_rows), "0", 0, 1 << 30, .unit = "rows",
     .help = "Rows of logits held at a time by the head; 0: chosen to take about 64 MiB."},
    {"train.z_loss", KEY_FLOAT, AT(train.z_loss), "0", 0, 1,
     .help = "Weight of the squared logarithm of the softmax normaliser in the loss (z-loss); 1e-4 is usual, 0 is off.",
     .also = "z_loss_weight z_loss_coef z_loss_multiplier"},

    {"train.most_skipped", KEY_INT, AT(train.most_skipped), "50", 1, 1e9, .unit = "steps",
     .help = "Steps in a row without a finite gradient after which the model counts as lost: the run ends with an error. Those "
             "with which fp16's loss scale falls do not count."},

    {"train.check_replicas", KEY_INT, AT(train.check_replicas), "1000", 0, 9e15, .unit = "steps",
     .help = "How often to compare the weights that several ranks hold alike, which must be the same to the bit: a search for "
             "memory and links that err in silence. The log says what it took; 0: never."},

    {"train.type", KEY_CHOICE, AT(train.type), "auto", .choices = run_type_names,
     .help = "Type of weights and activations; sums and gradients are fp32 in any case. auto: bf16 on a card, fp32 on the CPU. "
             "fp16 adapts a loss scale.",
     .also = "dtype precision mixed_precision torch_dtype param_dtype bf16 fp16 fp32 amp"},
    {"train.masters", KEY_BOOL, AT(train.masters), "true",
     .help = "Keep fp32 copies of 16-bit parameters; false: updates are rounded stochastically instead, 4 bytes a parameter "
             "less.",
     .also = "master_weights fp32_master_weights"},
    {"train.graph", KEY_BOOL, AT(train.graph), "true",
     .help = "Record a card's step once and repeat it as a whole; not with dropout.",
     .also = "cuda_graph cuda_graphs enable_cuda_graph"},
    {"train.deterministic", KEY_BOOL, AT(train.deterministic), "true",
     .help = "Same bits each time. false: attention's backward pass on Hopper adds in any order, and a resumed run is not the "
             "same to the bit."},
    {"train.reproducible", KEY_BOOL, AT(train.reproducible), "false",
     .help =
         "The same bits with any number of data-parallel ranks, any parallel.zero and any pipeline: sums are added along one "
         "tree. Gradients are then whole on every rank, and as large again for each doubling of the parts that a rank has."},
    {"train.reproducible_parts", KEY_INT, AT(train.reproducible_parts), "0", 0, 1 << 16,
     .help = "The leaves of that tree, a power of two that divides the micro-batches of a step: as many data-parallel ranks, "
             "and any number that divides it, give the same bits. 0: the largest up to 8."},

    {"optimizer.kind", KEY_CHOICE, AT(optimizer.kind), "adamw", .choices = optimizer_names, .help = "The optimizer.",
     .also = "optimizer optim optimizer_type optimizer_name"},
    {"optimizer.moments", KEY_CHOICE, AT(optimizer.moments), "fp32", .choices = moment_names,
     .help = "How the optimizer's moments are kept; 8bit takes 1 byte instead of 4 each."},
    {"optimizer.learning_rate", KEY_FLOAT, AT(optimizer.learning_rate), "6e-4", 0, 1000, .help = "Peak learning rate.",
     .also = "lr max_lr peak_lr base_lr init_lr max_learning_rate peak_learning_rate"},
    {"optimizer.beta1", KEY_FLOAT, AT(optimizer.beta1), "0.9", 0, 1, .help = "Decay of the first moment; the momentum of sgd.",
     .also = "adam_beta1 betas b1 momentum"},
    {"optimizer.beta2", KEY_FLOAT, AT(optimizer.beta2), "0.95", 0, 1,
     .help = "Decay of the second moment; of the momentum for lion.", .also = "adam_beta2 betas b2"},
    {"optimizer.epsilon", KEY_FLOAT, AT(optimizer.epsilon), "1e-8", 0, 1, .help = "Added to the root of the second moment.",
     .also = "eps adam_eps adam_epsilon"},
    {"optimizer.weight_decay", KEY_FLOAT, AT(optimizer.weight_decay), "0.1", 0, 10,
     .help = "Decoupled weight decay; norms and biases are never decayed.", .also = "wd l2 adam_weight_decay"},
    {"optimizer.clip", KEY_FLOAT, AT(optimizer.clip), "1.0", 0, 1e9, .help = "Largest global gradient norm; 0 does not clip.",
     .also =
         "grad_clip clip_grad max_grad_norm clip_grad_norm gradient_clip gradient_clipping gradient_clip_val grad_norm_clip"},

    {"schedule.kind", KEY_CHOICE, AT(schedule.kind), "cosine", .choices = schedule_names,
     .help = "Shape of the learning rate after warm-up.",
     .also = "schedule scheduler lr_schedule lr_scheduler lr_scheduler_type scheduler_type lr_decay_style"},
    {"schedule.warmup_steps", KEY_INT, AT(schedule.warmup_steps), "0", 0, 9e15, .unit = "steps", .help = "Linear warm-up.",
     .also = "warmup warmup_iters num_warmup_steps lr_warmup_steps lr_warmup_iters warm_up warmup_ratio warmup_fraction"},
    {"schedule.decay_steps", KEY_INT, AT(schedule.decay_steps), "0", 0, 9e15, .unit = "steps",
     .help = "The final decay of wsd; 0: a fifth of the run.",
     .also = "decay_iters lr_decay_steps lr_decay_iters cooldown cooldown_steps"},
    {"schedule.floor", KEY_FLOAT, AT(schedule.floor), "0.1", 0, 1, .help = "Final learning rate as a share of the peak.",
     .also = "min_lr lr_min eta_min min_lr_ratio min_learning_rate final_lr final_lr_ratio end_lr"},

    {"checkpoint.every", KEY_INT, AT(checkpoint.every), "1000", 0, 9e15, .unit = "steps",
     .help = "How often to save; the end of the run is always saved. 0: only then.",
     .also = "save_every save_interval save_steps save_freq checkpoint_interval ckpt_interval checkpoint_frequency interval "
             "steps_between_checkpoints"},
    {"checkpoint.keep_last", KEY_INT, AT(checkpoint.keep_last), "2", 1, 1e6,
     .help = "How many of the newest checkpoints to keep.",
     .also = "save_total_limit keep_last_n keep_last_n_checkpoints max_checkpoints keep"},
    {"checkpoint.keep_every", KEY_INT, AT(checkpoint.keep_every), "0", 0, 9e15, .unit = "steps",
     .help = "Also keep every checkpoint whose step is a multiple of this; 0: none."},

    {"validation.every", KEY_INT, AT(validation.every), "500", 0, 9e15, .unit = "steps",
     .help = "How often to evaluate on data.validation; also before the first and after the last step. 0: never.",
     .also = "eval_every eval_interval eval_steps eval_freq val_interval val_every val_check_interval evaluation_interval "
             "interval"},
    {"validation.samples", KEY_INT, AT(validation.samples), "64", 1, 1e12, .unit = "sequences",
     .help = "Sequences taken from each validation set, spread evenly.",
     .also = "eval_iters eval_batches val_iters val_batches eval_samples num_eval_samples limit_val_batches"},

    {"samples.every", KEY_INT, AT(samples.every), "0", 0, 9e15, .unit = "steps",
     .help = "How often to write sample texts; also before the first and after the last step. 0: never.",
     .also = "sample_every sample_interval sample_freq generate_every interval"},
    {"samples.prompts", KEY_LIST, AT(samples.prompts), .help = "Texts to continue; an empty text starts a new document.",
     .also = "prompt sample_prompts"},
    {"samples.tokens", KEY_INT, AT(samples.tokens), "100", 1, 1e6, .unit = "tokens", .help = "Length of a sample text.",
     .also = "max_tokens max_new_tokens num_tokens length max_length"},
    {"samples.temperature", KEY_FLOAT, AT(samples.temperature), "0.8", 0, 100,
     .help = "Temperature of sample texts; 0 takes the most likely token.", .also = "temp"},
    {"samples.top_k", KEY_INT, AT(samples.top_k), "0", 0, 1e9, .help = "Sample among the k most likely tokens; 0: all."},
    {"samples.top_p", KEY_FLOAT, AT(samples.top_p), "0.95", 0, 1,
     .help = "Sample among the most likely tokens that make up this probability."},

    {"log.every", KEY_INT, AT(log.every), "10", 1, 9e15, .unit = "steps",
     .help = "How often to print a line; every step is written to metrics.jsonl.",
     .also = "log_interval log_freq logging_steps logging_interval log_steps print_every print_interval interval"},

    {"parallel.layout", KEY_CHOICE, AT(parallel.layout), "given", .choices = layout_names,
     .help = "given: the sizes below are the layout. auto: of all layouts of the ranks with the sizes that are given, the one "
             "that fits memory and communicates least, found before the run and told in its log.",
     .also = "auto_parallel strategy parallel_strategy"},
    {"parallel.data", KEY_INT, AT(parallel.data), "0", 0, 1 << 20, .unit = "ranks",
     .help = "Data-parallel copies of the model; 0: all ranks that the other axes leave.",
     .also = "dp dp_size data_parallel data_parallel_size dp_degree dp_replicate_degree"},
    {"parallel.tensor", KEY_INT, AT(parallel.tensor), "1", 1, 1 << 20, .unit = "ranks",
     .help = "Ranks that share each layer: its heads, feed-forward channels and the vocabulary are cut over them.",
     .also = "tp tp_size tensor_parallel tensor_parallel_size tensor_model_parallel_size tp_degree"},
    {"parallel.pipeline", KEY_INT, AT(parallel.pipeline), "1", 1, 1 << 20, .unit = "ranks",
     .help = "Ranks that share the stack of layers, each with a part of it; micro-batches go through them one behind another.",
     .also = "pp pp_size pipeline_parallel pipeline_parallel_size pipeline_model_parallel_size pp_degree"},
    {"parallel.schedule", KEY_CHOICE, AT(parallel.schedule), "1f1b", .choices = pipeline_names,
     .help = "In which order the ranks of a pipeline work: 1f1b, the least memory; interleaved, several stages a rank, so that "
             "they wait less; zb-h1 and zb-v, zero-bubble: gradients of weights fill the waiting.",
     .also = "pipeline_schedule pp_schedule pipeline_parallel_schedule"},
    {"parallel.chunks", KEY_INT, AT(parallel.chunks), "0", 0, 8, .unit = "stages",
     .help = "Stages of each rank of a pipeline; 0: one, of interleaved and zb-v two.",
     .also = "virtual_pipeline_model_parallel_size num_layers_per_virtual_pipeline_stage vpp vpp_size"},
    {"parallel.context", KEY_INT, AT(parallel.context), "1", 1, 1 << 20, .unit = "ranks",
     .help = "Ranks that share each sequence, cut into two equal parts for each: keys and values go around a ring of them.",
     .also = "cp cp_size context_parallel context_parallel_size cp_degree"},
    {"parallel.sequence", KEY_BOOL, AT(parallel.sequence), "true",
     .help = "Ranks that share each layer also cut the rows of the residual stream: less memory, and as much to exchange.",
     .also = "sequence_parallel sp enable_sequence_parallel"},
    {"parallel.zero", KEY_INT, AT(parallel.zero), "0", 0, 3,
     .help = "What data-parallel ranks keep a part of instead of all (ZeRO), 0 to 3: 0 nothing, 1 the optimizer's state, 2 "
             "gradients too, "
             "3 weights too. From 2 on gradients are reduced after each micro-batch.",
     .also = "zero zero_stage zero_optimization zero1 zero2 zero3 use_distributed_optimizer distributed_optimizer"},
    {"parallel.bucket_mib", KEY_FLOAT, AT(parallel.bucket_mib), "8", 0.001, 65536, .unit = "MiB",
     .help = "Size of the gradient buckets that are reduced while the backward pass still runs; with parallel.zero 2 and 3 a "
             "bucket is a layer.",
     .also = "bucket_size bucket_cap_mb bucket_mb ddp_bucket_size"},
};

enum { OWN_KEYS = sizeof own_keys / sizeof *own_keys };

// The model's keys stand between the run's own general keys and the data's, moved to where RunConfig holds them.
const Key *run_config_keys(int *count) {
    static Key table[RUN_KEYS_MOST];
    static int rows;
    if (rows == 0) {
        ensure(OWN_KEYS + model_key_count <= RUN_KEYS_MOST, "room for %d keys", OWN_KEYS + model_key_count);
        int general = 0, filled = 0;
        while (strchr(own_keys[general].name, '.') == NULL) {
            table[filled++] = own_keys[general++];
        }
        for (int i = 0; i < model_key_count; i++) {
            table[filled] = model_keys[i];
            table[filled++].offset += offsetof(RunConfig, model);
        }
        for (int i = general; i < OWN_KEYS; i++) {
            table[filled++] = own_keys[i];
        }
        rows = filled;
    }
    *count = rows;
    return table;
}

static Error *check_share(const char *key, const char *set, double share, const char *where) {
    return share >= 0 ? NULL : failure("%s: %s: '%.100s' is %g, it must not be negative", where, key, set, share);
}

// What can be checked without the corpus.
static Error *check(const RunConfig *config, const char *where) {
    if (config->folder == NULL) {
        return failure("%s: folder is missing: where shall the run be kept?", where);
    }
    if (config->data.corpus == NULL) {
        return failure("%s: data.corpus is missing: a folder made by 'athanor data build'", where);
    }
    if (config->train.steps > 0 && config->train.tokens > 0) {
        return failure("%s: train.steps and train.tokens both say how long the run shall be: set one of them to 0", where);
    }
    if (config->train.steps == 0 && config->train.tokens == 0) {
        return failure("%s: give train.steps or train.tokens, how long the run shall be", where);
    }
    if (config->optimizer.beta1 >= 1 || config->optimizer.beta2 >= 1) {
        return failure("%s: %s is 1, it must be below", where,
                       config->optimizer.beta1 >= 1 ? "optimizer.beta1" : "optimizer.beta2");
    }
    if (config->data.mixture.count > 0 && config->data.epochs.count > 0) {
        return failure("%s: give data.mixture or data.epochs, not both", where);
    }
    bool any = config->data.mixture.count == 0;
    for (size_t i = 0; i < config->data.mixture.count; i++) {
        TRY(check_share("data.mixture", config->data.mixture.names[i], config->data.mixture.values[i], where));
        any |= config->data.mixture.values[i] > 0;
    }
    for (size_t i = 0; i < config->data.epochs.count; i++) {
        TRY(check_share("data.epochs", config->data.epochs.names[i], config->data.epochs.values[i], where));
    }
    return any ? NULL : failure("%s: data.mixture gives every set it names the share 0: nothing is left to draw from", where);
}

// What is wrong because of a setting on the command line is wrong usage of it.
static Error *blame(const RunConfig *config, Error *error) {
    int count;
    const Key *keys = run_config_keys(&count);
    for (int i = 0; i < count && error != NULL; i++) {
        const char *named = config->overridden[i] ? strstr(error->message, keys[i].name) : NULL;
        char after = named != NULL ? named[strlen(keys[i].name)] : '_';
        if (!isalnum((unsigned char)after) && after != '_') {
            error->kind = ERROR_USAGE;
        }
    }
    return error;
}

Error *run_config_read(RunConfig *config, const char *path, char *const *overrides, int override_count) {
    int count;
    const Key *keys = run_config_keys(&count);
    bool seen[RUN_KEYS_MOST] = {false};
    keys_defaults(keys, count, config);
    TRY(config_read(keys, count, config, path, overrides, override_count, seen));
    for (int i = 0; i < count; i++) {
        size_t length = strlen(keys[i].name);
        for (int o = 0; o < override_count; o++) {
            config->overridden[i] |= strncmp(overrides[o], keys[i].name, length) == 0 && overrides[o][length] == '=';
        }
    }
    for (int i = 0; i < model_key_count; i++) {
        config->model_seen[i] = seen[keys_find(keys, count, model_keys[i].name) - keys];
    }
    return blame(config, check(config, path));
}

int64_t run_config_micro_batches(const RunConfig *config, int ranks, int rank) {
    int64_t all = config->train.batch_tokens / (config->train.micro_batch * config->data.sequence_length);
    return all / ranks + (rank < all % ranks);
}

int64_t run_config_micro_batch(int64_t batch_tokens, int64_t length, int64_t at_most, int *ranks) {
    if (batch_tokens % length != 0) {
        return 0;
    }
    int64_t sequences = batch_tokens / length;
    while (sequences % *ranks != 0) {
        --*ranks;
    }
    int64_t share = sequences / *ranks, fits = share < at_most ? share : at_most;
    while (share % fits != 0) {
        fits--;
    }
    return fits;
}

// The step of train.batch_tokens is no multiple of `round`, what the ranks take at once. A run that exists keeps its step: what
// lets ranks share it comes first.
static Error *uneven_batch(const RunConfig *config, int64_t round, int ranks, const char *where) {
    int64_t batch = config->train.batch_tokens, below = batch / round * round;
    int fewer = ranks;
    int64_t fits = run_config_micro_batch(batch, config->data.sequence_length, config->train.micro_batch, &fewer);
    char same[128] = "", less[32] = "", on[32] = "";
    if (fits > 0) {
        if (fewer < ranks) {
            snprintf(on, sizeof on, " on %d %s", fewer, fewer == 1 ? "rank" : "ranks");
        }
        snprintf(same, sizeof same, "train.micro_batch=%lld%s would do; for a new run also ", (long long)fits, on);
    }
    if (below > 0) {
        snprintf(less, sizeof less, "%lld or ", (long long)below);
    }
    return failure("%s: train.batch_tokens is %lld, no multiple of %d %s x %lld sequences x %lld tokens = %lld; "
                   "%strain.batch_tokens=%s%lld%s",
                   where, (long long)batch, ranks, ranks == 1 ? "rank" : "ranks", (long long)config->train.micro_batch,
                   (long long)config->data.sequence_length, (long long)round, same, less, (long long)(below + round),
                   same[0] == 0 ? " would do" : "");
}

int64_t run_config_parts(const RunConfig *config, int64_t micro_batches) {
    int64_t most = micro_batches & -micro_batches, given = config->train.reproducible_parts;
    return given > 0 ? given : most < 8 ? most : 8;
}

// The parts of a step's sums, and whether the ranks can share them.
static Error *resolve_reproducible(RunConfig *config, int data_ranks, const char *where) {
    int64_t micro_batches = config->train.batch_tokens / (config->train.micro_batch * config->data.sequence_length);
    int64_t parts = run_config_parts(config, micro_batches);
    if (!config->train.reproducible) {
        return NULL;
    }
    config->train.reproducible_parts = parts;
    if ((parts & (parts - 1)) != 0 || micro_batches % parts != 0) {
        return failure(
            "%s: train.reproducible_parts %lld must be a power of two that divides the %lld micro-batches of a step: "
            "%lld at most",
            where, (long long)parts, (long long)micro_batches, (long long)(micro_batches & -micro_batches));
    }
    if (parts % data_ranks != 0) {
        return failure(
            "%s: train.reproducible_parts %lld cannot be shared by %d data-parallel ranks: a power of two up to it can", where,
            (long long)parts, data_ranks);
    }
    return NULL;
}

static Error *resolve(RunConfig *config, int64_t corpus_vocabulary, int data_ranks, const char *where) {
    TRY(model_config_resolve(&config->model, config->model_seen, corpus_vocabulary, where));
    int64_t *length = &config->data.sequence_length, context = config->model.context;
    *length = *length > 0 ? *length : context;
    if (*length > context) {
        return failure("%s: data.sequence_length is %lld, more than the model's context of %lld", where, (long long)*length,
                       (long long)context);
    }
    int64_t round, *batch = &config->train.batch_tokens;
    if (__builtin_mul_overflow(config->train.micro_batch * *length, data_ranks, &round)) {
        return failure("%s: train.micro_batch times data.sequence_length is absurd", where);
    }
    *batch = *batch > 0 ? *batch : round;
    // Ranks may have unequal numbers of micro-batches, each at least one.
    if (*batch % (round / data_ranks) != 0 || *batch < round) {
        return uneven_batch(config, round, data_ranks, where);
    }
    TRY(resolve_reproducible(config, data_ranks, where));
    if (config->train.steps == 0) {
        config->train.steps = (config->train.tokens + *batch - 1) / *batch;
        config->train.tokens = 0;  // the saved configuration says it in steps
    }
    if (config->schedule.kind == SCHEDULE_WSD && config->schedule.decay_steps == 0) {
        config->schedule.decay_steps = config->train.steps / 5;
    }
    return NULL;
}

Error *run_config_resolve_model(RunConfig *config, int64_t corpus_vocabulary, const char *where) {
    return blame(config, model_config_resolve(&config->model, config->model_seen, corpus_vocabulary, where));
}

Error *run_config_resolve(RunConfig *config, int64_t corpus_vocabulary, int data_ranks, const char *where) {
    return blame(config, resolve(config, corpus_vocabulary, data_ranks, where));
}

// Says that something is done every `every` steps but the run is shorter.
static void remark_every(Buffer *out, const char *key, int64_t every, int64_t steps, bool used) {
    if (used && every > steps) {
        buffer_printf(out, "%s%s is %lld", out->size > 0 ? ", " : "", key, (long long)every);
    }
}

void run_config_remark(const RunConfig *config) {
    int64_t steps = config->train.steps, warmup = config->schedule.warmup_steps;
    int64_t decay = config->schedule.kind == SCHEDULE_WSD ? config->schedule.decay_steps : 0;
    char count[64];
    text_number_of(count, steps, "step");
    if (warmup >= steps && warmup > 1) {
        log_warning(
            "schedule.warmup_steps is %lld, but the run has %s: the learning rate is still rising when it ends, at %.0f%% of "
            "its peak",
            (long long)warmup, count, 100 * (double)steps / (double)warmup);
    } else if (decay > steps - warmup) {
        log_warning(
            "schedule.decay_steps is %lld, but the run has %s, %lld of them warm-up: the learning rate falls in the other "
            "%lld",
            (long long)decay, count, (long long)warmup, (long long)(steps - warmup));
    }
    Buffer late = {0};
    remark_every(&late, "checkpoint.every", config->checkpoint.every, steps, true);
    remark_every(&late, "validation.every", config->validation.every, steps, config->data.validation != NULL);
    remark_every(&late, "samples.every", config->samples.every, steps, config->samples.prompts.count > 0);
    if (late.size > 0) {
        log_info("note      %s, more than the run's %s: done at its ends only", late.data, count);
    }
    buffer_free(&late);
}

void run_config_free(RunConfig *config) {
    int count;
    const Key *keys = run_config_keys(&count);
    keys_free(keys, count, config);
}

void run_config_write(const RunConfig *config, Buffer *out) {
    int count;
    const Key *keys = run_config_keys(&count);
    config_write(keys, count, config, false, out);
}

void run_config_document(Buffer *out) {
    int count;
    const Key *keys = run_config_keys(&count);
    const char *section = "";
    buffer_text(
        out,
        "# Configuration\n\nEvery key of `athanor train CONFIG.yaml`, made by `athanor train --keys`. A dotted key is "
        "nested in "
        "YAML; on the command line it is written `key.path=value`. `include: other.yaml` reads another file first, and what "
        "comes later wins; within one file a key is given once; on the command line the last counts.\n\n"
        "Numbers are written 1000, 1_000, 1e3, 1k or 1Ki; switches true or false, yes or no, on or off; null, ~ or nothing "
        "is no value. ~ at the beginning of a path is the home folder. A warm-up or decay that is longer than the run, and "
        "whatever is due less often than once in it, is said when the run starts.\n");
    for (int i = 0; i < count; i++) {
        const Key *key = &keys[i];
        const char *dot = strchr(key->name, '.');
        size_t length = dot != NULL ? (size_t)(dot - key->name) : 0;
        if (i == 0 || strncmp(section, key->name, length + (dot != NULL)) != 0) {
            buffer_printf(out, "\n## %.*s\n\n| key | default | meaning |\n|---|---|---|\n", length > 0 ? (int)length : 3,
                          length > 0 ? key->name : "run");
            section = dot != NULL ? key->name : "";
        }
        buffer_printf(out, "| `%s` | %s | %s", key->name,
                      key->default_value != NULL && *key->default_value ? key->default_value : "", key->help);
        if (key->unit != NULL) {
            buffer_printf(out, " In %s.", key->unit);
        }
        for (int c = 0; key->type == KEY_CHOICE && key->choices[c] != NULL; c++) {
            buffer_printf(out, "%s `%s`", c == 0 ? " One of" : ",", key->choices[c]);
        }
        buffer_text(out, key->type == KEY_CHOICE ? ". |\n" : " |\n");
    }
}
