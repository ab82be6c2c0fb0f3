/* attend_run for bfloat16 queries on processors with AMX: blocks of sixteen, whose products are made by matrix tiles.
 *
 *     scores^T [keys, queries] = K Q^T        K as it lies in memory, Q^T packed once per run
 *     softmax down the columns: a query is one lane
 *     output [queries, dim] += P V            P and V in bfloat16, sums in float32; V packed once for all blocks
 */

#include <immintrin.h>
#include <sys/syscall.h>
#include <unistd.h>

#define QUERIES 16
#define BLOCKS 8 /* of queries, which see some keys one after the other while these are near */
#define KEYS 64
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
    __m512i fours[16]; /* [4 * g + c]: columns c, c + 4, c + 8, c + 12 of the rows 4 * g to 4 * g + 3 */
    for (int64_t g = 0; g < 16; g += 4, from += 4 * stride) {
        __m512i a = _mm512_loadu_si512(from), b = _mm512_loadu_si512(from + stride);
        __m512i c = _mm512_loadu_si512(from + 2 * stride), d = _mm512_loadu_si512(from + 3 * stride);
        __m512i low_ab = _mm512_unpacklo_epi32(a, b), high_ab = _mm512_unpackhi_epi32(a, b);
        __m512i low_cd = _mm512_unpacklo_epi32(c, d), high_cd = _mm512_unpackhi_epi32(c, d);
        fours[g] = _mm512_unpacklo_epi64(low_ab, low_cd), fours[g + 1] = _mm512_unpackhi_epi64(low_ab, low_cd);
        fours[g + 2] = _mm512_unpacklo_epi64(high_ab, high_cd), fours[g + 3] = _mm512_unpackhi_epi64(high_ab, high_cd);
    }
    for (int64_t c = 0; c < 4; c++) {
        __m512i even_a = _mm512_shuffle_i32x4(fours[c], fours[4 + c], 0x88);
        __m512i odd_a = _mm512_shuffle_i32x4(fours[c], fours[4 + c], 0xdd);
        __m512i even_b = _mm512_shuffle_i32x4(fours[8 + c], fours[12 + c], 0x88);
        __m512i odd_b = _mm512_shuffle_i32x4(fours[8 + c], fours[12 + c], 0xdd);
        _mm512_storeu_si512(into + 16 * c, _mm512_shuffle_i32x4(even_a, even_b, 0x88));
        _mm512_storeu_si512(into + 16 * (c + 4), _mm512_shuffle_i32x4(odd_a, odd_b, 0x88));
        _mm512_storeu_si512(into + 16 * (c + 8), _mm512_shuffle_i32x4(even_a, even_b, 0xdd));
        _mm512_storeu_si512(into + 16 * (c + 12), _mm512_shuffle_i32x4(odd_a, odd_b, 0xdd));
    }
}

/* two rows of bfloat16 as pairs of one component each, 32 components as two tiles: see `component` */
static void interleave(const uint16_t *one, const uint16_t *other, int64_t dim, uint16_t *into, int64_t stride) {
    for (int64_t i = 0; i < dim; i += 32, into += 2 * stride) {
        __m512i low = _mm512_loadu_si512(one + i), high = _mm512_loadu_si512(other + i);
        _mm512_storeu_si512(into, _mm512_unpacklo_epi16(low, high));
        _mm512_storeu_si512(into + stride, _mm512_unpackhi_epi16(low, high));
    }
}

/* 32 components of an output, of the two tiles that `interleave` makes: it works in lanes of eight */
static void untangle(const float *one, const float *other, float factor, float *into) {
    const __m512i front = _mm512_set_epi32(23, 22, 21, 20, 7, 6, 5, 4, 19, 18, 17, 16, 3, 2, 1, 0);
    const __m512i back = _mm512_add_epi32(front, _mm512_set1_epi32(8));
    __m512 a = (__m512)(*(const lanes *)one * factor), b = (__m512)(*(const lanes *)other * factor);
    _mm512_storeu_ps(into, _mm512_permutex2var_ps(a, front, b));
    _mm512_storeu_ps(into + 16, _mm512_permutex2var_ps(a, back, b));
}

