// Matrix products in blocks, over threads: see gemm.h.
//
// A task is a rectangle of C. For each block of k it packs its columns of B, a few panels at a time, so that they stay in the
// second-level cache, and runs all its rows over them; A is read in place, or packed first where it is stored transposed. A
// task packs for itself: what is packed twice that way costs less than the threads waiting for each other.
#include "kernels/cpu/gemm.h"

#include "kernels/cpu/gemm_finish.h"
#include "kernels/cpu/gemm_pack.h"

enum {
    DEPTH_MOST = 768,             // of a block of k
    COLUMNS_AT_ONCE = 96,         // of B, packed: with DEPTH_MOST 288 KiB, so that they stay in the second-level cache
    DEPTH_MOST_PACKED = 384,      // the same where A is packed too
    COLUMNS_AT_ONCE_PACKED = 48,  // 72 KiB
    ROWS_AT_ONCE_PACKED = 384,    // of A: 576 KiB
    SMALL_B = 1 << 17,            // elements of B that every thread may pack for itself
    ROWS_A_TASK = 96,             // with so many rows packing it is a small part of the work
    ROWS_A_TASK_PACKED = 192,     // where A is packed too
    WORK_AT_LEAST = 1 << 21,      // multiply-adds that are worth a task of their own
};

static int64_t at_most(int64_t x, int64_t most) {
    return x < most ? x : most;
}

static int64_t at_least(int64_t x, int64_t least) {
    return x > least ? x : least;
}

typedef struct Plan {
    const Gemm *g;
    int64_t depth;            // of a block of k
    int64_t columns_at_once;  // of packed B
    int64_t row_parts, column_parts;
    int64_t row_grain, column_grain;
    size_t scratch_stride, a_offset;  // of a thread's scratch, and of packed A in it, in bytes
    char *scratch;
} Plan;

// Where sums over some blocks of k wait for the others: in the output, or in `pre`. Only where neither will do (an activation,
// and a residual that lies in the output) K must not be cut.
static float *partial_sums(const Gemm *g) {
    if (g->activation == ACTIVATION_NONE || g->slope_at != NULL || g->residual != g->c) {
        return g->pre != NULL && g->slope_at == NULL ? g->pre : g->c;
    }
    return g->pre;
}

// ---- One task

static void run_tile(const Gemm *g, const GemmPlace *p, GemmKernel kernel, int64_t depth, const float *a, const float *b,
                     int64_t width) {
    _Alignas(64) float tile[TILE_ROWS * TILE_WIDTH];
    bool linear = g->activation == ACTIVATION_NONE && g->pre == NULL;
    bool surrounded = g->bias != NULL || g->residual != NULL;
    // What is linear happens with the first block of k, an activation with the last, a slope with each.
    bool finishing = g->slope_at != NULL || (linear ? surrounded && p->first : p->last);
    float *sums = linear ? g->c : partial_sums(g);
    bool add = g->accumulate || !p->first;
    if (finishing) {
        kernel(depth, a, g->a_stride, b, tile, width, false);
        gemm_finish(g, p, tile, width, add && g->slope_at == NULL ? sums : NULL);
    } else {
        float *to = sums + p->row * g->c_stride + p->column;
        if (p->columns == width) {
            kernel(depth, a, g->a_stride, b, to, g->c_stride, add);
        } else {
            kernel(depth, a, g->a_stride, b, tile, width, false);
            gemm_copy_tile(p, tile, width, to, g->c_stride, add);
        }
    }
}

// Columns begin .. end cut into panels of nearly equal numbers of vectors.
static int64_t panel_count(int64_t columns) {
    return (columns + TILE_WIDTH - 1) / TILE_WIDTH;
}

static Range panel_range(int64_t columns, int64_t panel) {
    return range_part(columns, VEC_LANES, panel_count(columns), panel);
}

static void pack_b(const Gemm *g, int64_t k, int64_t depth, int64_t column, int64_t columns, float *out) {
    if (!g->b_transposed) {
        gemm_pack_rows(depth, g->b + k * g->b_stride + column, g->b_stride, columns, out);
        return;
    }
    int64_t width = (columns + VEC_LANES - 1) / VEC_LANES * VEC_LANES;
    for (int64_t n = 0; n < columns; n += VEC_LANES) {
        int64_t lanes = columns - n < VEC_LANES ? columns - n : VEC_LANES;
        gemm_pack_transposed(depth, g->b + (column + n) * g->b_stride + k, g->b_stride, lanes, out + n, width);
    }
}

