// Values of any element type as floats of the host, and back: see values.h.
#include "kernels/values.h"

#include "core/error.h"
#include "core/half.h"
#include "kernels/quantize.h"

#include <pthread.h>

static CodeTable tables[2];  // unsigned, signed
static pthread_once_t tables_once = PTHREAD_ONCE_INIT;

static void fill_tables(void) {
    code_table_fill(TYPE_CODE8_UNSIGNED, &tables[0]);
    code_table_fill(TYPE_CODE8, &tables[1]);
}

static const CodeTable *table_of(DataType type) {
    ensure(data_type_has_scales(type), "element type %d", (int)type);
    pthread_once(&tables_once, fill_tables);
    return &tables[type == TYPE_CODE8];
}

void values_widen(DataType type, const void *from, const float *scales, int64_t at, int64_t count, float *to) {
    const uint16_t *bits = from;
    if (type == TYPE_FP32) {
        memcpy(to, from, (size_t)count * sizeof *to);
    } else if (type == TYPE_BF16) {
        for (int64_t i = 0; i < count; i++) {
            to[i] = bf16_to_float(bits[i]);
        }
    } else if (type == TYPE_FP16) {
        for (int64_t i = 0; i < count; i++) {
            to[i] = fp16_to_float(bits[i]);
        }
    } else {
        const CodeTable *table = table_of(type);
        for (int64_t done = 0, part; done < count; done += part) {
            int64_t behind = (at + done) % DATA_TYPE_BLOCK, left = DATA_TYPE_BLOCK - behind;
            part = count - done < left ? count - done : left;
            block_decode(table, (const uint8_t *)from + done, scales[(at % DATA_TYPE_BLOCK + done) / DATA_TYPE_BLOCK], part,
                         to + done);
        }
    }
}

void values_narrow(DataType type, const float *from, int64_t count, void *to, float *scales) {
    uint16_t *bits = to;
    if (type == TYPE_FP32) {
        memcpy(to, from, (size_t)count * sizeof *from);
    } else if (type == TYPE_BF16) {
        for (int64_t i = 0; i < count; i++) {
            bits[i] = bf16_from_float(from[i]);
        }
    } else if (type == TYPE_FP16) {
        for (int64_t i = 0; i < count; i++) {
            bits[i] = fp16_from_float(from[i]);
        }
    } else {
        const CodeTable *table = table_of(type);
        for (int64_t done = 0; done < count; done += DATA_TYPE_BLOCK) {
            int64_t part = count - done < DATA_TYPE_BLOCK ? count - done : DATA_TYPE_BLOCK;
            block_encode(table, from + done, part, (uint8_t *)to + done, &scales[done / DATA_TYPE_BLOCK]);
        }
    }
}
