/* Attention of some queries over some runs of pairs that lie together. See runs.py, which compiles and calls this.
 *
 * Plain C for any compiler: the loops are written so that it can vectorise them. The softmax is kept as a running
 * maximum and sum, block of pairs by block, in float32.
 */

#include <math.h>
#include <stdint.h>
#include <string.h>

#define BLOCK 32
#define WIDEST 512
#define LANES 16

typedef float lanes __attribute__((vector_size(4 * LANES), aligned(4)));
typedef int32_t whole_lanes __attribute__((vector_size(4 * LANES), aligned(4)));

enum { FLOAT32, BFLOAT16, INT8 };

typedef struct {
    const void *data;     /* first component of the first pair */
    int64_t stride;       /* components from one pair to the next */
    const float *scale;   /* of every pair, for int8 */
    int64_t scale_stride; /* scales from one pair to the next */
} vectors;

/* Who visits: visit v is of query order[v] / each, and its answer goes to row order[v]; without an order to row v. */
typedef struct {
    const int64_t *order;
    int64_t each;
} visits;

static inline int64_t place_of(const visits *visits, int64_t visit) { return visits->order ? visits->order[visit] : visit; }

static inline int64_t query_of(const visits *visits, int64_t visit) { return place_of(visits, visit) / visits->each; }

/* exp(x) for x <= 0, to 2e-7 of its value, and 0 for x < -60: beside 1 that is nothing, and what is multiplied by less
 * could become denormal, which is slow. A vector cast keeps the bits. */
static inline lanes exponential(lanes x) {
    whole_lanes is_tiny = x < -60.0f;
    x = (lanes)((whole_lanes)x & ~is_tiny);
    whole_lanes whole = __builtin_convertvector(x * 1.44269504f - 0.5f, whole_lanes);
    lanes nearest = __builtin_convertvector(whole, lanes);
    lanes rest = x - nearest * 0.693359375f + nearest * 2.12194440e-4f;
    lanes value = rest * 1.9875691500e-4f + 1.3981999507e-3f;
    value = value * rest + 8.3334519073e-3f;
    value = value * rest + 4.1665795894e-2f;
    value = value * rest + 1.6666665459e-1f;
    value = value * rest + 5.0000001201e-1f;
    value = value * rest * rest + rest + 1.0f;
    value *= (lanes)((whole + 127) << 23);
    return (lanes)((whole_lanes)value & ~is_tiny);
}

/* some vectors as float32 */
static void widen(const vectors *from, int kind, int64_t first, int64_t count, int64_t dim, float *restrict into) {
    for (int64_t p = 0; p < count; p++, into += dim) {
        if (kind == FLOAT32) {
            const float *given = (const float *)from->data + (first + p) * from->stride;
            memcpy(into, given, dim * sizeof(float));
        } else if (kind == BFLOAT16) {
            const uint16_t *given = (const uint16_t *)from->data + (first + p) * from->stride;
            uint32_t *bits = (uint32_t *)into;
#pragma omp simd
            for (int64_t i = 0; i < dim; i++) bits[i] = (uint32_t)given[i] << 16;
        } else {
            const int8_t *given = (const int8_t *)from->data + (first + p) * from->stride;
            float scale = from->scale[(first + p) * from->scale_stride];
#pragma omp simd
            for (int64_t i = 0; i < dim; i++) into[i] = (float)given[i] * scale;
        }
    }
}

/* query . key of some keys, four at a time */
static void score(const float *restrict query, const float *restrict key, int64_t pairs, int64_t dim,
                  float *restrict scores) {
    int64_t p = 0;
    for (; p + 4 <= pairs; p += 4) {
        const float *restrict k = key + p * dim;
        float a = 0, b = 0, c = 0, d = 0;
#pragma omp simd reduction(+ : a, b, c, d)
        for (int64_t i = 0; i < dim; i++) {
            a += query[i] * k[i];
            b += query[i] * k[dim + i];
            c += query[i] * k[2 * dim + i];
            d += query[i] * k[3 * dim + i];
        }
        scores[p] = a, scores[p + 1] = b, scores[p + 2] = c, scores[p + 3] = d;
    }
    for (; p < pairs; p++) {
        float a = 0;
#pragma omp simd reduction(+ : a)
        for (int64_t i = 0; i < dim; i++) a += query[i] * key[p * dim + i];
        scores[p] = a;
    }
}

/* output = shrink * output + sum of weights * values, a strip of components at a time, which stays in registers */
static void mix(const float *restrict weights, const float *restrict value, int64_t pairs, int64_t dim, float shrink,
                float *restrict output) {
    int64_t first = 0;
    for (; first + 4 * LANES <= dim; first += 4 * LANES) {
        lanes *into = (lanes *)(output + first);
        lanes a = into[0] * shrink, b = into[1] * shrink, c = into[2] * shrink, d = into[3] * shrink;
        for (int64_t p = 0; p < pairs; p++) {
            const lanes *from = (const lanes *)(value + p * dim + first);
            a += weights[p] * from[0], b += weights[p] * from[1];
            c += weights[p] * from[2], d += weights[p] * from[3];
        }
        into[0] = a, into[1] = b, into[2] = c, into[3] = d;
    }
    for (; first < dim; first++) {
        float sum = shrink * output[first];
        for (int64_t p = 0; p < pairs; p++) sum += weights[p] * value[p * dim + first];
        output[first] = sum;
    }
}

