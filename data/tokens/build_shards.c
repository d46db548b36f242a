// Tokenizing shards in parallel: see build_shards.h.
//
// A lane is a shard that is being worked on: one reader, one part. A worker that looks for work takes a lane whose reader is
// free, reads a batch of documents from it (a short time), lets go of the reader, encodes the batch (a long time), and puts the
// result in the lane's ring. Whoever finds the batch that is next in the shard's order writes it, and those behind it. So one
// shard keeps all workers busy until reading is the bottleneck; a new lane for every four workers keeps it from becoming one.
//
//        reader ──batch 7──> worker A: encode ─┐
//               ──batch 8──> worker B: encode ─┼─> ring [6][7][8].. ──in order──> part
//               ──batch 9──> worker C: encode ─┘
//
// A document that does not come in one piece is encoded by the worker that met it, piece by piece, and written as it goes:
// that worker keeps the reader and waits for its turn to write. Memory is thus bounded by ring, batch and piece.
#include "data/tokens/build_shards.h"

#include "core/log.h"
#include "data/text/shards.h"

#include <pthread.h>

enum { BATCH_BYTES = 256 << 10, WORKERS_PER_LANE = 4, BAD_LINES_SHOWN = 10 };

typedef struct BadLine {
    int64_t line;
    const char *reason;
} BadLine;

typedef struct BatchDocument {
    size_t text_size;
    size_t tokens_end;  // in the batch's tokens
    int64_t set;
} BatchDocument;

typedef struct Batch {
    struct Batch *next;  // in the list of unused ones
    Buffer text;         // of all documents, one behind the other
    Tokens tokens;
    BatchDocument *documents;
    size_t document_count, document_capacity;
    BadLine *bad;
    size_t bad_count, bad_capacity;
    int64_t empty;
    size_t open_size;  // of a first piece at the end of `text` whose document goes on
    bool open;
} Batch;

typedef struct Lane {
    const ShardJob *job;  // NULL: the lane is free
    ShardReader *reader;
    PartWriter *part;
    bool opening, reading, writing, ended;
    int64_t next_read, next_write;  // batches
    Batch **ring;
    int64_t taken;  // stored bytes that progress knows of
    int64_t bad_lines, empty;
    int64_t open_line;  // of the document that goes on
} Lane;

typedef struct Shop {
    ShardsPlan *plan;
    pthread_mutex_t lock;    // guards everything below and in the lanes; work on a lane is claimed by its flags
    pthread_cond_t changed;  // something that a worker may wait for
    Lane *lanes;
    int lane_count, ring_size;
    int next_job, open_lanes;
    Batch *unused;
    Error *error;
    int64_t shown;
    Progress progress;
} Shop;

static void batch_free(Batch *batch) {
    buffer_free(&batch->text);
    free(batch->tokens.ids);
    free(batch->documents);
    free(batch->bad);
    free(batch);
}

static Batch *take_unused(Shop *shop) {
    Batch *batch = shop->unused;
    if (batch == NULL) {
        return memory_zeroed(1, sizeof *batch);
    }
    shop->unused = batch->next;
    buffer_clear(&batch->text);
    batch->tokens.count = batch->document_count = batch->bad_count = batch->open_size = 0;
    batch->empty = 0;
    batch->open = false;
    return batch;
}

// Reads documents until the batch is full, the shard ends, or a document goes on beyond its first piece.
static Error *read_batch(Lane *lane, Batch *batch, bool *ended) {
    while (batch->text.size < BATCH_BYTES && !batch->open) {
        ShardEvent event;
        TRY(shard_next(lane->reader, &event));
        if (event.kind == SHARD_END) {
            *ended = true;
            return NULL;
        }
        if (event.kind == SHARD_BAD_LINE) {
            array_push(batch->bad, batch->bad_count, batch->bad_capacity, ((BadLine){event.line, event.reason}));
        } else if (event.kind == SHARD_DOCUMENT && event.size == 0) {
            batch->empty++;
        } else {
            buffer_append(&batch->text, event.text, event.size);
            batch->open = event.kind == SHARD_PIECE;
            lane->open_line = event.line;
            batch->open_size = batch->open ? event.size : 0;
            if (!batch->open) {
                BatchDocument document = {.text_size = event.size};
                TRY(error_wrap(part_writer_set(lane->part, event.set, &document.set), "%s", lane->job->shard));
                array_push(batch->documents, batch->document_count, batch->document_capacity, document);
            }
        }
    }
    return NULL;
}

