// Files that are checked as they are read: see block_file.h.
//
// The file is read with pread, not mapped: a disk that fails or a file that is cut under a run is then an error with a name,
// where a mapping would end the process by a signal, and no more is fetched from the disk than is asked for.
#include "data/tokens/block_file.h"

#include "core/durable.h"
#include "core/hash.h"

#include <errno.h>
#include <fcntl.h>
#include <inttypes.h>
#include <stdatomic.h>
#include <sys/stat.h>
#include <unistd.h>

enum { MOST_WATCHED = 2 };

// A mapped file: what is written into it in place shows in the mapping, and what is cut off ends whoever reads there.
typedef struct Watched {
    char *path;
    const void *data;
    size_t size;
    uint64_t hash;
    ino_t inode;
    _Atomic int64_t stamp;
} Watched;

struct BlockFile {
    char *path;
    int descriptor;
    int64_t size, blocks;
    Mapped sums;              // the .sums file, where sums are expected
    _Atomic uint64_t *kept;   // per block, 0 unknown: where sums are kept
    _Atomic uint64_t *known;  // bits: the block was compared
    _Atomic uint64_t *fresh;  // bits: the kept sum was not taken yet
    _Atomic int64_t stamp;    // for which `known` holds
    Watched watched[MOST_WATCHED];
    int watched_count;
    _Atomic int64_t asked, taken;
};

// Another number where a file was written to.
static int64_t stamp_of(const struct stat *info) {
    return (int64_t)info->st_mtim.tv_sec * 1000000000 + info->st_mtim.tv_nsec + (int64_t)info->st_size * 0x9E3779B9;
}

static _Atomic uint64_t *bits_create(int64_t count) {
    return memory_zeroed((size_t)(count + 63) / 64 + 1, sizeof(uint64_t));
}

static bool bit_get(const _Atomic uint64_t *bits, int64_t i) {
    return (atomic_load_explicit(&bits[i / 64], memory_order_relaxed) >> (i % 64) & 1) != 0;
}

static void bit_set(_Atomic uint64_t *bits, int64_t i) {
    atomic_fetch_or_explicit(&bits[i / 64], (uint64_t)1 << (i % 64), memory_order_relaxed);
}

Error *block_file_open(const char *path, BlockFile **out) {
    *out = NULL;
    int descriptor = open(path, O_RDONLY | O_CLOEXEC | O_NONBLOCK);  // a pipe is refused below, not waited for
    struct stat info;
    if (descriptor < 0 || fstat(descriptor, &info) != 0) {
        Error *error = error_system(errno, "%s cannot be opened", path);
        if (descriptor >= 0) {
            close(descriptor);
        }
        return error;
    }
    if (!S_ISREG(info.st_mode)) {
        close(descriptor);
        return failure("%s is no file that can be read from any place", path);
    }
    BlockFile *file = memory_zeroed(1, sizeof *file);
    file->path = memory_string(path);
    file->descriptor = descriptor;
    file->size = info.st_size;
    file->blocks = (file->size + BLOCK_BYTES - 1) / BLOCK_BYTES;
    file->stamp = stamp_of(&info);
    block_file_in_order(file, false);
    *out = file;
    return NULL;
}

void block_file_in_order(const BlockFile *file, bool in_order) {
    posix_fadvise(file->descriptor, 0, 0, in_order ? POSIX_FADV_SEQUENTIAL : POSIX_FADV_RANDOM);
}

void block_file_close(BlockFile *file) {
    if (file != NULL) {
        close(file->descriptor);
        file_unmap(&file->sums);
        for (int i = 0; i < file->watched_count; i++) {
            free(file->watched[i].path);
        }
        free(file->kept);
        free(file->known);
        free(file->fresh);
        free(file->path);
        free(file);
    }
}

int64_t block_file_size(const BlockFile *file) {
    return file->size;
}

int64_t block_file_blocks(const BlockFile *file) {
    return file->blocks;
}

const char *block_file_path(const BlockFile *file) {
    return file->path;
}