// Rows of C over the packed panels of columns `columns`.
static void run_rows(const Plan *plan, Range rows, Range columns, int64_t k, int64_t depth, const float *a_panels,
                     const float *b_panels) {
    const Gemm *g = plan->g;
    int64_t panels = panel_count(columns.end - columns.begin);
    GemmPlace p = {.first = k == 0, .last = k + depth == g->k};
    for (p.row = rows.begin; p.row < rows.end; p.row += TILE_ROWS) {
        p.rows = rows.end - p.row < TILE_ROWS ? rows.end - p.row : TILE_ROWS;
        const float *a = a_panels != NULL ? a_panels + (p.row - rows.begin) * depth : g->a + p.row * g->a_stride + k;
        const float *b = b_panels;
        for (int64_t i = 0; i < panels; i++) {
            Range part = panel_range(columns.end - columns.begin, i);
            p.column = columns.begin + part.begin;
            p.columns = part.end - part.begin;
            int64_t vectors = (p.columns + VEC_LANES - 1) / VEC_LANES;
            run_tile(g, &p, gemm_kernels[a_panels != NULL][p.rows - 1][vectors - 1], depth, a, b, vectors * VEC_LANES);
            b += depth * vectors * VEC_LANES;
        }
    }
}

// a_sums[m] += sum over k of A[m,k] for rows of A stored transposed: four vectors of rows at a time, k in order.
static void sum_a(const Gemm *g, Range rows) {
    enum { STRANDS = 4 };
    int64_t m = rows.begin;
    for (; m + STRANDS * VEC_LANES <= rows.end; m += STRANDS * VEC_LANES) {
        Vec sum[STRANDS] = {{0}};
        for (int64_t k = 0; k < g->k; k++) {
#pragma GCC unroll 4
            for (int i = 0; i < STRANDS; i++) {
                sum[i] += vec_load(g->a + k * g->a_stride + m + i * VEC_LANES);
            }
        }
#pragma GCC unroll 4
        for (int i = 0; i < STRANDS; i++) {
            float *out = g->a_sums + m + i * VEC_LANES;
            vec_store(out, vec_load(out) + sum[i]);
        }
    }
    for (; m < rows.end; m += VEC_LANES) {
        int64_t lanes = rows.end - m < VEC_LANES ? rows.end - m : VEC_LANES;
        Vec sum = {0};
        for (int64_t k = 0; k < g->k; k++) {
            sum += vec_load_partial(g->a + k * g->a_stride + m, lanes);
        }
        vec_store_partial(g->a_sums + m, vec_load_partial(g->a_sums + m, lanes) + sum, lanes);
    }
}

static void sum_task(void *context, int64_t task, int thread) {
    const Plan *plan = context;
    sum_a(plan->g, range_part(plan->g->m, plan->row_grain, plan->row_parts, task));
}

static void run_task(void *context, int64_t task, int thread) {
    const Plan *plan = context;
    const Gemm *g = plan->g;
    Range rows = range_part(g->m, plan->row_grain, plan->row_parts, task / plan->column_parts);
    Range columns = range_part(g->n, plan->column_grain, plan->column_parts, task % plan->column_parts);
    if (g->a_sums != NULL && columns.begin == 0) {
        sum_a(g, rows);
    }
    float *b_panels = (float *)(plan->scratch + plan->scratch_stride * (size_t)thread);
    float *a_panels = g->a_transposed ? (float *)((char *)b_panels + plan->a_offset) : NULL;
    for (int64_t k = 0; k < g->k; k += plan->depth) {
        int64_t depth = g->k - k < plan->depth ? g->k - k : plan->depth;
        if (a_panels != NULL) {
            gemm_pack_a(depth, rows.end - rows.begin, g->a + k * g->a_stride + rows.begin, g->a_stride, a_panels);
        }
        for (int64_t n = columns.begin; n < columns.end; n += plan->columns_at_once) {
            Range block = {n, at_most(n + plan->columns_at_once, columns.end)};
            float *out = b_panels;
            for (int64_t i = 0; i < panel_count(block.end - block.begin); i++) {
                Range part = panel_range(block.end - block.begin, i);
                pack_b(g, k, depth, block.begin + part.begin, part.end - part.begin, out);
                out += depth * ((part.end - part.begin + VEC_LANES - 1) / VEC_LANES * VEC_LANES);
            }
            run_rows(plan, rows, block, k, depth, a_panels, b_panels);
        }
    }
}