static void end_text(const Shop *shop, Tokens *tokens) {
    int32_t end = tokenizer_end_of_text(shop->plan->tokenizer);
    if (end >= 0) {
        array_push(tokens->ids, tokens->count, tokens->capacity, end);
    }
}

static void encode_batch(const Shop *shop, Encoder *encoder, Batch *batch) {
    const char *text = batch->text.data;
    for (size_t i = 0; i < batch->document_count; i++) {
        BatchDocument *document = &batch->documents[i];
        encoder_encode(encoder, text, document->text_size, false, &batch->tokens);
        end_text(shop, &batch->tokens);
        document->tokens_end = batch->tokens.count;
        text += document->text_size;
    }
}

// Counts and shows a bad line; one too many is an error. Called with the lock held.
static Error *report_bad(Shop *shop, Lane *lane, BadLine bad) {
    ShardsPlan *plan = shop->plan;
    lane->bad_lines++;
    plan->bad_lines++;
    if (plan->bad_lines > plan->bad_lines_most) {
        return failure("%s:%lld: bad line: %s; this is number %lld, --max-bad-lines allows %lld", lane->job->shard,
                       (long long)bad.line, bad.reason, (long long)plan->bad_lines, (long long)plan->bad_lines_most);
    }
    if (shop->shown++ < BAD_LINES_SHOWN) {
        log_warning("%s:%lld: bad line, skipped: %s%s", lane->job->shard, (long long)bad.line, bad.reason,
                    shop->shown == BAD_LINES_SHOWN ? " (more are only counted)" : "");
    }
    return NULL;
}

static Error *write_batch(Shop *shop, Lane *lane, const Batch *batch) {
    Error *error = NULL;
    pthread_mutex_lock(&shop->lock);
    lane->empty += batch->empty;
    for (size_t i = 0; i < batch->bad_count && error == NULL; i++) {
        error = report_bad(shop, lane, batch->bad[i]);
    }
    pthread_mutex_unlock(&shop->lock);
    size_t from = 0;
    for (size_t i = 0; i < batch->document_count && error == NULL; i++) {
        const BatchDocument *document = &batch->documents[i];
        size_t to = document->tokens_end;
        if (to == from) {
            lane->empty++;
            continue;
        }
        error = part_writer_tokens(lane->part, batch->tokens.ids + from, to - from);
        if (error == NULL) {
            error = part_writer_end(lane->part, (int64_t)document->text_size, document->set);
        }
        from = to;
    }
    return error;
}

// The open document is bad: what was encoded of it goes nowhere.
static Error *give_up_document(Shop *shop, Lane *lane, Encoder *encoder, int64_t line, const char *reason) {
    encoder_forget(encoder);
    pthread_mutex_lock(&shop->lock);
    Error *error = report_bad(shop, lane, (BadLine){line, reason});
    pthread_mutex_unlock(&shop->lock);
    return error != NULL ? error : part_writer_forget(lane->part);
}

// Encodes the document that begins with batch's last piece, and writes it as it goes. The worker holds reader and part.
static Error *write_open_document(Shop *shop, Lane *lane, Encoder *encoder, Batch *batch) {
    ShardEvent event = {
        .kind = SHARD_PIECE, .text = batch->text.data + batch->text.size - batch->open_size, .size = batch->open_size};
    int64_t bytes = 0, set = 0;
    for (;;) {
        batch->tokens.count = 0;
        if (event.kind == SHARD_BAD_LINE) {
            return give_up_document(shop, lane, encoder, event.line, event.reason);
        }
        bytes += (int64_t)event.size;
        encoder_feed(encoder, event.text, event.size, false, &batch->tokens);
        if (encoder_waiting(encoder) > (size_t)shop->plan->word_most) {
            int64_t line = lane->open_line;
            while (event.kind == SHARD_PIECE) {
                TRY(shard_next(lane->reader, &event));
            }
            return give_up_document(shop, lane, encoder, line,
                                    "its text goes on without a place to cut it (the end of a word) "
                                    "for longer than --max-word allows");
        }
        if (event.kind == SHARD_DOCUMENT) {
            encoder_finish(encoder, false, &batch->tokens);
            end_text(shop, &batch->tokens);
        }
        TRY(error_wrap(part_writer_tokens(lane->part, batch->tokens.ids, batch->tokens.count), "%s:%lld", lane->job->shard,
                       (long long)event.line));
        if (event.kind == SHARD_DOCUMENT) {
            TRY(error_wrap(part_writer_set(lane->part, event.set, &set), "%s", lane->job->shard));
            return part_writer_end(lane->part, bytes, set);
        }
        int64_t taken = shard_taken(lane->reader);
        progress_add(&shop->progress, taken - lane->taken);
        lane->taken = taken;
        TRY(shard_next(lane->reader, &event));
    }
}