Error *block_file_expect(BlockFile *file, const char *path, uint64_t checksum) {
    Mapped sums;
    uint32_t version, block;
    TRY(file_map(path, &sums));
    uint64_t found = hash64(sums.data, sums.size);
    if (found != checksum) {
        file_unmap(&sums);
        return damaged("%s is damaged: its checksum is %016" PRIx64 ", the manifest says %016" PRIx64
                       "; restore the corpus from where it came, or build it again",
                       path, found, checksum);
    }
    bool good = sums.size == SUMS_HEADER_BYTES + 8 * (size_t)file->blocks && memcmp(sums.data, SUMS_MAGIC, 8) == 0;
    if (good) {
        memcpy(&version, (const char *)sums.data + 8, 4);
        memcpy(&block, (const char *)sums.data + 12, 4);
        good = version == SUMS_VERSION && block == BLOCK_BYTES;
    }
    if (!good) {
        file_unmap(&sums);
        return damaged("%s does not hold the checksums of the %lld blocks of %s: they do not belong together", path,
                       (long long)file->blocks, file->path);
    }
    block_file_watch(file, path, sums.data, sums.size);
    file_release(&sums);
    file->sums = sums;
    file->known = bits_create(file->blocks);
    return NULL;
}

void block_file_watch(BlockFile *file, const char *path, const void *data, size_t size) {
    ensure(file->watched_count < MOST_WATCHED, "%s has too much beside it", file->path);
    struct stat info;
    if (stat(path, &info) == 0 && (size_t)info.st_size == size) {
        file->watched[file->watched_count++] = (Watched){.path = memory_string(path),
                                                         .data = data,
                                                         .size = size,
                                                         .hash = hash64(data, size),
                                                         .inode = info.st_ino,
                                                         .stamp = stamp_of(&info)};
    }
}

// A file that was renamed or removed is still mapped as it was.
static Error *check_watched(Watched *watched) {
    struct stat now;
    if (stat(watched->path, &now) != 0 || stamp_of(&now) == atomic_load(&watched->stamp)) {
        return NULL;
    }
    bool cut = now.st_ino == watched->inode && (size_t)now.st_size < watched->size;
    if (cut || hash64(watched->data, watched->size) != watched->hash) {
        return damaged("%s was %s while it was in use; restore it as it was", watched->path, cut ? "cut off" : "changed");
    }
    atomic_store(&watched->stamp, stamp_of(&now));
    return NULL;
}

// The stamp of the file as it is. What is known of its blocks holds for the one that it had.
static int64_t renew(BlockFile *file) {
    struct stat now;
    int64_t stamp = fstat(file->descriptor, &now) == 0 ? stamp_of(&now) : 0;
    if (stamp != atomic_load(&file->stamp)) {
        for (int64_t word = 0; word <= file->blocks / 64; word++) {
            atomic_store(&file->known[word], 0);
        }
        atomic_store(&file->stamp, stamp);
    }
    return stamp;
}

void block_file_keep(BlockFile *file) {
    ensure(file->known == NULL, "%s has sums", file->path);
    file->kept = memory_zeroed((size_t)file->blocks + 1, sizeof *file->kept);
    file->known = bits_create(file->blocks);
    file->fresh = bits_create(file->blocks);
}

bool block_file_know(BlockFile *file, int64_t block, uint64_t sum) {
    ensure(file->kept != NULL && block >= 0 && block < file->blocks, "block %lld of %s", (long long)block, file->path);
    uint64_t before = atomic_load(&file->kept[block]);
    atomic_store(&file->kept[block], before != 0 ? before : sum);
    return before == 0 || before == sum;
}

int64_t block_file_take_new(BlockFile *file, int64_t from, uint64_t *sum) {
    for (int64_t word = from / 64; word <= (file->blocks - 1) / 64 && file->blocks > 0; word++) {
        uint64_t bits = atomic_load(&file->fresh[word]);
        bits &= word == from / 64 ? ~(uint64_t)0 << (from % 64) : ~(uint64_t)0;
        if (bits != 0) {
            int64_t block = word * 64 + __builtin_ctzll(bits);
            atomic_fetch_and(&file->fresh[word], ~((uint64_t)1 << (block % 64)));
            *sum = atomic_load(&file->kept[block]);
            return block;
        }
    }
    return -1;
}

void block_file_give_back(BlockFile *file, int64_t block) {
    bit_set(file->fresh, block);
}

