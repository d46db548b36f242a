// Documents of Pile-style shards, streamed in fixed memory.
//
// Reads .jsonl.zst (concatenated frames too), .jsonl.gz and .jsonl, told apart by content; the lines are those of json_line.h.
// A document's text comes in pieces of at most one MiB (whole characters), because neither a document nor a line need fit in
// memory; nearly all come in one. The set's name may stand behind the text, so it is known with the last piece.
//
//   ShardEvent event;
//   do {
//       TRY(shard_next(reader, &event));
//       switch (event.kind) {
//       case SHARD_PIECE:     keep event.text; the document goes on                                  break;
//       case SHARD_DOCUMENT:  event.text is its last piece (the only one if event.first), event.set  break;
//       case SHARD_BAD_LINE:  forget its pieces (there are none if event.first); event.reason        break;
//       case SHARD_END:       break;
//       }
//   } while (event.kind != SHARD_END);
#pragma once

#include "core/memory.h"
#include "data/text/set_names.h"

typedef enum ShardEventKind { SHARD_PIECE, SHARD_DOCUMENT, SHARD_BAD_LINE, SHARD_END } ShardEventKind;

typedef struct ShardEvent {
    ShardEventKind kind;
    bool first;          // no piece of this line came before
    const char *text;    // SHARD_PIECE, SHARD_DOCUMENT: valid UTF-8, until the next call
    size_t size;         // bytes
    const char *set;     // SHARD_DOCUMENT: the set's canonical name ("text" where the line names none), until the next call
    int64_t line;        // from 1
    const char *reason;  // SHARD_BAD_LINE: what is wrong with it, a clause that can follow "shard:line: "
} ShardEvent;

typedef struct ShardReader ShardReader;

// Opens a shard. An archive or another format that is recognised as such is refused by name.
Error *shard_open(const char *path, ShardReader **out) MUST_CHECK;

// The same from memory, which must outlive the reader, taken in steps of `step` bytes and handed out in pieces of at most
// `piece` bytes (at least 8): for tests and fuzzing.
Error *shard_open_memory(const char *name, const void *bytes, size_t size, size_t step, size_t piece,
                         ShardReader **out) MUST_CHECK;

// For what follows, before the first event: half of a surrogate pair in a text becomes U+FFFD instead of making the line bad;
// zstd frames may ask for a window of up to `bytes` (byte_source.h).
void shard_replace_surrogates(ShardReader *reader);
void shard_allow_window(ShardReader *reader, int64_t bytes);

// The next event. Blank lines are passed over. A shard that breaks off (inside a compressed stream, or in the middle of its
// last line) is ERROR_DAMAGED and names the shard; after an error the reader can only be closed.
Error *shard_next(ShardReader *reader, ShardEvent *event) MUST_CHECK;

// Stored bytes taken so far, of the file's size, for progress.
int64_t shard_taken(const ShardReader *reader);

void shard_close(ShardReader *reader);  // NULL is fine
