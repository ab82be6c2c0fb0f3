/* attend_run for bfloat16 on processors with AMX: sixteen queries at a time, whose products are made by matrix tiles.
 *
 *     scores^T [keys, queries] = K Q^T        K as it lies in memory, Q^T packed once per run
 *     softmax down the columns: a query is one lane
 *     output [queries, dim] += P V            P and V in bfloat16, sums in float32
 */

#include <immintrin.h>
#include <sys/syscall.h>
#include <unistd.h>

#define QUERIES 16
#define KEYS 128
#define DEPTH 32 /* components of a bfloat16 tile */

typedef struct {
    uint8_t palette, start_row, reserved[14];
    uint16_t bytes[16];
    uint8_t rows[16];
} tile_shapes;

/* numbers of tiles: the compiler spells them out */
#define SCORES 0
#define SUMS 1
#define LEFT 2
#define RIGHT 3

/* The kernel lends tiles to who asks. */
static int may_use_tiles(void) {
    static int known = -1;
    if (known < 0) known = syscall(SYS_arch_prctl, 0x1023, 18) == 0;
    return known;
}

static int fits_tiles(int64_t dim) { return dim % DEPTH == 0 && dim <= WIDEST / 2; }

static void shape_tiles(void) {
    tile_shapes shapes = {.palette = 1};
    for (int tile = 0; tile < 4; tile++) shapes.bytes[tile] = 64, shapes.rows[tile] = 16;
    _tile_loadconfig(&shapes);
}

/* sixteen rows of sixteen dwords: columns become rows */
static void transpose(const uint32_t *restrict from, int64_t stride, uint32_t *restrict into) {
    const __m512i step = _mm512_mullo_epi32(_mm512_set_epi32(15, 14, 13, 12, 11, 10, 9, 8, 7, 6, 5, 4, 3, 2, 1, 0),
                                            _mm512_set1_epi32((int)stride));
    for (int64_t column = 0; column < 16; column++)
        _mm512_storeu_si512(into + 16 * column, _mm512_i32gather_epi32(step, from + column, 4));
}

/* two rows of bfloat16 as pairs of one component each, 32 components as two tiles: see `component` */
static void interleave(const uint16_t *one, const uint16_t *other, int64_t dim, uint16_t *into, int64_t stride) {
    for (int64_t i = 0; i < dim; i += 32, into += 2 * stride) {
        __m512i low = _mm512_loadu_si512(one + i), high = _mm512_loadu_si512(other + i);
        _mm512_storeu_si512(into, _mm512_unpacklo_epi16(low, high));
        _mm512_storeu_si512(into + stride, _mm512_unpackhi_epi16(low, high));
    }
}

/* which component stands at a place of the tiles that `interleave` makes: it works in lanes of eight */
static int64_t component(int64_t place) {
    int64_t tile = place / 16 % 2, within = place % 16;
    return place / 32 * 32 + within / 4 * 8 + tile * 4 + within % 4;
}

/* two vectors of float32 as pairs of bfloat16, rounded to the nearest */
static inline __m512i narrow(lanes one, lanes other) {
    const __m512i order = _mm512_set_epi16(31, 15, 30, 14, 29, 13, 28, 12, 27, 11, 26, 10, 25, 9, 24, 8, 23, 7, 22, 6, 21, 5,
                                           20, 4, 19, 3, 18, 2, 17, 1, 16, 0);
    return _mm512_permutexvar_epi16(order, (__m512i)_mm512_cvtne2ps_pbh((__m512)other, (__m512)one));
}

typedef struct {
    uint16_t query[WIDEST / 2 * QUERIES] __attribute__((aligned(64)));   /* dim / 2 rows of (query, 2) */
    uint16_t padded[KEYS * WIDEST / 2] __attribute__((aligned(64)));     /* the last keys of a run */
    float scores[KEYS * QUERIES] __attribute__((aligned(64)));           /* keys by queries */
    uint32_t pairs[QUERIES * KEYS / 2] __attribute__((aligned(64)));     /* weights of two keys each */
    uint32_t weights[QUERIES * KEYS / 2] __attribute__((aligned(64)));   /* per DEPTH keys: queries by keys */
    uint16_t values[KEYS * WIDEST / 2] __attribute__((aligned(64)));     /* per 16 components: key pairs by (component, 2) */
    float sums[QUERIES * QUERIES] __attribute__((aligned(64)));
    float output[QUERIES * WIDEST / 2] __attribute__((aligned(64)));
} tile_room;

