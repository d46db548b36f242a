// A part of a tensor in memory: see part.h.
#include "train/checkpoint/part.h"

#include "core/digest.h"
#include "kernels/values.h"

// ---- blocks ----

// How a box lies in the row-major tensor: runs of `length` neighbours, the first at `first`. Where there are several, `apart`
// has the bits of all distances between them, so what divides by a power of two in it divides so in each.
typedef struct Lie {
    int64_t first, last, length, apart;  // `last`: where the last run begins
} Lie;

static Lie lie_of(const CheckpointTensor *tensor, const Box *box) {
    Lie lie = {.length = 1};
    bool joined = true;  // all dimensions after this one are whole
    int64_t stride = 1;
    for (int d = tensor->dims - 1; d >= 0; d--) {
        int64_t extent = box->end[d] - box->begin[d];
        lie.first += box->begin[d] * stride;
        if (joined) {
            lie.length *= extent;
        } else if (extent > 1) {
            lie.last += (extent - 1) * stride;
            lie.apart |= stride;
        }
        joined = joined && extent == tensor->shape[d];
        stride *= tensor->shape[d];
    }
    lie.last += lie.first;
    return lie;
}

bool part_has_whole_blocks(const CheckpointTensor *tensor, const CheckpointPart *part) {
    Box whole = box_whole(tensor->dims, tensor->shape);
    int64_t elements = box_count(&whole), at = 0;  // where the box before ended
    for (int i = 0; i < part->box_count; i++) {
        Lie lie = lie_of(tensor, &part->boxes[i]);
        bool begins = lie.first >= at && lie.first % DATA_TYPE_BLOCK == 0;
        bool goes_on = i > 0 && lie.first == at;  // within a block, perhaps
        bool steps = lie.apart == 0 || (lie.first % DATA_TYPE_BLOCK == 0 && (lie.apart | lie.length) % DATA_TYPE_BLOCK == 0);
        if (!(at % DATA_TYPE_BLOCK == 0 ? begins : goes_on) || !steps) {
            return false;
        }
        at = lie.last + lie.length;
    }
    return at % DATA_TYPE_BLOCK == 0 || at == elements;
}

// ---- digests ----

typedef struct Digesting {
    DataType type;
    const char *elements;
    const float *scales;
    uint64_t sum;
} Digesting;

static bool digest_elements(void *context, BoxRun run) {
    enum { PIECE = 4096 };
    Digesting *d = context;
    float values[PIECE];
    for (int64_t done = 0; done < run.count; done += PIECE) {
        int64_t count = run.count - done < PIECE ? run.count - done : PIECE, at = run.to + done;
        const float *scales = d->scales != NULL ? d->scales + at / DATA_TYPE_BLOCK : NULL;
        values_widen(d->type, d->elements + part_bytes(d->type, at), scales, at, count, values);
        d->sum += digest_run(run.from + done, values, count);
    }
    return true;
}

uint64_t part_digest(const CheckpointTensor *tensor, const CheckpointPart *part, const void *elements, const float *scales) {
    if (part->type == TYPE_FP32) {
        return digest_boxes(tensor->dims, tensor->shape, part->boxes, part->box_count, elements);
    }
    Box whole = box_whole(tensor->dims, tensor->shape);
    Digesting digesting = {.type = part->type, .elements = elements, .scales = scales};
    boxes_runs(&whole, 1, part->boxes, part->box_count, digest_elements, &digesting, NULL);
    return digesting.sum;
}
