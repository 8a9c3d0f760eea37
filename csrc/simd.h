/* The vector primitives: the only home of compiler and instruction-set quirks.
 *
 * A `vec` holds LANES reals in VECTOR_BYTES bytes, an `ivec` as many integers of
 * the same size. On x86 what the vector operators do not have is spelled out in intrinsics,
 * as GCC takes loops over lanes apart again inside larger functions; elsewhere those loops,
 * and shuffles, compile to one instruction or few. */
#ifndef FASTSOFTMAX_SIMD_H
#define FASTSOFTMAX_SIMD_H

#include <float.h>
#include <stddef.h>
#include <stdint.h>
#include <string.h>

#if REAL_BITS == 64
#include "real_f64.h"
#else
#include "real_f32.h"
#endif

#if defined(__SSE2__)
#include <immintrin.h>
#endif

#define LANES ((ptrdiff_t)(VECTOR_BYTES * 8 / REAL_BITS))

typedef real vec __attribute__((vector_size(VECTOR_BYTES)));
typedef integer ivec __attribute__((vector_size(VECTOR_BYTES)));
/* The same at the alignment of one real, for memory that is the caller's. */
typedef real unaligned_vec __attribute__((vector_size(VECTOR_BYTES), aligned(REAL_BITS / 8), may_alias));

#define INLINE static inline __attribute__((always_inline))
/* Long enough by itself, also where its caller is flattened. */
#define NOT_INLINE static __attribute__((noinline))
#define EACH_LANE(lane) for (int lane = 0; lane < LANES; lane++)

INLINE vec load(const real *from) { return (vec) * (const unaligned_vec *)from; }
INLINE void store(real *to, vec value) { *(unaligned_vec *)to = (unaligned_vec)value; }
INLINE vec splat(real value) { return value - (vec){0}; } /* -0 stays -0 */

/* The x86 intrinsic of an operation at this width and dtype: _mm512_max_ps and so on. */
#if defined(__SSE2__)
#define JOIN_(width, name, type) _mm##width##_##name##_##type
#define JOIN(width, name, type) JOIN_(width, name, type)
#if VECTOR_BYTES == 64
#define WIDTH 512
#elif VECTOR_BYTES == 32
#define WIDTH 256
#else
#define WIDTH
#endif
#if REAL_BITS == 64
#define INTRINSIC(name) JOIN(WIDTH, name, pd)
#define COMPARE _mm512_cmp_pd_mask
typedef double native __attribute__((vector_size(VECTOR_BYTES), may_alias));
#else
#define INTRINSIC(name) JOIN(WIDTH, name, ps)
#define COMPARE _mm512_cmp_ps_mask
typedef float native __attribute__((vector_size(VECTOR_BYTES), may_alias));
#endif
#endif

/* Whether a fused multiply-add is an instruction; elsewhere it is a call for each lane. */
#if defined(__FMA__) || defined(__ARM_FEATURE_FMA)
#define HAS_FMA 1
#else
#define HAS_FMA 0
#endif

/* a*b + c with one rounding, on every machine. */
INLINE vec fma_(vec a, vec b, vec c)
{
#if defined(__FMA__)
    return (vec)INTRINSIC(fmadd)((native)a, (native)b, (native)c);
#else
    vec result;
#if REAL_BITS == 64
    EACH_LANE(i) result[i] = __builtin_fma(a[i], b[i], c[i]);
#ifndef __GLIBC__
    /* musl gives +0 for a negative product that underflows. */
    EACH_LANE(i) if (result[i] == 0 && c[i] == 0 && a[i] != 0 && b[i] != 0) result[i] = a[i] * b[i];
#endif
#else
    EACH_LANE(i) result[i] = __builtin_fmaf(a[i], b[i], c[i]);
#endif
    return result;
#endif
}

/* A truth value for each lane, of which & | ~ make others. */
#if VECTOR_BYTES == 64 && REAL_BITS == 32
typedef __mmask16 lane_mask;
#elif VECTOR_BYTES == 64
typedef __mmask8 lane_mask;
#else
typedef ivec lane_mask;
#endif

