// Sums that a run keeps: see kept_sums.h.
#include "data/tokens/kept_sums.h"

#include "core/hash.h"
#include "core/log.h"
#include "core/text.h"

#include <errno.h>
#include <fcntl.h>
#include <unistd.h>

#define KEPT_MAGIC "ATHKEPT"

enum { KEPT_VERSION = 1, CHUNK_RECORDS = 1 << 16, CHUNK_HEAD_WORDS = 3 };

typedef struct Head {
    char magic[8];
    uint32_t version, block;
    uint64_t corpus;
} Head;

typedef struct Record {
    uint64_t block, sum;
} Record;

struct KeptSums {
    Corpus *corpus;
    char *folder, *path;
    int64_t size;  // of the rank's own file, as far as it is whole; 0: there is none, or none of this corpus
};

static Head head_of(const Corpus *corpus) {
    return (Head){KEPT_MAGIC, KEPT_VERSION, BLOCK_BYTES, corpus->fingerprint};
}

static uint64_t chunk_sum(const uint64_t *words, const Record *records) {
    return hash64_seeded(records, (size_t)words[1] * sizeof *records, hash64(words, 2 * sizeof *words));
}

// Gives one chunk's records to the corpus.
static Error *take_chunk(const KeptSums *kept, const char *path, const uint64_t *words, const Record *records) {
    BlockFile *file = kept->corpus->sets[words[0]].file.bin;
    for (uint64_t i = 0; i < words[1]; i++) {
        if ((int64_t)records[i].block >= block_file_blocks(file) ||
            !block_file_know(file, (int64_t)records[i].block, records[i].sum)) {
            return damaged(
                "%s: block %llu of %s is not what another rank read there: the ranks do not see the same file, or it "
                "changed; give every rank the same files and begin the run in another folder",
                path, (unsigned long long)records[i].block, block_file_path(file));
        }
    }
    return NULL;
}

// Reads the chunks of one file as far as they are whole. *size is where they end; 0 where the file is of another corpus.
static Error *take_file(const KeptSums *kept, const char *path, int64_t *size) {
    Mapped bytes;
    Head head = head_of(kept->corpus);
    *size = 0;
    TRY(file_map(path, &bytes));
    if (bytes.size < sizeof head || memcmp(bytes.data, &head, sizeof head) != 0) {
        file_unmap(&bytes);
        return NULL;
    }
    const char *data = bytes.data;
    size_t at = sizeof head;
    Error *error = NULL;
    uint64_t words[CHUNK_HEAD_WORDS];
    while (error == NULL && bytes.size - at >= sizeof words) {
        memcpy(words, data + at, sizeof words);
        const Record *records = (const Record *)(const void *)(data + at + sizeof words);  // all parts are multiples of 8
        if (words[0] >= (uint64_t)kept->corpus->set_count || words[1] > CHUNK_RECORDS ||
            words[1] * sizeof *records > bytes.size - at - sizeof words || chunk_sum(words, records) != words[2]) {
            break;
        }
        error = take_chunk(kept, path, words, records);
        at += sizeof words + (size_t)words[1] * sizeof *records;
    }
    *size = (int64_t)at;
    if (error == NULL && at < bytes.size) {
        log_info("%s: its last %zu bytes are not whole and not used; those blocks are summed again", path, bytes.size - at);
    }
    file_unmap(&bytes);
    return error;
}

static Error *take_files(KeptSums *kept) {
    Strings names = {0};
    Error *error = path_is_folder(kept->folder) ? folder_list(kept->folder, &names) : NULL;
    for (size_t i = 0; i < names.count && error == NULL; i++) {
        if (!text_ends_with(names.items[i], ".sums")) {
            continue;
        }
        char *path = path_join(kept->folder, names.items[i]);
        int64_t size;
        error = take_file(kept, path, &size);
        kept->size = strcmp(path, kept->path) == 0 ? size : kept->size;
        free(path);
    }
    strings_free(&names);
    return error;
}

