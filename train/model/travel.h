// What tensor-parallel ranks exchange on the way through a layer (tensor.h), beside the products that it feeds or comes from.
// Private to train/model.
//
// On a card, communication has a stream of its own, so a gather goes in blocks of rows, one of each rank, and a sum likewise:
//
//     gather, product    block of own rows | block 0 | block 1 | ...      products, own rows first: they are here
//                        send 0 | send 1 | ...                            broadcasts, each waited for by its product alone
//     product, sum       product 0 | product 1 | product 2 | ...
//                                    sum of 0  | sum of 1  | ...          to the rank whose rows they are, or to all
//
// and what comes next waits for the last of them alone. Of the host, whose messages advance only while it is inside of the
// library, there is one block. Both give every row the same sum of the same parts.
#pragma once

#include "train/model/pass.h"

// Whether this is one of several tensor-parallel ranks.
bool travel_is_cut(const Pass *pass);

enum { TRAVEL_MOST_BLOCKS = 64 };

// A value; it is at its end before its memory, or the next one of its kind.
typedef struct Travel {
    const Pass *pass;
    char *rows;  // [R,C]
    int blocks, next;
    GroupRequest *requests[TRAVEL_MOST_BLOCKS];
} Travel;

// The stream's rows [own_rows,C] of all ranks: they come to `whole` [R,C], or where they are not cut they are `own` itself. The
// rows are travel.rows. `next` tells block after block which of them have come, false after the last; `wait` is for all at
// once.
Travel travel_gather(const Pass *pass, const void *own, void *whole);
bool travel_gathered(Travel *travel, Range *rows);
const void *travel_gathered_all(Travel *travel);
// At once.
const void *travel_gather_all(const Pass *pass, const void *own, void *whole);

// Sums [R,C] of which every rank computes a part: `next` tells block after block which rows to compute next into `partial`, and
// lets go of those of the block before, false after the last; they are under way until `wait`, which returns the sums of own
// rows, which lie within `partial`. Where the ranks' parts are no parts, they are the sums.
Travel travel_sum(const Pass *pass, void *partial);
bool travel_to_sum(Travel *travel, Range *rows);
void *travel_summed(Travel *travel);
// At once.
void *travel_sum_all(const Pass *pass, void *partial);

// ClassifierShare.all_reduce; the context is the pass.
void travel_reduce_losses(void *context, float *values, int64_t count, bool maximum);
