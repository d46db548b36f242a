// Attention of one query per sequence over a cache of keys and values, a body of attention_forward: a running softmax over
// chunks of keys.
//
// A task is a (sequence, group); all heads of the group use a chunk of the cache while it is near. The cache is read once, so
// memory bandwidth is the limit.
#include "kernels/cpu/attention.h"
#include "kernels/cpu/cpu.h"

// Products of VEC_LANES keys (`count` of them exist) with one query.
VEC_INLINE Vec key_products(const float *query, const float *keys, int64_t stride, int64_t width, int64_t count) {
    Vec sums[VEC_LANES];
    for (int k = 0; k < VEC_LANES; k++) {
        const float *key = keys + (k < count ? k : 0) * stride;
        Vec sum = vec_set(0);
        int64_t c = 0;
        for (; c + VEC_LANES <= width; c += VEC_LANES) {
            sum += vec_load(query + c) * vec_load(key + c);
        }
        if (c < width) {
            sum += vec_load_partial(query + c, width - c) * vec_load_partial(key + c, width - c);
        }
        sums[k] = sum;
    }
    return vec_sums(sums);
}

// out[d] = shrink * out[d] + sum over keys of weights[k] values[k][d].
static void add_values(const float *weights, int64_t keys, const float *values, int64_t stride, int64_t width, float shrink,
                       float *out) {
    for (int64_t c = 0; c < width; c += VEC_LANES) {
        int64_t left = least_of(VEC_LANES, width - c);
        Vec sum = vec_load_partial(out + c, left) * shrink, sum_odd = vec_set(0);
        int64_t k = 0;
        for (; k + 1 < keys && left == VEC_LANES; k += 2) {
            sum += vec_load(values + k * stride + c) * weights[k];
            sum_odd += vec_load(values + (k + 1) * stride + c) * weights[k + 1];
        }
        for (; k < keys; k++) {
            sum += vec_load_partial(values + k * stride + c, left) * weights[k];
        }
        vec_store_partial(out + c, sum + sum_odd, left);
    }
}

// The next BLOCK keys (or fewer) for one head, the first of them `distance` tokens behind the query. most and sum run along, in
// units of log2.
static void decode_chunk(const float *query, const float *keys, int64_t stride, const float *values, int64_t value_stride,
                         int64_t width, int64_t count, int64_t distance, const ScoreRule *rule, float *most, float *sum,
                         float *out) {
    float scores[BLOCK], unit = (float)(rule->on ? log2_e : (double)rule->scale * log2_e);
    Vec greatest = vec_set(*most);
    for (int64_t k = 0; k < count; k += VEC_LANES) {
        Vec score = key_products(query, keys + k * stride, stride, width, count - k);
        Vec hidden = vec_set(-INFINITY), key = {0}, steep;
        for (int i = 0; i < VEC_LANES; i++) {
            key[i] = (float)i;
        }
        if (rule->on) {
            score = rule_apply(*rule, score, key + (float)(k - distance), &steep);
        }
        score *= unit;
        score = vec_where_less(key, vec_set((float)(count - k)), score, hidden);
        greatest = vec_max(score, greatest);
        vec_store(scores + k, score);
    }
    float now = vec_max_lane(greatest), shrink = exp2f(*most - now);
    Vec total = vec_set(0);
    for (int64_t k = 0; k < count; k += VEC_LANES) {
        Vec probability = vec_exp2(vec_load(scores + k) - now);
        total += probability;
        vec_store(scores + k, probability);
    }
    *most = now;
    *sum = *sum * shrink + vec_sum(total);
    add_values(scores, count, values, value_stride, width, shrink, out);
}

static void decode_task(void *context, int64_t task, int thread) {
    (void)thread;
    const AttentionForward *a = context;
    const AttentionShape *s = &a->shape;
    HeadStrides key = a->in.k_stride, value = a->in.v_stride;
    int64_t g = task % s->groups, b = task / s->groups, share = s->heads / s->groups, width = s->head_width;
    const float *keys = (const float *)a->in.k + b * key.sequence + g * width;
    const float *values = (const float *)a->in.v + b * value.sequence + g * width;
    int64_t length = sequence_keys(s, b), begin = first_key(s, b, 0);
    for (int64_t h = g * share; h < (g + 1) * share; h++) {
        const float *query = (const float *)a->in.q + b * a->in.q_stride.sequence + h * width;
        float *out = (float *)a->out + (b * s->heads + h) * width;
        float most = -1e30f, sum = 0;
        memset(out, 0, (size_t)width * sizeof *out);
        ScoreRule rule = score_rule(s->scale, s->softcap, s->slopes, h);
        for (int64_t k = begin; k < length; k += BLOCK) {
            decode_chunk(query, keys + k * key.token, key.token, values + k * value.token, value.token, width,
                         least_of(BLOCK, length - k), length - 1 - k, &rule, &most, &sum, out);
        }
        for (int64_t d = 0; d < width && sum > 0; d++) {
            out[d] /= sum;
        }
        if (a->lse != NULL) {
            a->lse[b * s->heads + h] = sum > 0 ? most * ln_2 + logf(sum) : -INFINITY;
        }
    }
}

void CPU_NAME(cpu_attention_decode)(Device *device, const AttentionForward *a) {
    threads_run(device->pool, a->shape.batch * a->shape.groups, decode_task, (void *)(uintptr_t)a);
}
