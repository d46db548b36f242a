// The folder RUN/checkpoints: names, what is committed, publishing by rename. What is kept: retention.h.
//
//     step-00001000              committed
//     step-00002000.partial      being written; whatever ends in .partial does not exist for a reader
//     step-00000500.old.partial  being removed
//     lock                       held by the run that writes here, whose host, process and start it names
#pragma once

#include "core/memory.h"

// RUN/checkpoints; RUN/checkpoints/step-N; the same with ".partial". Owned by the caller.
char *steps_folder(const char *run_folder);
char *steps_path(const char *folder, int64_t step);
char *steps_partial(const char *folder, int64_t step);
// The step of a committed folder's name, or -1.
int64_t steps_named(const char *name);
void steps_rank_file(char out[32], int rank, const char *extension);  // "rank-00003.h5"

// The committed steps, ascending; *steps is owned by the caller. A missing folder has none; one that cannot be read is an
// error.
Error *steps_list(const char *folder, int64_t **steps, int *count) MUST_CHECK;

// Takes the folder's lock for as long as *descriptor stays open, or says which run has it. File systems without locks are
// accepted.
Error *steps_lock(const char *folder, int *descriptor) MUST_CHECK;

// Removes what interrupted saves left and says so: every *.partial of `folder`, and in `run_folder` those of single files
// (core/durable.h). Needs the lock.
Error *steps_clean(const char *folder, const char *run_folder) MUST_CHECK;

// As file_try_again, of a file in `folder` that another host has just closed: it may be missing yet, because a network file
// system keeps what it knew of the folder for up to a minute. Opens the folder anew, which is when it looks again
// (close-to-open), and waits for a little more than that minute.
bool steps_try_again(const char *folder, Error **error, int *tries);

// Whether a file can be made durable here, tried with a small one. The error says that no checkpoint could be saved.
Error *steps_probe(const char *folder) MUST_CHECK;

// Bytes of all files in a committed step's folder; 0 where it cannot be read.
int64_t steps_bytes(const char *folder, int64_t step);

// Makes step-N.partial the committed step-N: rename and fsync of the folder. One of that step that exists already is exchanged
// for it in one step where the file system can, and removed.
Error *steps_publish(const char *folder, int64_t step) MUST_CHECK;

// Removes a committed step. It is renamed to *.old.partial first, so that a half removed one is none.
Error *steps_remove(const char *folder, int64_t step) MUST_CHECK;

// For tests: called with the name of each stage of a save, in the thread that does it. NULL in the product.
extern void (*checkpoint_stage)(const char *name);
// For tests: what a save that is tried again waits at first, in microseconds.
extern int checkpoint_pause_us;
static inline void checkpoint_reached(const char *name) {
    if (checkpoint_stage != NULL) {
        checkpoint_stage(name);
    }
}