/* Output, largest score and sum of exp(score - largest) of one query, after one more block of pairs. */
static void add_block(const float *restrict query, const float *restrict key, const float *restrict value,
                      int64_t pairs, int64_t dim, float softcap, float *restrict output, float *largest,
                      float *total) {
    lanes strips[BLOCK / LANES];
    float *scores = (float *)strips;
    score(query, key, pairs, dim, scores);
    if (softcap > 0)
        for (int64_t p = 0; p < pairs; p++) scores[p] = softcap * tanhf(scores[p] / softcap);
    for (int64_t p = pairs; p < BLOCK; p++) scores[p] = -3e38f;
    float peak = *largest, sum = 0;
#pragma omp simd reduction(max : peak)
    for (int64_t p = 0; p < BLOCK; p++) peak = scores[p] > peak ? scores[p] : peak;
    float shrink = exponential((lanes){*largest - peak})[0];
    for (int64_t strip = 0; strip < BLOCK / LANES; strip++) strips[strip] = exponential(strips[strip] - peak);
#pragma omp simd reduction(+ : sum)
    for (int64_t p = 0; p < pairs; p++) sum += scores[p];
    *largest = peak;
    *total = *total * shrink + sum;
    mix(scores, value, pairs, dim, shrink, output);
}

/* Visits [first, last) to one run, over pairs [start, stop). */
static void attend_run(const float *query, const visits *visits, int64_t first, int64_t last, const vectors *key,
                       const vectors *value, int kind, int64_t start, int64_t stop, int64_t dim, float softcap,
                       float *output, float *lse, float *total) {
    float keys[BLOCK * WIDEST] __attribute__((aligned(64)));
    float values[BLOCK * WIDEST] __attribute__((aligned(64)));
    for (int64_t v = first; v < last; v++) {
        int64_t place = place_of(visits, v);
        lse[place] = -3e38f;
        total[place] = 0;
        memset(output + place * dim, 0, dim * sizeof(float));
    }
    for (int64_t pair = start; pair < stop; pair += BLOCK) {
        int64_t pairs = stop - pair < BLOCK ? stop - pair : BLOCK;
        widen(key, kind, pair, pairs, dim, keys);
        widen(value, kind, pair, pairs, dim, values);
        for (int64_t v = first; v < last; v++) {
            int64_t place = place_of(visits, v);
            add_block(query + query_of(visits, v) * dim, keys, values, pairs, dim, softcap, output + place * dim,
                      lse + place, total + place);
        }
    }
    for (int64_t v = first; v < last; v++) {
        int64_t place = place_of(visits, v);
        if (total[place] == 0) {
            lse[place] = -INFINITY;
            continue;
        }
        for (int64_t i = 0; i < dim; i++) output[place * dim + i] /= total[place];
        lse[place] += logf(total[place]);
    }
}

#if defined(__AMX_BF16__) && defined(__AVX512BF16__) && defined(__AVX512BW__)
#include "tiles.h"
#endif

/* Whether vectors of this length are multiplied in matrix tiles here, in bfloat16. */
int has_tiles(int dim) {
#if defined(__AMX_BF16__) && defined(__AVX512BF16__) && defined(__AVX512BW__)
    return fits_tiles(dim) && may_use_tiles();
#else
    (void)dim;
    return 0;
#endif
}

/* query [queries, dim], already scaled, dim at most WIDEST; run r holds pairs [starts[r], stops[r]) and gets the visits
 * [firsts[r], lasts[r]). output [visits, dim], lse [visits], and total [visits] as room to work. If given, `narrow` are
 * the queries in bfloat16, to be scaled by `scale`: then pairs in bfloat16 or int8 may be multiplied in it. */
void attend_runs(const float *query, const uint16_t *narrow, float scale, visits visits, vectors key, vectors value,
                 int kind, int64_t runs, const int64_t *starts, const int64_t *stops, const int64_t *firsts,
                 const int64_t *lasts, int64_t dim, float softcap, float *output, float *lse, float *total,
                 int threads) {
#if defined(__AMX_BF16__) && defined(__AVX512BF16__) && defined(__AVX512BW__)
    if (narrow && kind != FLOAT32 && has_tiles((int)dim)) {
#pragma omp parallel num_threads(threads) if (threads > 1)
        {
            shape_tiles();
#pragma omp for schedule(dynamic)
            for (int64_t r = 0; r < runs; r++)
                attend_run_in_tiles(narrow, &visits, firsts[r], lasts[r], &key, &value, kind, starts[r], stops[r], dim,
                                    scale, softcap, output, lse);
            _tile_release();
        }
        return;
    }
#endif
#pragma omp parallel for schedule(dynamic) num_threads(threads) if (threads > 1)
    for (int64_t r = 0; r < runs; r++)
        attend_run(query, &visits, firsts[r], lasts[r], &key, &value, kind, starts[r], stops[r], dim, softcap, output,
                   lse, total);
}