#if VECTOR_BYTES == 64
INLINE lane_mask equal(vec a, vec b) { return COMPARE((native)a, (native)b, _CMP_EQ_OQ); }
INLINE lane_mask differ(vec a, vec b) { return COMPARE((native)a, (native)b, _CMP_NEQ_UQ); }
INLINE lane_mask less(vec a, vec b) { return COMPARE((native)a, (native)b, _CMP_LT_OQ); }
/* Or either is NaN. */
INLINE lane_mask not_less(vec a, vec b) { return COMPARE((native)a, (native)b, _CMP_NLT_UQ); }
INLINE vec choose(lane_mask condition, vec yes, vec no)
{
    return (vec)INTRINSIC(mask_blend)(condition, (native)no, (native)yes);
}
INLINE int is_set(lane_mask mask, ptrdiff_t lane) { return mask >> lane & 1; }
#else
INLINE lane_mask equal(vec a, vec b) { return a == b; }
INLINE lane_mask differ(vec a, vec b) { return a != b; }
INLINE lane_mask less(vec a, vec b) { return a < b; }
INLINE lane_mask not_less(vec a, vec b)
{
#if VECTOR_BYTES == 32
    /* Of ~ and & GCC makes blends, which take two operations. */
    return (lane_mask)INTRINSIC(cmp)((native)a, (native)b, _CMP_NLT_UQ);
#else
    return ~(a < b);
#endif
}
INLINE vec choose(lane_mask condition, vec yes, vec no)
{
#if VECTOR_BYTES == 32
    return (vec)INTRINSIC(blendv)((native)no, (native)yes, (native)condition);
#elif defined(INTRINSIC)
    /* Written with operators this ends in an internal error of GCC 12, for doubles. */
    native mask = (native)condition;
    return (vec)INTRINSIC(or)(INTRINSIC(and)(mask, (native)yes), INTRINSIC(andnot)(mask, (native)no));
#else
    return (vec)((condition & (ivec)yes) | (~condition & (ivec)no));
#endif
}
INLINE int is_set(lane_mask mask, ptrdiff_t lane) { return mask[lane] != 0; }
#endif

/* The sign bit alone. */
INLINE ivec sign_of(vec a) { return (ivec)a & (integer)((bit_pattern)1 << (REAL_BITS - 1)); }

/* v in the lanes of the mask, 0 elsewhere: of each type, as GCC then makes one operation of it and the one before. */
INLINE ivec only_integers(lane_mask mask, ivec v)
{
#if VECTOR_BYTES == 64 && REAL_BITS == 32
    return (ivec)_mm512_maskz_mov_epi32(mask, (__m512i)v);
#elif VECTOR_BYTES == 64
    return (ivec)_mm512_maskz_mov_epi64(mask, (__m512i)v);
#else
    return v & mask;
#endif
}

INLINE vec only(lane_mask mask, vec v)
{
#if VECTOR_BYTES == 64
    return (vec)INTRINSIC(maskz_mov)(mask, (native)v);
#else
    return (vec)((ivec)v & mask);
#endif
}

/* a + b, where b has the sign of a, and a - b in the lanes of the mask, a elsewhere. */
INLINE vec add_where(lane_mask mask, vec a, vec b)
{
#if VECTOR_BYTES == 64
    return (vec)INTRINSIC(mask_add)((native)a, mask, (native)a, (native)b);
#else
    return a + (vec)((ivec)only(mask, b) | sign_of(b)); /* elsewhere a 0 of its sign */
#endif
}

INLINE ivec subtract_where(lane_mask mask, ivec a, integer b)
{
#if VECTOR_BYTES == 64 && REAL_BITS == 32
    return (ivec)_mm512_mask_sub_epi32((__m512i)a, mask, (__m512i)a, _mm512_set1_epi32(b));
#elif VECTOR_BYTES == 64
    return (ivec)_mm512_mask_sub_epi64((__m512i)a, mask, (__m512i)a, _mm512_set1_epi64(b));
#else
    return a - (mask & b);
#endif
}

/* One more in the lanes of the mask: an operation that any pipe takes. */
INLINE ivec count_lanes(ivec so_far, lane_mask mask)
{
#if VECTOR_BYTES == 64
    return subtract_where(mask, so_far, -1);
#else
    return so_far - mask;
#endif
}

INLINE int any_lane(lane_mask mask)
{
#if VECTOR_BYTES == 64
    return mask != 0;
#elif VECTOR_BYTES == 32
    return !_mm256_testz_si256((__m256i)mask, (__m256i)mask);
#else
    integer any = 0;
    EACH_LANE(i) any |= mask[i];
    return any != 0;
#endif
}

