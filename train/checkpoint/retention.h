// Which committed checkpoints of a run stay.
//
// Steps from the newest, which was just committed, down to the oldest; those after it belong to another course and are left
// alone. One is good where it is whole and was made by steps that learned. It is kept while fewer than keep_last newer ones are
// good, so an older one goes only when enough newer ones are proven:
//
//                                    fewer than keep_last newer good ones      enough of them
//     the newest                     stays                                     -
//     good                           stays                                     goes
//     whole, but learned nothing     goes where a newer whole one is there     goes
//     damaged                        stays: it may be mended                   goes
//     unreadable now, of another run stays                                     stays
//     step a multiple of keep_every  stays                                     stays
//
// Whole means that every checksum was right when this process looked once (checkpoint_whole), and that the manifest and all
// sizes are still the same.
#pragma once

#include "train/checkpoint/checkpoint.h"

typedef struct Retention {
    int keep_last;
    int64_t keep_every;  // 0: none
    uint64_t run;
    bool (*learned)(const json_t *state);  // NULL: all did
} Retention;

// Removes folders that an earlier removal moved aside and did not finish with.
Error *retention_sweep(const char *folder) MUST_CHECK;

// What becomes of each committed step, ascending; *out is the caller's. `newest` as in retention_apply; -1: nobody knows what
// was committed last, so the checksums of the newest are looked at too, and the newest whole one stays whatever it learned.
typedef struct RetentionChoice {
    int64_t step;
    bool goes;
    const char *why;
} RetentionChoice;
Error *retention_choose(const char *folder, const Retention *rule, int64_t newest, RetentionChoice **out,
                        int *count) MUST_CHECK;
// Removes those that go. The first failure is returned; the others are removed nevertheless.
Error *retention_remove(const char *folder, const RetentionChoice *choices, int count) MUST_CHECK;

// Removes what the rule lets go, and what an earlier removal left. `folder` is RUN/checkpoints. The first failure is returned;
// what could not be removed stays and counts for nothing.
Error *retention_apply(const char *folder, const Retention *rule, int64_t newest) MUST_CHECK;