/* two vectors of float32 as pairs of bfloat16, rounded to the nearest */
static inline __m512i narrow(lanes one, lanes other) {
    const __m512i order = _mm512_set_epi16(31, 15, 30, 14, 29, 13, 28, 12, 27, 11, 26, 10, 25, 9, 24, 8, 23, 7, 22, 6, 21, 5,
                                           20, 4, 19, 3, 18, 2, 17, 1, 16, 0);
    return _mm512_permutexvar_epi16(order, (__m512i)_mm512_cvtne2ps_pbh((__m512)other, (__m512)one));
}

typedef struct {
    uint16_t query[WIDEST / 2 * QUERIES] __attribute__((aligned(64))); /* dim / 2 rows of (query, 2) */
    float output[QUERIES * WIDEST / 2] __attribute__((aligned(64)));
    lanes largest __attribute__((aligned(64))), total __attribute__((aligned(64)));
} query_block;

typedef struct {
    query_block blocks[BLOCKS];
    uint16_t padded[KEYS * WIDEST / 2] __attribute__((aligned(64)));     /* keys that are widened, or the last of a run */
    float scores[KEYS * QUERIES] __attribute__((aligned(64)));           /* keys by queries */
    uint32_t pairs[QUERIES * KEYS / 2] __attribute__((aligned(64)));     /* weights of two keys each */
    uint32_t weights[QUERIES * KEYS / 2] __attribute__((aligned(64)));   /* per DEPTH keys: queries by keys */
    uint16_t values[KEYS * WIDEST / 2] __attribute__((aligned(64)));     /* per 16 components: key pairs by (component, 2) */
    float sums[QUERIES * QUERIES] __attribute__((aligned(64)));
} tile_room;