/* scores of KEYS keys, of which `count` exist */
static void tile_scores(tile_room *room, const uint16_t *key, int64_t stride, int64_t count, int64_t dim, float scale,
                        float softcap) {
    if (count < KEYS) {
        memset(room->padded, 0, sizeof(uint16_t) * KEYS * dim);
        for (int64_t k = 0; k < count; k++) memcpy(room->padded + k * dim, key + k * stride, sizeof(uint16_t) * dim);
        key = room->padded, stride = dim;
    }
    for (int64_t k = 0; k < KEYS; k += 16) {
        if (k < count) {
            _tile_zero(SCORES);
            for (int64_t i = 0; i < dim; i += DEPTH) {
                _tile_loadd(LEFT, key + k * stride + i, (int)(2 * stride));
                _tile_loadd(RIGHT, room->query + i * QUERIES, 64);
                _tile_dpbf16ps(SCORES, LEFT, RIGHT);
            }
            _tile_stored(SCORES, room->scores + k * QUERIES, 64);
        }
    }
    float *scores = room->scores;
    if (softcap > 0)
        for (int64_t i = 0; i < count * QUERIES; i++) scores[i] = softcap * tanhf(scores[i] * scale / softcap);
    else
        for (int64_t i = 0; i < count * QUERIES; i++) scores[i] *= scale;
    for (int64_t i = count * QUERIES; i < KEYS * QUERIES; i++) scores[i] = -3e38f;
}

/* weights of the keys, in bfloat16, and what the output shrinks by */
static lanes tile_softmax(tile_room *room, lanes *largest, lanes *total) {
    lanes *rows = (lanes *)room->scores;
    __m512 peak = (__m512)*largest;
    for (int64_t k = 0; k < KEYS; k++) peak = _mm512_max_ps(peak, (__m512)rows[k]);
    lanes shrink = exponential(*largest - (lanes)peak), sum = {0};
    for (int64_t k = 0; k < KEYS; k += 2) {
        lanes one = exponential(rows[k] - (lanes)peak), other = exponential(rows[k + 1] - (lanes)peak);
        sum += one + other;
        _mm512_storeu_si512(room->pairs + k / 2 * QUERIES, narrow(one, other));
    }
    for (int64_t k = 0; k < KEYS; k += DEPTH)
        transpose(room->pairs + k / 2 * QUERIES, QUERIES, room->weights + k / 2 * QUERIES);
    *largest = (lanes)peak;
    *total = *total * shrink + sum;
    return shrink;
}

static void tile_mix(tile_room *room, const uint16_t *value, int64_t stride, int64_t count, int64_t dim, lanes shrink) {
    static const uint16_t nothing[WIDEST / 2];
    for (int64_t k = 0; k < KEYS; k += 2)
        interleave(k < count ? value + k * stride : nothing, k + 1 < count ? value + (k + 1) * stride : nothing, dim,
                   room->values + k * QUERIES, KEYS * QUERIES);
    for (int64_t i = 0; i < dim; i += 16) {
        _tile_zero(SUMS);
        for (int64_t k = 0; k < count; k += DEPTH) {
            _tile_loadd(LEFT, room->weights + k / 2 * QUERIES, 64);
            _tile_loadd(RIGHT, room->values + (i / 16 * KEYS + k) * QUERIES, 64);
            _tile_dpbf16ps(SUMS, LEFT, RIGHT);
        }
        _tile_stored(SUMS, room->sums, 64);
        const lanes *more = (const lanes *)room->sums;
        for (int64_t q = 0; q < QUERIES; q++) {
            lanes *into = (lanes *)(room->output + q * dim + i);
            *into = *into * shrink[q] + more[q];
        }
    }
}

static void attend_run_in_tiles(const uint16_t *query, int64_t first, int64_t last, const vectors *key,
                                const vectors *value, int64_t start, int64_t stop, int64_t dim, float scale,
                                float softcap, float *output, float *lse) {
    static __thread tile_room room;
    uint32_t given[QUERIES * WIDEST / 4];
    for (; first < last; first += QUERIES) {
        int64_t count = last - first < QUERIES ? last - first : QUERIES;
        memset(given, 0, sizeof(uint16_t) * QUERIES * dim);
        memcpy(given, query + first * dim, sizeof(uint16_t) * count * dim);
        for (int64_t i = 0; i < dim; i += DEPTH)
            transpose(given + i / 2, dim / 2, (uint32_t *)room.query + i / 2 * QUERIES);
        memset(room.output, 0, sizeof(float) * QUERIES * dim);
        lanes largest = (lanes){0} - 3e38f, total = {0};
        for (int64_t pair = start; pair < stop; pair += KEYS) {
            int64_t pairs = stop - pair < KEYS ? stop - pair : KEYS;
            const uint16_t *keys = (const uint16_t *)key->data + pair * key->stride;
            const uint16_t *values = (const uint16_t *)value->data + pair * value->stride;
            tile_scores(&room, keys, key->stride, pairs, dim, scale, softcap);
            lanes shrink = tile_softmax(&room, &largest, &total);
            tile_mix(&room, values, value->stride, pairs, dim, shrink);
        }
        for (int64_t q = 0; q < count; q++) {
            float sum = total[q];
            lse[first + q] = sum > 0 ? largest[q] + logf(sum) : -INFINITY;
            for (int64_t i = 0; i < dim; i++)
                output[(first + q) * dim + component(i)] = sum > 0 ? room.output[q * dim + i] / sum : 0;
        }
    }
}