/* The larger and the smaller of both; a NaN in b comes through, a NaN in a does not. */
INLINE vec max(vec a, vec b)
{
#ifdef INTRINSIC
    return (vec)INTRINSIC(max)((native)a, (native)b);
#else
    return choose(less(b, a), a, b);
#endif
}

INLINE vec min(vec a, vec b)
{
#ifdef INTRINSIC
    return (vec)INTRINSIC(min)((native)a, (native)b);
#else
    return choose(less(a, b), a, b);
#endif
}

/* Of both the one whose bits are the larger unsigned number, which is the lower one if that is negative: an operation
 * that any pipe takes, where floating-point additions leave no room for another min. Elsewhere the lower one. */
INLINE vec lower_if_negative(vec a, vec b)
{
#if VECTOR_BYTES == 64 && REAL_BITS == 32
    return (vec)_mm512_max_epu32((__m512i)a, (__m512i)b);
#elif VECTOR_BYTES == 64
    return (vec)_mm512_max_epu64((__m512i)a, (__m512i)b);
#elif VECTOR_BYTES == 32 && REAL_BITS == 32
    return (vec)_mm256_max_epu32((__m256i)a, (__m256i)b);
#else
    return min(a, b);
#endif
}

/* The same where negative, else +0. */
INLINE vec negative_part(vec a) { return (vec)((ivec)a & ((ivec)a >> (REAL_BITS - 1))); }

INLINE vec absolute(vec a) { return (vec)((ivec)a & (ivec)((bit_pattern)-1 / 2 - (ivec){0})); }

/* The lanes below `count`, from 0 to LANES. */
INLINE lane_mask first_lanes(ptrdiff_t count)
{
#if VECTOR_BYTES == 64
    return (lane_mask)((1u << count) - 1);
#else
    ivec number;
    EACH_LANE(i) number[i] = i;
    return number < (integer)count;
#endif
}

/* The wanted lanes from memory, the others `fill`; nothing else is read. */
INLINE vec load_where(const real *from, lane_mask wanted, real fill)
{
#if VECTOR_BYTES == 64
    return (vec)INTRINSIC(mask_loadu)((native)splat(fill), wanted, from);
#elif VECTOR_BYTES == 32
    return choose(wanted, (vec)INTRINSIC(maskload)(from, (__m256i)wanted), splat(fill));
#else
    vec result = splat(fill);
    EACH_LANE(i) if (is_set(wanted, i)) result[i] = from[i];
    return result;
#endif
}

INLINE void store_where(real *to, lane_mask wanted, vec value)
{
#if VECTOR_BYTES == 64
    INTRINSIC(mask_storeu)(to, wanted, (native)value);
#elif VECTOR_BYTES == 32
    INTRINSIC(maskstore)(to, (__m256i)wanted, (native)value);
#else
    EACH_LANE(i) if (is_set(wanted, i)) to[i] = value[i];
#endif
}

INLINE vec load_first(const real *from, ptrdiff_t count, real fill)
{
    return load_where(from, first_lanes(count), fill);
}

/* All lanes, or the first `count`: a loop's body serves its whole vectors and its tail. */
INLINE vec load_lanes(const real *from, ptrdiff_t count)
{
    return count == LANES ? load(from) : load_first(from, count, 0);
}

/* At most LANES reals. Without AVX-512 in pieces: AVX2's store under a mask takes Zen 4 42 operations. */
INLINE void copy_lanes(real *to, const real *from, ptrdiff_t count)
{
#if VECTOR_BYTES == 64
    if (count == 1) *to = *from;
    else store_where(to, first_lanes(count), load_lanes(from, count));
#else
    if (count == LANES) {
        store(to, load(from));
        return;
    }
    ptrdiff_t bytes = count * (ptrdiff_t)sizeof(real), done = 0;
#define COPY_PIECE(size)                                                                           \
    if (bytes & (size)) {                                                                          \
        __builtin_memcpy((char *)to + done, (const char *)from + done, size);                      \
        done += size;                                                                              \
    }
    COPY_PIECE(16)
    COPY_PIECE(8)
    COPY_PIECE(4)
#undef COPY_PIECE
#endif
}

INLINE void store_first(real *to, ptrdiff_t count, vec value)
{
#if VECTOR_BYTES == 64
    store_where(to, first_lanes(count), value);
#else
    real lanes[LANES];
    store(lanes, value);
    copy_lanes(to, lanes, count);
#endif
}

