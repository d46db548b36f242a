// What tensor-parallel ranks exchange on the way through a layer: see travel.h.
#include "train/model/travel.h"

#include "train/model/block.h"

bool travel_is_cut(const Pass *pass) {
    return pass->workspace->options.tensor.ranks > 1;
}

static bool cuts_rows(const Pass *pass) {
    return pass->workspace->options.tensor.cut_rows;
}

static int64_t row_bytes(const Pass *pass) {
    return pass->model->config.width * data_type_bytes(pass->model->device->type);
}

// With the first error nothing is exchanged any more: TensorRanks.failed.
static void start(const Pass *pass, GroupOperation operation, int peer, int64_t rows, const void *send, void *receive,
                  GroupRequest **request) {
    TensorRanks *ranks = pass->model->tensor;
    *request = NULL;
    if (ranks->failed == NULL) {
        ranks->failed = group_start(ranks->group,
                                    &(Collective){.operation = operation,
                                                  .type = element_of(pass->model->device->type),
                                                  .count = rows * pass->model->config.width,
                                                  .send = send,
                                                  .receive = receive,
                                                  .peer = peer},
                                    request);
    }
}

static void finish(const Pass *pass, GroupRequest **request) {
    TensorRanks *ranks = pass->model->tensor;
    if (ranks->failed == NULL) {
        ranks->failed = group_wait(request);
    }
}

// ---- Blocks

// One for each rank where that can overlap, and where every block begins where a tensor may, whatever its columns.
static int blocks_of(const Pass *pass) {
    enum { ALIGNMENT = 64 };  // bytes: of kernels.h
    const Device *device = pass->model->device;
    int ranks = pass->workspace->options.tensor.ranks;
    bool can = travel_is_cut(pass) && device->kind != DEVICE_CPU && ranks <= TRAVEL_MOST_BLOCKS && pass->rows % ranks == 0 &&
               pass->rows / ranks * data_type_bytes(device->type) % ALIGNMENT == 0;
    return can ? ranks : 1;
}

static Range rows_of(const Travel *travel, int block) {
    int64_t each = travel->pass->rows / travel->blocks;
    return (Range){block * each, (block + 1) * each};
}

static char *at(const Travel *travel, int block) {
    return travel->rows + rows_of(travel, block).begin * row_bytes(travel->pass);
}

// ---- Gathering

Travel travel_gather(const Pass *pass, const void *own, void *whole) {
    if (!cuts_rows(pass)) {
        return (Travel){.pass = pass, .rows = (char *)(uintptr_t)own, .blocks = 1};
    }
    Travel travel = {.pass = pass, .rows = whole, .blocks = blocks_of(pass)};
    if (travel.blocks == 1) {
        start(pass, GROUP_ALL_GATHER, 0, pass->own_rows, own, whole, &travel.requests[0]);
        return travel;
    }
    block_copy(pass, own, at(&travel, pass->workspace->options.tensor.rank));
    for (int b = 0; b < travel.blocks; b++) {
        start(pass, GROUP_BROADCAST, b, pass->own_rows, NULL, at(&travel, b), &travel.requests[b]);
    }
    return travel;
}

// The block that is looked at as number `place`: own rows first, then the others in their order.
static int in_turn(const Travel *travel, int place) {
    int own = travel->blocks > 1 ? travel->pass->workspace->options.tensor.rank : 0;
    return place == 0 ? own : place <= own ? place - 1 : place;
}

bool travel_gathered(Travel *travel, Range *rows) {
    if (travel->next == travel->blocks) {
        // Own rows were read, not written; sending them is over before they may change.
        int own = in_turn(travel, 0);
        finish(travel->pass, &travel->requests[own]);
        return false;
    }
    int block = in_turn(travel, travel->next++);
    if (travel->next > 1 || travel->blocks == 1) {
        finish(travel->pass, &travel->requests[block]);
    }
    *rows = rows_of(travel, block);
    return true;
}

const void *travel_gathered_all(Travel *travel) {
    for (int b = 0; b < travel->blocks; b++) {
        finish(travel->pass, &travel->requests[b]);
    }
    return travel->rows;
}

const void *travel_gather_all(const Pass *pass, const void *own, void *whole) {
    Travel travel = travel_gather(pass, own, whole);
    return travel_gathered_all(&travel);
}

// ---- Sums

Travel travel_sum(const Pass *pass, void *partial) {
    return (Travel){.pass = pass, .rows = partial, .blocks = blocks_of(pass)};
}

// Lets go of a block that is computed.
static void let_go(Travel *travel, int block) {
    const Pass *pass = travel->pass;
    bool cut = cuts_rows(pass);
    if (!travel_is_cut(pass)) {
        return;
    }
    if (travel->blocks > 1) {
        start(pass, cut ? GROUP_REDUCE : GROUP_ALL_REDUCE, cut ? block : 0, pass->rows / travel->blocks, at(travel, block),
              at(travel, block), &travel->requests[block]);
        return;
    }
    start(pass, cut ? GROUP_REDUCE_SCATTER : GROUP_ALL_REDUCE, 0, pass->own_rows, travel->rows,
          travel->rows + pass->own_first * row_bytes(pass), &travel->requests[0]);
}

bool travel_to_sum(Travel *travel, Range *rows) {
    if (travel->next > 0) {
        let_go(travel, travel->next - 1);
    }
    if (travel->next == travel->blocks) {
        return false;
    }
    *rows = rows_of(travel, travel->next++);
    return true;
}

void *travel_summed(Travel *travel) {
    for (int b = 0; b < travel->blocks; b++) {
        finish(travel->pass, &travel->requests[b]);
    }
    return travel->rows + travel->pass->own_first * row_bytes(travel->pass);
}

void *travel_sum_all(const Pass *pass, void *partial) {
    Travel travel = travel_sum(pass, partial);
    for (Range rows; travel_to_sum(&travel, &rows);) {
    }
    return travel_summed(&travel);
}

void travel_reduce_losses(void *context, float *values, int64_t count, bool maximum) {
    const Pass *pass = context;
    TensorRanks *ranks = pass->model->tensor;
    if (ranks->failed == NULL) {
        ranks->failed = group_all_reduce(ranks->group, ELEMENT_FP32, maximum ? COMM_MAX : COMM_SUM, values, count);
    }
}
