// The bytes of a token file, checked block by block as they are first read.
//
// A terabyte cannot be read before a run begins, and damage must not be trained on. So the file has a checksum for each block
// of BLOCK_BYTES (XXH3-64; the last block is shorter), and a block is compared when it is first touched: it is read whole, and
// what was asked for is copied out of the bytes that were checked. Later reads take nothing but what they ask for. So an epoch
// reads every byte once for its checks and at most once more for its samples, and later epochs what they always read.
//
// Where the sums come from:
//   block_file_expect   a .sums file beside the tokens, itself protected by a checksum that the caller knows
//   block_file_keep     nowhere: what is read first is what later reads must find (kept_sums.h carries that over runs)
//   neither             nothing is checked
// A file that changes under its readers (its size or its time of change) is new to them: its blocks are compared again.
//
// A .sums file: "ATHSUMS\0", u32 version 1, u32 BLOCK_BYTES, then a u64 for each block; little-endian.
//
// Reading is thread-safe. Memory: a bit for each block, and with block_file_keep 65 bits, of which untouched pages take none
// (a terabyte has 2^25 blocks: 4 MiB, and up to 256 MiB where sums are kept).
#pragma once

#include "core/memory.h"

enum { BLOCK_BYTES = 32 << 10 };

#define SUMS_MAGIC "ATHSUMS"
enum { SUMS_VERSION = 1, SUMS_HEADER_BYTES = 16 };

typedef struct BlockFile BlockFile;

Error *block_file_open(const char *path, BlockFile **out) MUST_CHECK;
void block_file_close(BlockFile *file);  // NULL is fine

int64_t block_file_size(const BlockFile *file);    // bytes
int64_t block_file_blocks(const BlockFile *file);  // the last one counts too
const char *block_file_path(const BlockFile *file);

// Every block must have the sum that the .sums file at `path` gives it; that file must have `checksum` (XXH3-64).
Error *block_file_expect(BlockFile *file, const char *path, uint64_t checksum) MUST_CHECK;

// Every block must have the sum that it had when it was first read.
void block_file_keep(BlockFile *file);

// Of a file that keeps sums: tells it one from before. False if another is known already. Not during reads.
bool block_file_know(BlockFile *file, int64_t block, uint64_t sum);

// Of a file that keeps sums: the first block from `from` on that was first read since it was last asked for, and its sum; -1
// where there is none.
int64_t block_file_take_new(BlockFile *file, int64_t from, uint64_t *sum);
void block_file_give_back(BlockFile *file, int64_t block);  // a block that was taken is new again

// From now on a read also sees whether a file that is mapped beside this one, such as an index, was changed in place. `data`
// stays the caller's and must outlive `file`. At most two.
void block_file_watch(BlockFile *file, const char *path, const void *data, size_t size);

// Copies bytes [from, from + size), which must lie inside. An error names file, bytes and what to do.
Error *block_file_read(BlockFile *file, int64_t from, void *out, size_t size) MUST_CHECK;

// Tells the system how the file will be read: in no order, as it is after opening, so that it reads nothing ahead in vain; or
// from front to back.
void block_file_in_order(const BlockFile *file, bool in_order);

// XXH3-64 of the whole, read block by block.
Error *block_file_hash(BlockFile *file, uint64_t *hash) MUST_CHECK;

// Bytes that reads asked for, and that were taken from the file for them, so far.
typedef struct BlockTraffic {
    int64_t asked, taken;
} BlockTraffic;
BlockTraffic block_file_traffic(const BlockFile *file);