INLINE void store_lanes(real *to, ptrdiff_t count, vec value)
{
    if (count == LANES) store(to, value);
    else store_first(to, count, value);
}

/* Of `size` reals those before the first that lies at a multiple of VECTOR_BYTES; from there on no vector reaches into
 * a second line of the cache. */
INLINE ptrdiff_t until_aligned(const real *from, ptrdiff_t size)
{
    ptrdiff_t misaligned = (ptrdiff_t)((uintptr_t)from % VECTOR_BYTES / sizeof(real));
    ptrdiff_t count = misaligned ? LANES - misaligned : 0;
    return count < size ? count : size;
}

#define HAS_STREAMS (VECTOR_BYTES >= 32)

/* To memory, past the caches; `to` is aligned to VECTOR_BYTES. */
INLINE void stream(real *to, vec value)
{
#if VECTOR_BYTES == 64
    _mm512_stream_si512((void *)to, (__m512i)value);
#elif VECTOR_BYTES == 32
    _mm256_stream_si256((void *)to, (__m256i)value);
#else
    store(to, value);
#endif
}

/* The first `count` lanes, past the caches where they are whole 16 bytes: the rest of the line is
 * the end or the beginning of a neighbouring row, and an ordinary store would read the line. */
INLINE void stream_first(real *to, ptrdiff_t count, vec value)
{
#if HAS_STREAMS
    if ((uintptr_t)to % 16 == 0 && count * sizeof(real) % 16 == 0) {
        real lanes[LANES];
        store(lanes, value);
        for (ptrdiff_t i = 0; i < count; i += 16 / sizeof(real))
            _mm_stream_si128((void *)(to + i), _mm_loadu_si128((const void *)(lanes + i)));
        return;
    }
#endif
    store_first(to, count, value);
}

/* Asks for a cache line before it is needed, into the second-level cache; any address will do. Into the first one
 * a line from memory would keep one of the few places (24 on Zen 4) that every miss of the first-level cache passes
 * through, until it is there: what comes from the second level waits behind it. */
#define CACHE_LINE_BYTES 64
INLINE void prefetch(const void *from) { __builtin_prefetch(from, 0, 2); }
INLINE void prefetch_to_write(const void *to) { __builtin_prefetch(to, 1, 2); }

/* Orders streamed stores before whatever another thread is told next. */
INLINE void stream_fence(void)
{
#if HAS_STREAMS
    _mm_sfence();
#endif
}

/* The entries of an aligned table at the low bits of each index; its size is a constant, 8 or, of floats, 16. */
INLINE vec look_up(const real *table, int size, ivec index)
{
#if VECTOR_BYTES == 64 && REAL_BITS == 32
    __m512 entries = size == 16 ? _mm512_load_ps(table) : _mm512_broadcast_f32x8(_mm256_load_ps(table));
    return (vec)_mm512_permutexvar_ps((__m512i)index, entries);
#elif VECTOR_BYTES == 64
    (void)size;
    return (vec)_mm512_permutexvar_pd((__m512i)index, _mm512_load_pd(table));
#elif VECTOR_BYTES == 32 && REAL_BITS == 32
    __m256i where = (__m256i)index;
    __m256 low = _mm256_permutevar8x32_ps(_mm256_load_ps(table), where);
    if (size == 8) return (vec)low;
    __m256 high = _mm256_permutevar8x32_ps(_mm256_load_ps(table + 8), where);
    return (vec)_mm256_blendv_ps(low, high, (__m256)_mm256_slli_epi32(where, 28));
#elif VECTOR_BYTES == 32
    /* Each double as two floats, from the table's first or second half: a gather takes longer. */
    (void)size;
    __m256i twice = _mm256_slli_epi32((__m256i)_mm256_moveldup_ps((__m256)index), 1);
    __m256i where = _mm256_or_si256(twice, _mm256_set1_epi64x((int64_t)1 << 32));
    __m256 low = _mm256_permutevar8x32_ps((__m256)_mm256_load_pd(table), where);
    __m256 high = _mm256_permutevar8x32_ps((__m256)_mm256_load_pd(table + 4), where);
    return (vec)_mm256_blendv_pd((__m256d)low, (__m256d)high, (__m256d)_mm256_slli_epi64((__m256i)index, 61));
#else
    vec result;
    EACH_LANE(i) result[i] = table[index[i] & (size - 1)];
    return result;
#endif
}

