// The memory plan: see plan.h.
#include "train/model/plan.h"

#include "core/text.h"

#include <stdarg.h>

const char *const recompute_names[] = {"none", "selective", "full", NULL};

Machine machine_of(Device *device, int host_sharers, int card_sharers) {
    int64_t program = (int64_t)memory_resident(), host = (int64_t)memory_available() / host_sharers;
    bool card = device->kind != DEVICE_CPU;
    return (Machine){.kind = device->kind,
                     .type = device->type,
                     .threads = threads_count(device->pool),
                     .program = program,
                     .memory = card ? (int64_t)device_available(device) / card_sharers : host,
                     .host_memory = host};
}

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

void memory_plan_add_host(MemoryPlan *plan, DeviceKind kind, const char *name, int64_t bytes, const char *detail, ...) {
    va_list arguments;
    va_start(arguments, detail);
    PlanLine *line = add_line(plan, name, bytes, detail, arguments);
    va_end(arguments);
    line->host = kind != DEVICE_CPU;
    *(line->host ? &plan->host : &plan->total) += bytes;
}

// What the rank may have altogether of each memory: what is free for it and what it has already.
static int64_t device_limit(const Machine *machine) {
    return machine->memory > 0 ? machine->memory + (machine->kind == DEVICE_CPU ? machine->program : 0) : 0;
}

static int64_t host_limit(const Machine *machine) {
    return machine->host_memory > 0 ? machine->host_memory + machine->program : 0;
}

void memory_plan_print(const MemoryPlan *plan, const Machine *machine, FILE *out) {
    char text[32], available[32];
    fprintf(out, "memory plan\n");
    for (int i = 0; i < plan->count; i++) {
        const PlanLine *line = &plan->lines[i];
        fprintf(out, "  %-34s %12s   %s%s\n", line->name, text_bytes(text, (double)line->bytes), line->detail,
                line->host ? " (host)" : "");
    }
    fprintf(out, "  %-34s %12s   of %s available\n", "total", text_bytes(text, (double)plan->total),
            text_bytes(available, (double)device_limit(machine)));
    if (plan->host > 0) {
        fprintf(out, "  %-34s %12s   of %s available\n", "total of the host", text_bytes(text, (double)plan->host),
                text_bytes(available, (double)host_limit(machine)));
    }
}

Error *memory_plan_check(const MemoryPlan *plan, const Machine *machine) {
    char need[32], have[32], part[32];
    int64_t host = host_limit(machine), device = device_limit(machine);
    if (plan->host > 0 && host > 0 && plan->host > host) {
        return failure("the run needs %s of the host's memory beside the card's and %s is available for each rank",
                       text_bytes(need, (double)plan->host), text_bytes(have, (double)host));
    }
    if (device == 0 || plan->total <= device) {
        return NULL;
    }
    const PlanLine *largest = NULL;
    for (int i = 0; i < plan->count; i++) {
        bool more = !plan->lines[i].host && (largest == NULL || plan->lines[i].bytes > largest->bytes);
        largest = more ? &plan->lines[i] : largest;
    }
    return failure("the run needs %s of %s and %s is available; the largest part is %s (%s): use a smaller model, fewer "
                   "sequences in a micro-batch, a shorter sequence or more recompute",
                   text_bytes(need, (double)plan->total), machine->kind != DEVICE_CPU ? "the card's memory" : "memory",
                   text_bytes(have, (double)device), largest->name, text_bytes(part, (double)largest->bytes));
}
