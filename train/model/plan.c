// The memory plan: see plan.h.
#include "train/model/plan.h"

#include "core/text.h"
#include "train/model/activations.h"

#include <stdarg.h>

const char *const recompute_names[] = {"none", "selective", "full", NULL};

void memory_plan_add(MemoryPlan *plan, const char *name, int64_t bytes, const char *detail, ...) {
    ensure(plan->count < PLAN_LINES, "the memory plan has too many lines");
    PlanLine *line = &plan->lines[plan->count++];
    snprintf(line->name, sizeof line->name, "%s", name);
    va_list arguments;
    va_start(arguments, detail);
    vsnprintf(line->detail, sizeof line->detail, detail, arguments);
    va_end(arguments);
    line->bytes = bytes;
    plan->total += bytes;
}

void memory_plan_print(const MemoryPlan *plan, FILE *out) {
    char text[32], available[32];
    fprintf(out, "memory plan\n");
    for (int i = 0; i < plan->count; i++) {
        const PlanLine *line = &plan->lines[i];
        fprintf(out, "  %-34s %12s   %s\n", line->name, text_bytes(text, (double)line->bytes), line->detail);
    }
    fprintf(out, "  %-34s %12s   of %s available\n", "total", text_bytes(text, (double)plan->total),
            text_bytes(available, (double)memory_available()));
}

Error *memory_plan_check(const MemoryPlan *plan) {
    size_t available = memory_available();
    if (available == 0 || (uint64_t)plan->total <= available) {
        return NULL;
    }
    const PlanLine *largest = &plan->lines[0];
    for (int i = 1; i < plan->count; i++) {
        largest = plan->lines[i].bytes > largest->bytes ? &plan->lines[i] : largest;
    }
    char need[32], have[32], part[32];
    return failure("the run needs %s of memory and %s is available; the largest part is %s (%s): use a smaller model, fewer "
                   "sequences in a micro-batch, a shorter sequence or more recompute",
                   text_bytes(need, (double)plan->total), text_bytes(have, (double)available), largest->name,
                   text_bytes(part, (double)largest->bytes));
}