// ---- The whole product

// How many tasks, and how they cut C: columns first, because each task packs its own columns of B; rows first where A is
// packed, and where B is small beside the rows: packing it again then costs less than reading rows of A that another thread
// has just written and has in its own caches.
static void plan_tasks(Plan *plan, int threads) {
    const Gemm *g = plan->g;
    int64_t tasks = 1;
    if (threads > 1) {
        double work = (double)g->m * (double)g->n * (double)g->k / WORK_AT_LEAST;
        int64_t a_thread = work >= 4.0 * threads ? 4 : at_least((int64_t)(work / threads), 1);
        tasks = a_thread * threads;
    }
    int64_t most_rows = (g->m + TILE_ROWS - 1) / TILE_ROWS, most_columns = (g->n + VEC_LANES - 1) / VEC_LANES;
    if (g->a_transposed) {
        int64_t wide = g->m / ROWS_A_TASK_PACKED, narrow = at_most(threads, g->m / (ROWS_A_TASK_PACKED / 4));
        int64_t least = (g->m + ROWS_AT_ONCE_PACKED - 1) / ROWS_AT_ONCE_PACKED;
        plan->row_parts = at_least(at_most(at_least(wide, narrow), tasks), least);
        if (plan->row_parts > threads) {
            plan->row_parts = (plan->row_parts + threads - 1) / threads * threads;  // so that no thread waits for the last
        }
        plan->column_parts = at_most((at_most(tasks, threads) + plan->row_parts - 1) / plan->row_parts, most_columns);
    } else if (g->k * g->n <= SMALL_B && g->m >= ROWS_A_TASK * threads) {
        // Two tasks a thread, so that one that is late is helped.
        plan->row_parts = at_most(at_most(tasks, 2 * threads), at_least(g->m / ROWS_A_TASK, 1));
        plan->column_parts = 1;
    } else {
        plan->column_parts = at_most(tasks, most_columns);
        plan->row_parts = at_most((tasks + plan->column_parts - 1) / plan->column_parts, most_rows);
    }
    plan->row_grain = TILE_ROWS;
    plan->column_grain = g->n >= 4 * plan->column_parts * TILE_WIDTH ? TILE_WIDTH : VEC_LANES;
}

void CPU_NAME(gemm)(Device *device, const Gemm *g) {
    if (g->m == 0 || g->n == 0 || g->k == 0) {
        ensure(g->m == 0 || g->n == 0 || g->accumulate, "a product over no elements");
        return;
    }
    if (g->m <= GEMM_FEW_ROWS && g->b_transposed && !g->a_transposed) {
        CPU_NAME(gemm_few)(device, g);
        return;
    }
    Plan plan = {.g = g};
    if (g->c == NULL) {
        plan.row_grain = 4 * VEC_LANES;
        plan.row_parts =
            g->a_sums != NULL ? at_most(threads_count(device->pool), (g->m + plan.row_grain - 1) / plan.row_grain) : 0;
        threads_run(device->pool, plan.row_parts, sum_task, &plan);
        return;
    }
    int64_t depth_most = partial_sums(g) == NULL ? g->k : g->a_transposed ? DEPTH_MOST_PACKED : DEPTH_MOST;
    int64_t depth_blocks = (g->k + depth_most - 1) / depth_most;
    plan.depth = (g->k + depth_blocks - 1) / depth_blocks;
    plan.columns_at_once = g->a_transposed ? COLUMNS_AT_ONCE_PACKED : COLUMNS_AT_ONCE;
    plan_tasks(&plan, threads_count(device->pool));
    int64_t rows = plan.row_parts == 1 ? g->m : (g->m + plan.row_parts - 1) / plan.row_parts + TILE_ROWS;
    plan.a_offset = (size_t)(plan.depth * plan.columns_at_once) * sizeof(float);
    plan.a_offset = (plan.a_offset + 63) / 64 * 64;
    size_t bytes = plan.a_offset;
    if (g->a_transposed) {
        bytes += (size_t)((rows + TILE_ROWS) * plan.depth) * sizeof(float);
    }
    plan.scratch = device_scratch(device, bytes);
    plan.scratch_stride = (bytes + 4095) / 4096 * 4096;
    threads_run(device->pool, plan.row_parts * plan.column_parts, run_task, &plan);
}