static Error *read_at(BlockFile *file, int64_t from, char *out, size_t size) {
    atomic_fetch_add_explicit(&file->taken, (int64_t)size, memory_order_relaxed);
    for (size_t done = 0; done < size;) {
        ssize_t got = pread(file->descriptor, out + done, size - done, from + (int64_t)done);
        if (got < 0 && errno != EINTR) {
            return error_system(errno, "%s cannot be read at byte %lld", file->path, (long long)(from + (int64_t)done));
        }
        if (got == 0) {
            return damaged("%s was cut off while it was in use: it had %lld bytes, byte %lld is gone; restore it", file->path,
                           (long long)file->size, (long long)(from + (int64_t)done));
        }
        done += got > 0 ? (size_t)got : 0;
    }
    return NULL;
}

// The sum that the block must have. Where sums are kept and it has none yet, `found` becomes it.
static uint64_t expected_sum(BlockFile *file, int64_t block, uint64_t found) {
    uint64_t sum = 0;
    if (file->kept == NULL) {
        memcpy(&sum, (const char *)file->sums.data + SUMS_HEADER_BYTES + 8 * block, 8);
    } else if (atomic_compare_exchange_strong(&file->kept[block], &sum, found)) {
        sum = found;
        bit_set(file->fresh, block);
    }
    return sum;
}

// Reads a whole block and compares it; it is known then, if the file is still the one of that stamp. `bytes` has room for
// BLOCK_BYTES.
static Error *read_block(BlockFile *file, int64_t stamp, int64_t block, char *bytes) {
    int64_t from = block * BLOCK_BYTES, end = from + BLOCK_BYTES < file->size ? from + BLOCK_BYTES : file->size;
    TRY(read_at(file, from, bytes, (size_t)(end - from)));
    uint64_t found = hash64(bytes, (size_t)(end - from));
    found += file->kept != NULL && found == 0;  // 0 means unknown there
    uint64_t expected = expected_sum(file, block, found);
    if (found != expected) {
        return damaged("%s is damaged: its bytes %lld to %lld have the checksum %016" PRIx64 ", %s %016" PRIx64 "; %s",
                       file->path, (long long)from, (long long)end - 1, found,
                       file->kept != NULL ? "when this run first read them it was" : "it was built with", expected,
                       file->kept != NULL ? "restore the file as it was" : "restore the corpus, or build it again");
    }
    if (renew(file) == stamp) {
        bit_set(file->known, block);
    }
    return NULL;
}

Error *block_file_read(BlockFile *file, int64_t from, void *out, size_t size) {
    ensure(from >= 0 && (int64_t)size >= 0 && from <= file->size && (int64_t)size <= file->size - from,
           "bytes %lld + %zu of %s", (long long)from, size, file->path);
    char bytes[BLOCK_BYTES], *to = out;
    atomic_fetch_add_explicit(&file->asked, (int64_t)size, memory_order_relaxed);
    if (file->known == NULL) {
        return read_at(file, from, to, size);
    }
    for (int i = 0; i < file->watched_count; i++) {
        TRY(check_watched(&file->watched[i]));
    }
    int64_t stamp = renew(file);
    while (size > 0) {
        int64_t block = from / BLOCK_BYTES;
        size_t inside = (size_t)(from % BLOCK_BYTES), piece = BLOCK_BYTES - inside;
        piece = piece < size ? piece : size;
        if (bit_get(file->known, block)) {
            TRY(read_at(file, from, to, piece));
        } else {
            TRY(read_block(file, stamp, block, bytes));
            memcpy(to, bytes + inside, piece);
        }
        from += (int64_t)piece;
        to += piece;
        size -= piece;
    }
    return NULL;
}

Error *block_file_hash(BlockFile *file, uint64_t *hash) {
    char bytes[BLOCK_BYTES];
    Hasher *hasher = hasher_create();
    Error *error = NULL;
    block_file_in_order(file, true);
    for (int64_t from = 0, size; from < file->size && error == NULL; from += size) {
        size = file->size - from < BLOCK_BYTES ? file->size - from : BLOCK_BYTES;
        error = block_file_read(file, from, bytes, (size_t)size);
        if (error == NULL) {
            hasher_add(hasher, bytes, (size_t)size);
        }
    }
    block_file_in_order(file, false);
    *hash = hasher_result(hasher);
    hasher_destroy(hasher);
    return error;
}

BlockTraffic block_file_traffic(const BlockFile *file) {
    return (BlockTraffic){file->asked, file->taken};
}
