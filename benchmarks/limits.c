/* What bounds a softmax: how fast memory can be copied, how fast exponentials come. */
#include "vector_exp.h"

/* Copies past the caches, half by half where there are two threads. */
void copy_streaming(char *to, const char *from, ptrdiff_t bytes, int threads)
{
#pragma omp parallel for num_threads(threads) schedule(static)
    for (ptrdiff_t page = 0; page < bytes; page += 4096) {
        ptrdiff_t end = page + 4096 < bytes ? page + 4096 : bytes;
#if defined(__SSE2__)
        if (((uintptr_t)to & 15) == 0 && (end - page) % 16 == 0) {
            for (ptrdiff_t at = page; at < end; at += 16)
                _mm_stream_si128((void *)(to + at), _mm_loadu_si128((const void *)(from + at)));
            continue;
        }
#endif
        memcpy(to + page, from + page, (size_t)(end - page));
    }
}

/* Copies with ordinary stores. */
void copy_cached(char *to, const char *from, ptrdiff_t bytes, int threads)
{
    ptrdiff_t part = (bytes / threads + 63) / 64 * 64;
#pragma omp parallel for num_threads(threads) schedule(static)
    for (int thread = 0; thread < threads; thread++) {
        ptrdiff_t begin = thread * part, end = begin + part < bytes ? begin + part : bytes;
        if (begin < end) memcpy(to + begin, from + begin, (size_t)(end - begin));
    }
}

/* Takes the exponentials of a row that stays in the first cache, again and again, and
 * keeps their sum alone: neither memory nor stores are in the way. */
double sum_exponentials(ptrdiff_t repeats, int threads)
{
    enum { VECTORS = 64 };
    double total = 0;
#pragma omp parallel for num_threads(threads) schedule(static) reduction(+ : total)
    for (int thread = 0; thread < threads; thread++) {
        real row[VECTORS * LANES];
        for (ptrdiff_t i = 0; i < VECTORS * LANES; i++) row[i] = (real)(i % 61) / 7;
        struct exp_shift shift;
        set_shift(&shift, splat(9), splat(-9), splat(1), 0);
        vec sums[4] = {splat(0), splat(0), splat(0), splat(0)};
        for (ptrdiff_t repeat = 0; repeat < repeats; repeat++) {
            __asm__ volatile("" : : "r"(row) : "memory");
            for (int at = 0; at < VECTORS; at += 4)
                for (int i = 0; i < 4; i++)
                    sums[i] += rounded(shifted_exp(load(row + (at + i) * LANES), &shift, 0, 1));
        }
        for (int i = 0; i < 4; i++) total += sums[i][0];
    }
    return total;
}

ptrdiff_t exponentials_in_a_repeat(void) { return 64 * LANES; }
