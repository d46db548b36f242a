// RUN/run.json: see run_record.h.
#include "train/run_record.h"

#include "core/clock.h"
#include "core/durable.h"
#include "core/log.h"
#include "core/text.h"
#include "core/version.h"
#include "train/model/families.h"
#include "train/run_device.h"

void run_record_print(const RunConfig *config, const Model *model, const Corpus *corpus, const Order *order, const Mesh *mesh,
                      int64_t micro_batches) {
    char parameters[32], batch[32], layout[96], layers[64], ranks[64], micro[64], sequences[64], length[64], threads[64];
    log_info("model     %s parameters, %s, width %lld, context %lld, vocabulary %lld",
             text_count(parameters, (double)model->table.parameters), text_number_of(layers, config->model.layers, "layer"),
             (long long)config->model.width, (long long)config->model.context, (long long)config->model.vocabulary);
    log_info("batch     %s tokens a step: %s x %s x %s x %s", text_count(batch, (double)config->train.batch_tokens),
             text_number_of(ranks, mesh->size[MESH_DATA], "rank"), text_number_of(micro, micro_batches, "micro-batch"),
             text_number_of(sequences, config->train.micro_batch, "sequence"),
             text_number_of(length, config->data.sequence_length, "token"));
    log_info("device    %s, %s, %s a rank; layout: %s", model->device->name, data_type_name(model->device->type),
             text_number_of(threads, threads_count(model->device->pool), "thread"), mesh_layout(mesh, layout));
    double samples = (double)config->train.steps * (double)config->train.batch_tokens / (double)config->data.sequence_length;
    for (int d = 0; d < corpus->set_count; d++) {
        char tokens[32];
        int64_t epoch = order_set_samples(order, d);
        if (epoch > 0) {
            log_info("corpus    %-24s %8s tokens  %5.1f%% of samples, %.2f epochs", corpus->sets[d].name,
                     text_count(tokens, (double)corpus->sets[d].tokens), 100 * order_set_share(order, d),
                     samples * order_set_share(order, d) / (double)epoch);
        }
    }
}

// The hosts of all ranks, each once.
static Error *gather_hosts(Comm *world, json_t *hosts) {
    Buffer all = {0};
    int64_t *ends = memory_zeroed((size_t)world->size, sizeof *ends);
    Error *error = comm_gather(world, world->host, (int64_t)strlen(world->host), &all, ends);
    for (int r = 0; r < world->size && error == NULL && world->rank == 0; r++) {
        int64_t begin = r > 0 ? ends[r - 1] : 0;
        json_t *name = json_stringn(all.data + begin, (size_t)(ends[r] - begin));
        bool known = name == NULL;
        for (size_t i = 0; i < json_array_size(hosts) && !known; i++) {
            known = json_equal(json_array_get(hosts, i), name);
        }
        if (!known) {
            json_array_append(hosts, name);
        }
        json_decref(name);
    }
    buffer_free(&all);
    free(ends);
    return error;
}

// What the file says of the run's earlier starts goes on in the new document. One that cannot be read says nothing.
static void keep_start(RunRecord *record) {
    json_t *before = NULL, *started = NULL, *id = NULL;
    error_free(json_read_file(record->path, 1 << 24, &before));
    id = json_object_get(before, "id");
    int64_t times = json_integer_value(json_object_get(before, "resumed"));
    if (id == NULL || json_equal(id, json_object_get(record->document, "id"))) {
        started = json_object_get(before, "started");
    }
    json_object_set_new(record->document, "resumed", json_integer(started != NULL && times < INT32_MAX ? times + 1 : 1));
    json_object_set(record->document, "continued", json_object_get(record->document, "started"));
    if (json_is_string(started)) {
        json_object_set(record->document, "started", started);
    }
    json_decref(before);
}

Error *run_record_create(RunRecord *record, const RunConfig *config, const Model *model, const MemoryPlan *planned,
                         uint64_t run, bool resumed, Comm *world) {
    json_t *hosts = json_array(), *plan = json_array();
    Error *error = gather_hosts(world, hosts);
    if (error != NULL || world->rank != 0) {
        json_decref(hosts);
        json_decref(plan);
        return error;
    }
    for (int i = 0; i < planned->count; i++) {
        json_array_append_new(
            plan, json_pack("{s:s, s:I}", "name", planned->lines[i].name, "bytes", (json_int_t)planned->lines[i].bytes));
    }
    char stamp[24];
    record->path = path_join(config->folder, "run.json");
    record->document = json_pack(
        "{s:o, s:s, s:s, s:s, s:o, s:i, s:i, s:s, s:I, s:s, s:s, s:I, s:o, s:I}", "id", json_hex64(run), "version",
        ATHANOR_VERSION, "commit", ATHANOR_COMMIT, "compiler", ATHANOR_COMPILER, "host", hosts, "ranks", world->size, "threads",
        threads_count(model->device->pool), "device", model->device->name, "parameters", (json_int_t)model->table.parameters,
        "family", family_names[config->model.family], "started", clock_stamp(stamp), "batch_tokens",
        (json_int_t)config->train.batch_tokens, "memory_plan", plan, "memory_planned", (json_int_t)planned->total);
    ensure(record->document != NULL, "run.json");
    if (planned->host > 0) {
        json_object_set_new(record->document, "host_memory_planned", json_integer((json_int_t)planned->host));
    }
    if (resumed) {
        keep_start(record);
    }
    return json_write_file(record->path, record->document);
}

void run_record_loop(RunRecord *record, int64_t first_step) {
    record->loop_start = clock_seconds();
    record->first_step = first_step;
}

void run_record_step(RunRecord *record, double seconds) {
    record->steps++;
    record->step_seconds += seconds;
}

// Prints a plan beside its peak, and keeps the peak.
static void tell_peak(RunRecord *record, const char *what, const char *planned_key, const char *peak_key, double peak) {
    char planned[32], measured[32];
    json_object_set_new(record->document, peak_key, json_integer((json_int_t)peak));
    log_info("memory    %splanned %s, peak %s a rank", what,
             text_bytes(planned, (double)json_integer_value(json_object_get(record->document, planned_key))),
             text_bytes(measured, peak));
}

Error *run_record_finish(RunRecord *record, const Machine *before, Device *device, Comm *world) {
    bool card = before->kind != DEVICE_CPU;
    // What a run takes of a card it keeps to its end; where ranks share one, each is given the mean.
    int sharers = run_device_sharers(device, world->host_size);
    double used = card ? (double)before->memory - (double)device_available(device) / sharers : 0;
    double peaks[2] = {(double)memory_peak_resident(), used};
    TRY(comm_all_reduce_doubles(world, peaks, 2, COMM_MAX));
    if (world->rank != 0) {
        return NULL;
    }
    if (card) {
        tell_peak(record, "of the card ", "memory_planned", "memory_peak", peaks[1]);
        tell_peak(record, "of the host ", "host_memory_planned", "host_memory_peak", peaks[0]);
    } else {
        tell_peak(record, "", "memory_planned", "memory_peak", peaks[0]);
    }
    json_object_set_new(record->document, "mean_step_seconds",
                        json_real(record->steps > 0 ? record->step_seconds / (double)record->steps : 0));
    Error *unwritten = json_write_file(record->path, record->document);
    if (unwritten != NULL) {
        log_warning("%s; the run is saved all the same", unwritten->message);
        error_free(unwritten);
    }
    return NULL;
}

void run_record_free(RunRecord *record) {
    json_decref(record->document);
    free(record->path);
}