// The functions below are called with the lock held, let go of it while they work, and return with it held.

static void fail(Shop *shop, Error *error) {
    error_keep(&shop->error, error);
    if (error != NULL) {
        pthread_cond_broadcast(&shop->changed);
    }
}

static void open_lane(Shop *shop, Lane *lane) {
    const ShardsPlan *plan = shop->plan;
    lane->job = &plan->jobs[shop->next_job++];
    lane->opening = true;
    shop->open_lanes++;
    pthread_mutex_unlock(&shop->lock);
    Error *error = shard_open(lane->job->shard, &lane->reader);
    if (error == NULL && plan->replace_surrogates) {
        shard_replace_surrogates(lane->reader);
    }
    if (error == NULL && plan->window_most > 0) {
        shard_allow_window(lane->reader, plan->window_most);
    }
    if (error == NULL) {
        error = part_writer_create(lane->job->part, plan->bytes_per_token, plan->job, &lane->part);
    }
    pthread_mutex_lock(&shop->lock);
    lane->opening = lane->reading = lane->writing = lane->ended = false;
    lane->next_read = lane->next_write = lane->taken = lane->bad_lines = lane->empty = 0;
    fail(shop, error);
    pthread_cond_broadcast(&shop->changed);
}

// All batches are written: the part is finished and the lane free.
static void finish_lane(Shop *shop, Lane *lane) {
    lane->writing = true;
    pthread_mutex_unlock(&shop->lock);
    PartWriter *part = lane->part;
    lane->part = NULL;
    Error *error = part_writer_finish(part, lane->bad_lines, lane->empty);
    shard_close(lane->reader);
    pthread_mutex_lock(&shop->lock);
    lane->reader = NULL;
    lane->job = NULL;
    shop->open_lanes--;
    shop->plan->finished += error == NULL;
    fail(shop, error);
    pthread_cond_broadcast(&shop->changed);
}

// Writes the batches that are next in the shard's order, as far as they are there.
static void write_ready(Shop *shop, Lane *lane) {
    Batch *batch;
    while (!lane->writing && shop->error == NULL && (batch = lane->ring[lane->next_write % shop->ring_size]) != NULL) {
        lane->ring[lane->next_write % shop->ring_size] = NULL;
        lane->writing = true;
        pthread_mutex_unlock(&shop->lock);
        Error *error = write_batch(shop, lane, batch);
        pthread_mutex_lock(&shop->lock);
        batch->next = shop->unused;
        shop->unused = batch;
        lane->writing = false;
        lane->next_write++;
        fail(shop, error);
        pthread_cond_broadcast(&shop->changed);
    }
    if (lane->ended && !lane->writing && lane->next_write == lane->next_read && shop->error == NULL) {
        finish_lane(shop, lane);
    }
}

// Writes batch number `number`, whose last document is open, and that document, when their turn has come.
static void write_open(Shop *shop, Lane *lane, Encoder *encoder, Batch *batch, int64_t number) {
    while (lane->next_write != number && shop->error == NULL) {
        pthread_cond_wait(&shop->changed, &shop->lock);
    }
    if (shop->error == NULL) {
        lane->writing = true;
        pthread_mutex_unlock(&shop->lock);
        Error *error = write_batch(shop, lane, batch);
        if (error == NULL) {
            error = write_open_document(shop, lane, encoder, batch);
        }
        pthread_mutex_lock(&shop->lock);
        fail(shop, error);
        lane->writing = false;
        lane->next_write++;
    }
    batch->next = shop->unused;
    shop->unused = batch;
    lane->reading = false;
    pthread_cond_broadcast(&shop->changed);
    write_ready(shop, lane);
}

