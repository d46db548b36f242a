// What must be the same on all ranks, compared before it counts: ranks that were started with different commands, builds or
// data would train a model that is nobody's, or wait for each other for ever.
#pragma once

#include "parallel/comm.h"

// A list of facts, each a line "NAME=VALUE". The value may hold anything; control characters are written as '?'.
void same_add(Buffer *facts, const char *name, const char *format, ...) PRINTF_LIKE(3, 4);

// Compares this rank's facts with rank 0's. Collective, like comm_agree: NULL where they are the same on all ranks, else rank 0
// gets a line that names the facts that differ (three at most, in the order in which they were added), both values and the
// ranks. A fact that a rank does not have, or has alone, differs.
Error *same_on_all(Comm *comm, const Buffer *facts) MUST_CHECK;