Error *kept_sums_open(Corpus *corpus, const char *folder, int rank, KeptSums **out) {
    KeptSums *kept = memory_zeroed(1, sizeof *kept);
    kept->corpus = corpus;
    kept->folder = memory_string(folder);
    kept->path = memory_format("%s/rank-%05d.sums", folder, rank);
    bool needed = false;
    for (int d = 0; d < corpus->set_count; d++) {
        if (corpus->sets[d].sums_checksum == 0) {
            block_file_keep(corpus->sets[d].file.bin);
            needed = true;
        }
    }
    Error *error = needed ? take_files(kept) : NULL;
    if (error != NULL || !needed) {
        kept_sums_close(kept);
        kept = NULL;
    }
    *out = kept;
    return error;
}

void kept_sums_close(KeptSums *kept) {
    if (kept != NULL) {
        free(kept->folder);
        free(kept->path);
        free(kept);
    }
}

// Opens the rank's file behind what is whole of it.
static Error *open_own(const KeptSums *kept, int *descriptor) {
    TRY(folder_create(kept->folder));
    *descriptor = open(kept->path, O_WRONLY | O_CREAT | O_CLOEXEC, 0666);
    if (*descriptor < 0) {
        return error_system(errno, "%s cannot be written", kept->path);
    }
    if (ftruncate(*descriptor, kept->size) != 0 || lseek(*descriptor, kept->size, SEEK_SET) < 0) {
        Error *error = error_system(errno, "%s cannot be written", kept->path);
        close(*descriptor);
        return error;
    }
    return NULL;
}

// The new records of a set from block *from on, at most a chunk's worth.
static int64_t collect(const KeptSums *kept, int set, int64_t *from, Record *records) {
    BlockFile *file = kept->corpus->sets[set].file.bin;
    int64_t count = 0;
    uint64_t sum;
    for (int64_t block; count < CHUNK_RECORDS && (block = block_file_take_new(file, *from, &sum)) >= 0; *from = block + 1) {
        records[count++] = (Record){(uint64_t)block, sum};
    }
    return count;
}

// Appends a chunk. *size grows by it.
static Error *write_chunk(const KeptSums *kept, int descriptor, int set, const Record *records, int64_t count, int64_t *size) {
    uint64_t words[CHUNK_HEAD_WORDS] = {(uint64_t)set, (uint64_t)count, 0};
    words[2] = chunk_sum(words, records);
    if (*size == 0) {
        Head head = head_of(kept->corpus);
        TRY(file_write_all(descriptor, kept->path, &head, sizeof head));
        *size = (int64_t)sizeof head;
    }
    TRY(file_write_all(descriptor, kept->path, words, sizeof words));
    TRY(file_write_all(descriptor, kept->path, records, (size_t)count * sizeof *records));
    *size += (int64_t)sizeof words + count * (int64_t)sizeof *records;
    return NULL;
}

// Saves the new sums of one set. Opens the file at the first of them (*descriptor is -1 before). What was not made durable is
// new again.
static Error *save_set(KeptSums *kept, int set, int *descriptor, Record *records) {
    Error *error = NULL;
    int64_t from = 0, count, size = kept->size;
    while (error == NULL && (count = collect(kept, set, &from, records)) > 0) {
        error = *descriptor < 0 ? open_own(kept, descriptor) : NULL;
        error = error == NULL ? write_chunk(kept, *descriptor, set, records, count, &size) : error;
        if (error == NULL && fsync(*descriptor) != 0) {
            error = error_system(errno, "%s cannot be made durable", kept->path);
        }
        for (int64_t i = 0; i < count && error != NULL; i++) {
            block_file_give_back(kept->corpus->sets[set].file.bin, (int64_t)records[i].block);
        }
        kept->size = error == NULL ? size : kept->size;
    }
    return error;
}

Error *kept_sums_save(KeptSums *kept) {
    Record *records = memory_new(CHUNK_RECORDS, sizeof *records);
    int descriptor = -1;
    bool first = kept->size == 0;
    Error *error = NULL;
    for (int set = 0; set < kept->corpus->set_count && error == NULL; set++) {
        if (kept->corpus->sets[set].sums_checksum == 0) {
            error = save_set(kept, set, &descriptor, records);
        }
    }
    if (descriptor >= 0) {
        close(descriptor);
        error = error == NULL && first ? file_sync(kept->folder) : error;
    }
    free(records);
    return error;
}
