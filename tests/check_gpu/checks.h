// What the checks of check_gpu share: numbers that host and card both know, comparisons, and what a check found.
//
// A check computes on the card with our kernels twice and with another body once, and looks at
//   - samples of the results, which the host computes exactly (float64) from the same inputs,
//   - all of the results, twice the same bits,
//   - all of the results against the other body's.
// The bound follows from arithmetic, as in tests/support/op_check.h: twice what the plain formula in the same type errs on the
// samples, plus a unit in the last place of their largest value. Two bodies may differ by twice that.
#pragma once

#include "kernels/device.h"

#include <math.h>

enum { FINDING_TEXT = 600 };

// What a check found: right until something is wrong.
typedef struct Finding {
    bool wrong;
    size_t length;
    char text[FINDING_TEXT];
} Finding;

// Adds to the text; `wrong` once is wrong for good.
void finding_add(Finding *finding, bool wrong, const char *format, ...) __attribute__((format(printf, 3, 4)));

typedef Error *(*CheckRun)(const void *what, Finding *finding);
// Lists a check; `what` lives on.
void check_add(CheckRun run, const void *what, const char *format, ...) __attribute__((format(printf, 3, 4)));

// The lists, each in the file of its name.
void list_products(void);
void list_classifiers(void);
void list_attentions(void);

// ---- The card

// A rehearsal on the simulated card; planting: a mistake is put into what ours gave (plant).
extern bool rehearsal, planting;
// A size, in a rehearsal the divisor-th part of it.
int64_t part(int64_t size, int64_t divisor);
// Opens the card for tensors of a type and with a choice of bodies ("ours", "sm80", "cublas").
Error *card_open(DataType type, const char *products, Device **out) MUST_CHECK;
// Hopper's bodies are expected: the card is an sm_90.
bool card_is_hopper(void);
// What a sum of `length` products of a tensor core may lose beside its rounding at the end: tensor cores cut off what is below
// the 24 bits of a partial sum (Ootomo & Yokota 2022, section 3) at every step of 16. 0 on the simulated card, which rounds.
double card_cut(int64_t length, double largest_partial);

// ---- Numbers

// A tensor of the card. Element i is numbers[i % period], normal random numbers of deviation 2^exponent in its type.
typedef struct Tensor {
    Device *device;
    DataType type;
    int64_t count;
    const float *numbers;  // NULL: zeros, for a result
    void *at;
} Tensor;

// which: different ones of one check are independent.
Error *tensor_random(Device *device, DataType type, int64_t count, int which, int exponent, Tensor *out) MUST_CHECK;
Error *tensor_zeros(Device *device, DataType type, int64_t count, Tensor *out) MUST_CHECK;
void tensor_free(Tensor *t);
// Elements first, first + stride ... as the tensor was made.
void tensor_start(const Tensor *t, int64_t first, int64_t stride, int64_t count, float *to);
// Elements first ... as they are now on the card.
void tensor_now(const Tensor *t, int64_t first, int64_t count, float *to);
int64_t tensor_bytes(const Tensor *t);

// Of a sample that picks `count` of `limit`: its first, its last, both sides of a tile's edge, the rest anywhere; all where
// there are not more.
void sample_places(uint64_t stream, int64_t limit, int count, int64_t *places);

// ---- Comparing

// What results may err, learnt from samples. Rows (of `width` elements, or all of a tensor as one: width 0) may have values of
// very different size, and each is held against its own largest; but none below 2^-10 of the largest of all.
typedef struct Bound {
    DataType type;
    double largest;   // value of all samples
    double relative;  // error that was allowed beside `cut`, by the largest value of its row; at most
    double cut;       // at most
    double worst;     // error over what was allowed; at most
    int64_t samples;
} Bound;

// Looks at the samples of one row: exact, by the plain formula (rounded to the type), and what the card gave. `largest`: of all
// rows. cut: what the row may err beside, whatever its size (card_cut).
void bound_row(Bound *bound, double largest, double cut, int64_t count, const double *exact, const float *plain,
               const float *given);
// Tells what the samples showed.
void finding_samples(Finding *finding, const char *what, const Bound *bound);
// The same bytes in both.
void finding_same_bits(Finding *finding, const char *what, const Tensor *a, const Tensor *b);
// Every element of `a` against that of `b`, in rows of `width` elements (0: all in one).
void finding_other_body(Finding *finding, const char *what, const char *body, const Tensor *a, const Tensor *b,
                        const Bound *bound, int64_t width);
// Where planting: 16 bytes of the tensor, anywhere, become those that lie 16 bytes before, as a wrong address would have it.
void plant(const Tensor *t);