/* A shuffle of a and b whose lane i is number f(offset, i) of both. */
#if VECTOR_BYTES * 8 == REAL_BITS * 16
#define SHUFFLE(a, b, f, offset)                                                                        \
    __builtin_shufflevector(a, b, f(offset, 0), f(offset, 1), f(offset, 2), f(offset, 3), f(offset, 4), \
                            f(offset, 5), f(offset, 6), f(offset, 7), f(offset, 8), f(offset, 9),       \
                            f(offset, 10), f(offset, 11), f(offset, 12), f(offset, 13), f(offset, 14),  \
                            f(offset, 15))
#elif VECTOR_BYTES * 8 == REAL_BITS * 8
#define SHUFFLE(a, b, f, offset)                                                                        \
    __builtin_shufflevector(a, b, f(offset, 0), f(offset, 1), f(offset, 2), f(offset, 3), f(offset, 4), \
                            f(offset, 5), f(offset, 6), f(offset, 7))
#elif VECTOR_BYTES * 8 == REAL_BITS * 4
#define SHUFFLE(a, b, f, offset)                                                                        \
    __builtin_shufflevector(a, b, f(offset, 0), f(offset, 1), f(offset, 2), f(offset, 3))
#else
#define SHUFFLE(a, b, f, offset) __builtin_shufflevector(a, b, f(offset, 0), f(offset, 1))
#endif

/* a0 b0 a1 b1 ... from the first and from the second halves of a and b. */
#define INTERLEAVED(offset, i) ((offset) + (i) / 2 + ((i) % 2 ? (int)LANES : 0))
INLINE vec interleave_low(vec a, vec b) { return SHUFFLE(a, b, INTERLEAVED, 0); }
INLINE vec interleave_high(vec a, vec b) { return SHUFFLE(a, b, INTERLEAVED, (int)LANES / 2); }

/* Of a's and then b's runs of `size` lanes (a power of two, constant) every second one. */
#define FIRST_RUN(size, i) ((i) / (size) * 2 * (size) + (i) % (size))
#define SECOND_RUN(size, i) (FIRST_RUN(size, i) + (size))
#define RUNS_OF(size) ((size) < LANES ? (size) : 1)
#define DEFINE_RUNS(name, f)                                                                       \
    INLINE vec name(vec a, vec b, ptrdiff_t size)                                                  \
    {                                                                                              \
        switch (size) {                                                                            \
        case 8: return SHUFFLE(a, b, f, RUNS_OF(8));                                               \
        case 4: return SHUFFLE(a, b, f, RUNS_OF(4));                                               \
        case 2: return SHUFFLE(a, b, f, RUNS_OF(2));                                               \
        default: return SHUFFLE(a, b, f, 1);                                                       \
        }                                                                                          \
    }
DEFINE_RUNS(first_runs, FIRST_RUN)
DEFINE_RUNS(second_runs, SECOND_RUN)

/* `count` vectors (a power of two, constant) one after the other, dealt out: vector i gets
 * every count-th element from number i on. log2(count) perfect shuffles. */
INLINE void unzip(vec v[], int count)
{
    for (int stage = 1; stage < count; stage *= 2) {
        vec shuffled[LANES];
        for (int i = 0; i < count / 2; i++) {
            shuffled[i] = first_runs(v[2 * i], v[2 * i + 1], 1);
            shuffled[i + count / 2] = second_runs(v[2 * i], v[2 * i + 1], 1);
        }
        for (int i = 0; i < count; i++) v[i] = shuffled[i];
    }
}

/* The way back. */
INLINE void zip(vec v[], int count)
{
    for (int stage = 1; stage < count; stage *= 2) {
        vec shuffled[LANES];
        for (int i = 0; i < count / 2; i++) {
            shuffled[2 * i] = interleave_low(v[i], v[i + count / 2]);
            shuffled[2 * i + 1] = interleave_high(v[i], v[i + count / 2]);
        }
        for (int i = 0; i < count; i++) v[i] = shuffled[i];
    }
}

/* A vector's parts of 16 bytes, within which shuffles take the least time. */
#define PART ((int)(16 / sizeof(real)))
#define PARTS ((int)(LANES / PART))

