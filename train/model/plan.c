// The memory plan: see plan.h.
#include "train/model/plan.h"

#include "core/text.h"
#include "train/model/activations.h"

#include <stdarg.h>

const char *const recompute_names[] = {"none", "selective", "full", NULL};

static PlanLine *add_line(MemoryPlan *plan, const char *name, int64_t bytes, const char *detail, va_list arguments) {
    ensure(plan->count < PLAN_LINES, "the memory plan has too many lines");
    PlanLine *line = &plan->lines[plan->count++];
    snprintf(line->name, sizeof line->name, "%s", name);
    vsnprintf(line->detail, sizeof line->detail, detail, arguments);
    line->bytes = bytes;
    line->host = false;
    return line;
}

void memory_plan_add(MemoryPlan *plan, const char *name, int64_t bytes, const char *detail, ...) {
    va_list arguments;
    va_start(arguments, detail);
    add_line(plan, name, bytes, detail, arguments);
    va_end(arguments);
    plan->total += bytes;
}

void memory_plan_add_host(MemoryPlan *plan, const Device *device, const char *name, int64_t bytes, const char *detail, ...) {
    va_list arguments;
    va_start(arguments, detail);
    PlanLine *line = add_line(plan, name, bytes, detail, arguments);
    va_end(arguments);
    line->host = device->kind != DEVICE_CPU;
    *(line->host ? &plan->host : &plan->total) += bytes;
}

void memory_plan_print(const MemoryPlan *plan, Device *device, FILE *out) {
    char text[32], available[32];
    fprintf(out, "memory plan\n");
    for (int i = 0; i < plan->count; i++) {
        const PlanLine *line = &plan->lines[i];
        fprintf(out, "  %-34s %12s   %s%s\n", line->name, text_bytes(text, (double)line->bytes), line->detail,
                line->host ? " (host)" : "");
    }
    size_t left = (device != NULL ? device_available(device) : memory_available()) + (size_t)plan->held;
    fprintf(out, "  %-34s %12s   of %s available\n", "total", text_bytes(text, (double)plan->total),
            text_bytes(available, (double)left));
    if (plan->host > 0) {
        fprintf(out, "  %-34s %12s   of %s available\n", "total of the host", text_bytes(text, (double)plan->host),
                text_bytes(available, (double)memory_available()));
    }
}

Error *memory_plan_check(const MemoryPlan *plan, Device *device) {
    bool card = device != NULL && device->kind != DEVICE_CPU;
    size_t available = device != NULL ? device_available(device) : memory_available();
    available += available > 0 ? (size_t)plan->held : 0;
    char need[32], have[32], part[32];
    if (plan->host > 0 && memory_available() > 0 && (uint64_t)plan->host > memory_available()) {
        return failure("the run needs %s of the host's memory beside the card's and %s is available",
                       text_bytes(need, (double)plan->host), text_bytes(have, (double)memory_available()));
    }
    if (available == 0 || (uint64_t)plan->total <= available) {
        return NULL;
    }
    const PlanLine *largest = &plan->lines[0];
    for (int i = 1; i < plan->count; i++) {
        largest = plan->lines[i].bytes > largest->bytes && !plan->lines[i].host ? &plan->lines[i] : largest;
    }
    return failure("the run needs %s of %s and %s is available; the largest part is %s (%s): use a smaller model, fewer "
                   "sequences in a micro-batch, a shorter sequence or more recompute",
                   text_bytes(need, (double)plan->total), card ? "the card's memory" : "memory",
                   text_bytes(have, (double)available), largest->name, text_bytes(part, (double)largest->bytes));
}
