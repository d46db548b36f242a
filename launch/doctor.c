// athanor doctor: what this build has and what the machine offers.
#include "core/memory.h"
#include "core/text.h"
#include "core/threads.h"
#include "core/version.h"
#include "launch/commands.h"

#include <stdio.h>

static Error *run(const void *options, int count, char **arguments) {
    char text[32];
    printf("athanor   %s (commit %s, %s, %s)\n", ATHANOR_VERSION, ATHANOR_COMMIT, ATHANOR_COMPILER, ATHANOR_BUILD_TYPE);
    printf("cores     %d\n", threads_available());
    printf("memory    %s available\n", text_bytes(text, (double)memory_available()));
    return NULL;
}

const Command command_doctor = {
    .name = "doctor",
    .arguments = "",
    .summary = "tell what this build has and what this machine offers",
    .example = "  athanor doctor",
    .run = run,
};