/* a0 b0 a1 b1 ... from the first and from the second halves of each part of a and b. */
#define INTERLEAVED_IN_PART(offset, i) \
    ((i) / PART * PART + (offset) + (i) % PART / 2 + ((i) % 2 ? (int)LANES : 0))

/* In each part: v[i]'s element j becomes v[j]'s element i. */
INLINE void transpose_parts(vec v[])
{
    for (int stage = 1; stage < PART; stage *= 2) {
        vec shuffled[PART];
        for (int i = 0; i < PART / 2; i++) {
            shuffled[2 * i] = SHUFFLE(v[i], v[i + PART / 2], INTERLEAVED_IN_PART, 0);
            shuffled[2 * i + 1] = SHUFFLE(v[i], v[i + PART / 2], INTERLEAVED_IN_PART, PART / 2);
        }
        for (int i = 0; i < PART; i++) v[i] = shuffled[i];
    }
}

/* Each part from an address of its own. */
INLINE vec load_parts(const real *const from[])
{
#if VECTOR_BYTES == 16
    return load(from[0]);
#else
    const __m256 low = _mm256_loadu2_m128((const float *)from[1], (const float *)from[0]);
#if VECTOR_BYTES == 32
    return (vec)low;
#else
    const __m256 high = _mm256_loadu2_m128((const float *)from[3], (const float *)from[2]);
    return (vec)_mm512_insertf32x8(_mm512_castps256_ps512(low), high, 1);
#endif
#endif
}

INLINE void store_part(real *to, vec v, int part)
{
#if VECTOR_BYTES == 16
    (void)part;
    store(to, v);
#elif VECTOR_BYTES == 32
    _mm_storeu_ps((float *)to, part ? _mm256_extractf128_ps((__m256)v, 1) : _mm256_castps256_ps128((__m256)v));
#else
    __m512 all = (__m512)v;
    switch (part) { /* which is to be a constant */
    case 0: _mm_storeu_ps((float *)to, _mm512_castps512_ps128(all)); break;
    case 1: _mm_storeu_ps((float *)to, _mm512_extractf32x4_ps(all, 1)); break;
    case 2: _mm_storeu_ps((float *)to, _mm512_extractf32x4_ps(all, 2)); break;
    default: _mm_storeu_ps((float *)to, _mm512_extractf32x4_ps(all, 3)); break;
    }
#endif
}

#if VECTOR_BYTES > 16
/* The first part of a, of b, the second of a, ... from the first and from the second halves. */
#define INTERLEAVED_PARTS(offset, i) \
    ((offset) + (i) / (2 * PART) * PART + (i) % PART + ((i) / PART % 2 ? (int)LANES : 0))
INLINE vec interleave_parts_low(vec a, vec b) { return SHUFFLE(a, b, INTERLEAVED_PARTS, 0); }
INLINE vec interleave_parts_high(vec a, vec b) { return SHUFFLE(a, b, INTERLEAVED_PARTS, (int)LANES / 2); }

/* Each two parts to an address of their own. */
INLINE void store_two_parts(real *const to[], vec v)
{
#if VECTOR_BYTES == 32
    store(to[0], v);
#else
    _mm256_storeu_ps((float *)to[0], _mm512_castps512_ps256((__m512)v));
    _mm256_storeu_ps((float *)to[1], _mm512_extractf32x8_ps((__m512)v, 1));
#endif
}
#endif

/* Lane i of the result is lane from[i] of v. */
INLINE vec permute(vec v, ivec from)
{
#if VECTOR_BYTES == 64 && REAL_BITS == 32
    return (vec)_mm512_permutexvar_ps((__m512i)from, (__m512)v);
#elif VECTOR_BYTES == 64
    return (vec)_mm512_permutexvar_pd((__m512i)from, (__m512d)v);
#elif VECTOR_BYTES == 32 && REAL_BITS == 32
    return (vec)_mm256_permutevar8x32_ps((__m256)v, (__m256i)from);
#else
    vec result;
    EACH_LANE(i) result[i] = v[from[i]];
    return result;
#endif
}

/* Lane i of the result is lane i + count of v, from the last one on to the first. */
INLINE vec rotate(vec v, ptrdiff_t count)
{
    ivec from;
    EACH_LANE(i) from[i] = i;
    return permute(v, (from + (integer)count) & (integer)(LANES - 1));
}

#endif