// Reads, encodes and delivers one batch of a lane whose reader is free.
static void work_on(Shop *shop, Lane *lane, Encoder *encoder) {
    Batch *batch = take_unused(shop);
    int64_t number = lane->next_read++;
    lane->reading = true;
    pthread_mutex_unlock(&shop->lock);
    bool ended = false;
    Error *error = read_batch(lane, batch, &ended);
    int64_t taken = shard_taken(lane->reader);
    progress_add(&shop->progress, taken - lane->taken);
    lane->taken = taken;
    pthread_mutex_lock(&shop->lock);
    lane->reading = error == NULL && batch->open;
    lane->ended = ended;
    fail(shop, error);
    pthread_cond_broadcast(&shop->changed);
    pthread_mutex_unlock(&shop->lock);
    if (error == NULL) {
        encode_batch(shop, encoder, batch);
    }
    pthread_mutex_lock(&shop->lock);
    if (batch->open && error == NULL) {
        write_open(shop, lane, encoder, batch, number);
        return;
    }
    lane->ring[number % shop->ring_size] = batch;
    write_ready(shop, lane);
}

// A worker: works until there is nothing left to do.
static void work(void *context, int64_t task, int thread) {
    Shop *shop = context;
    Encoder *encoder = encoder_create(shop->plan->tokenizer);
    pthread_mutex_lock(&shop->lock);
    while (shop->error == NULL) {
        Lane *ready = NULL, *empty = NULL;
        for (int i = 0; i < shop->lane_count; i++) {
            Lane *lane = &shop->lanes[i];
            bool waits = lane->job != NULL && !lane->opening && !lane->reading && !lane->ended;
            if (waits && lane->next_read - lane->next_write < shop->ring_size &&
                (ready == NULL || lane->next_read - lane->next_write < ready->next_read - ready->next_write)) {
                ready = lane;
            }
            empty = lane->job == NULL ? lane : empty;
        }
        if (empty != NULL && shop->next_job < shop->plan->job_count) {
            open_lane(shop, empty);
        } else if (ready != NULL) {
            work_on(shop, ready, encoder);
        } else if (shop->open_lanes == 0) {
            break;
        } else {
            pthread_cond_wait(&shop->changed, &shop->lock);
        }
    }
    pthread_mutex_unlock(&shop->lock);
    encoder_free(encoder);
}

Error *build_shards(ShardsPlan *plan, ThreadPool *pool) {
    int workers = threads_count(pool), lanes = (workers + WORKERS_PER_LANE - 1) / WORKERS_PER_LANE;
    Shop shop = {.plan = plan, .ring_size = 2 * workers + 2, .lane_count = lanes < plan->job_count ? lanes : plan->job_count};
    pthread_mutex_init(&shop.lock, NULL);
    pthread_cond_init(&shop.changed, NULL);
    shop.lanes = memory_zeroed((size_t)shop.lane_count + 1, sizeof *shop.lanes);
    for (int i = 0; i < shop.lane_count; i++) {
        shop.lanes[i].ring = memory_zeroed((size_t)shop.ring_size, sizeof *shop.lanes[i].ring);
    }
    progress_begin(&shop.progress, "tokenizing shards", "B", (double)plan->stored_bytes);
    threads_run(pool, workers, work, &shop);
    progress_end(&shop.progress);
    for (int i = 0; i < shop.lane_count; i++) {
        Lane *lane = &shop.lanes[i];
        shard_close(lane->reader);
        part_writer_abandon(lane->part);
        for (int b = 0; b < shop.ring_size; b++) {
            if (lane->ring[b] != NULL) {
                batch_free(lane->ring[b]);
            }
        }
        free(lane->ring);
    }
    while (shop.unused != NULL) {
        Batch *batch = shop.unused;
        shop.unused = batch->next;
        batch_free(batch);
    }
    free(shop.lanes);
    pthread_cond_destroy(&shop.changed);
    pthread_mutex_destroy(&shop.lock);
    return shop.error;
}