/* scores of KEYS keys, of which `count` exist */
static void tile_scores(tile_room *room, const query_block *block, const uint16_t *key, int64_t stride, int64_t count,
                        int64_t dim, float scale, float softcap) {
    for (int64_t k = 0; k < KEYS; k += 16) {
        if (k < count) {
            _tile_zero(SCORES);
            for (int64_t i = 0; i < dim; i += DEPTH) {
                _tile_loadd(LEFT, key + k * stride + i, (int)(2 * stride));
                _tile_loadd(RIGHT, block->query + i * QUERIES, 64);
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
static lanes tile_softmax(tile_room *room, query_block *block) {
    lanes *rows = (lanes *)room->scores;
    __m512 peak = (__m512)block->largest;
    for (int64_t k = 0; k < KEYS; k++) peak = _mm512_max_ps(peak, (__m512)rows[k]);
    lanes shrink = exponential(block->largest - (lanes)peak), sum = {0};
    for (int64_t k = 0; k < KEYS; k += 2) {
        lanes one = exponential(rows[k] - (lanes)peak), other = exponential(rows[k + 1] - (lanes)peak);
        sum += one + other;
        _mm512_storeu_si512(room->pairs + k / 2 * QUERIES, narrow(one, other));
    }
    for (int64_t k = 0; k < KEYS; k += DEPTH)
        transpose(room->pairs + k / 2 * QUERIES, QUERIES, room->weights + k / 2 * QUERIES);
    block->largest = (lanes)peak;
    block->total = block->total * shrink + sum;
    return shrink;
}

static void tile_mix(tile_room *room, query_block *block, int64_t count, int64_t dim, lanes shrink) {
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
            lanes *into = (lanes *)(block->output + q * dim + i);
            *into = *into * shrink[q] + more[q];
        }
    }
}

/* a vector of int8 as bfloat16 */
static void widen_to_tiles(const int8_t *from, float scale, int64_t dim, uint16_t *into) {
    for (int64_t i = 0; i < dim; i += 32) {
        lanes low = (lanes)_mm512_cvtepi32_ps(_mm512_cvtepi8_epi32(_mm_loadu_si128((const __m128i *)(from + i))));
        lanes high = (lanes)_mm512_cvtepi32_ps(_mm512_cvtepi8_epi32(_mm_loadu_si128((const __m128i *)(from + i + 16))));
        _mm512_storeu_si512(into + i, (__m512i)_mm512_cvtne2ps_pbh((__m512)(high * scale), (__m512)(low * scale)));
    }
}

/* one of some vectors in bfloat16: where it lies, or in `room`, or zeros if there is none */
static const uint16_t *tile_vector(const vectors *from, int kind, int64_t place, int exists, int64_t dim, uint16_t *room) {
    static const uint16_t nothing[WIDEST / 2];
    if (!exists) return nothing;
    if (kind == BFLOAT16) return (const uint16_t *)from->data + place * from->stride;
    widen_to_tiles((const int8_t *)from->data + place * from->stride, from->scale[place * from->scale_stride], dim, room);
    return room;
}

/* KEYS pairs from `first`, of which `count` exist: values are packed, and keys copied unless they are tiles as they lie;
 * where the keys are, `stride` components apart */
static const uint16_t *tile_pairs(tile_room *room, const vectors *key, const vectors *value, int kind, int64_t first,
                                  int64_t count, int64_t dim, int64_t *stride) {
    uint16_t one[WIDEST / 2], other[WIDEST / 2];
    for (int64_t k = 0; k < KEYS; k += 2)
        interleave(tile_vector(value, kind, first + k, k < count, dim, one),
                   tile_vector(value, kind, first + k + 1, k + 1 < count, dim, other), dim, room->values + k * QUERIES,
                   KEYS * QUERIES);
    if (kind == BFLOAT16 && count == KEYS) {
        *stride = key->stride;
        return (const uint16_t *)key->data + first * key->stride;
    }
    for (int64_t k = 0; k < KEYS; k++)
        memcpy(room->padded + k * dim, tile_vector(key, kind, first + k, k < count, dim, one), sizeof(uint16_t) * dim);
    *stride = dim;
    return room->padded;
}

/* `count` queries, one after the other or those numbered by `order` */
static void begin_block(query_block *block, const uint16_t *query, const visits *visits, int64_t first, int64_t count,
                        int64_t dim) {
    uint32_t given[QUERIES * WIDEST / 4];
    memset(given, 0, sizeof(uint16_t) * QUERIES * dim);
    for (int64_t q = 0; q < count; q++)
        memcpy(given + q * dim / 2, query + query_of(visits, first + q) * dim, sizeof(uint16_t) * dim);
    for (int64_t i = 0; i < dim; i += DEPTH)
        transpose(given + i / 2, dim / 2, (uint32_t *)block->query + i / 2 * QUERIES);
    memset(block->output, 0, sizeof(float) * QUERIES * dim);
    block->largest = (lanes){0} - 3e38f, block->total = (lanes){0};
}

static void end_block(const query_block *block, const visits *visits, int64_t first, int64_t count, int64_t dim,
                      float *output, float *lse) {
    for (int64_t q = 0; q < count; q++) {
        int64_t place = place_of(visits, first + q);
        float sum = block->total[q];
        lse[place] = sum > 0 ? block->largest[q] + logf(sum) : -INFINITY;
        for (int64_t i = 0; i < dim; i += 32)
            untangle(block->output + q * dim + i, block->output + q * dim + i + 16, sum > 0 ? 1 / sum : 0,
                     output + place * dim + i);
    }
}

static int64_t least(int64_t one, int64_t other) { return one < other ? one : other; }

static void attend_run_in_tiles(const uint16_t *query, const visits *visits, int64_t first, int64_t last,
                                const vectors *key, const vectors *value, int kind, int64_t start, int64_t stop,
                                int64_t dim, float scale, float softcap, float *output, float *lse) {
    static __thread tile_room room;
    for (; first < last; first += BLOCKS * QUERIES) {
        int64_t asking = least(last - first, BLOCKS * QUERIES);
        for (int64_t q = 0; q < asking; q += QUERIES)
            begin_block(room.blocks + q / QUERIES, query, visits, first + q, least(asking - q, QUERIES), dim);
        for (int64_t pair = start; pair < stop; pair += KEYS) {
            int64_t count = least(stop - pair, KEYS), stride;
            const uint16_t *keys = tile_pairs(&room, key, value, kind, pair, count, dim, &stride);
            for (query_block *block = room.blocks; block < room.blocks + (asking + QUERIES - 1) / QUERIES; block++) {
                tile_scores(&room, block, keys, stride, count, dim, scale, softcap);
                tile_mix(&room, block, count, dim, tile_softmax(&room, block));
            }
        }
        for (int64_t q = 0; q < asking; q += QUERIES)
            end_block(room.blocks + q / QUERIES, visits, first + q, least(asking - q, QUERIES), dim, output, lse);
    }
}
