/* The first phase: the largest element of each row, and a bound for the smallest. */
#ifndef FASTSOFTMAX_EXTREMES_H
#define FASTSOFTMAX_EXTREMES_H

#include "across_lanes.h"

/* Reals of a strip from which it pays to have all vectors aligned but the first and the last (measured with 200 to
 * 1000). */
#define ALIGNED_LOADS (32 * LANES)

/* The largest element, and one that no element is below, if it is negative (see lower_if_negative). A NaN never takes
 * the place of the largest; it reaches the results through the sum. */
struct extremes {
    vec max, low;
};

INLINE struct extremes join(struct extremes a, struct extremes b)
{
    return (struct extremes){max(a.max, b.max), lower_if_negative(a.low, b.low)};
}

INLINE struct extremes first_extremes(struct extremes a, struct extremes b, ptrdiff_t size)
{
    return (struct extremes){first_runs(a.max, b.max, size), first_runs(a.low, b.low, size)};
}

INLINE struct extremes second_extremes(struct extremes a, struct extremes b, ptrdiff_t size)
{
    return (struct extremes){second_runs(a.max, b.max, size), second_runs(a.low, b.low, size)};
}

NOT_INLINE struct extremes extremes_across_lanes(struct extremes of_row[LANES], ptrdiff_t count)
{
#define FOLD(rows)                                                                                 \
    for (ptrdiff_t r = count; r < (rows); r++) of_row[r] = of_row[0];                              \
    FOLD_LANES(struct extremes, of_row, rows, first_extremes, second_extremes, join)
    WITH_CONSTANT_ROWS(count, FOLD);
#undef FOLD
    return of_row[0];
}

INLINE struct extremes no_extremes(void)
{
    return (struct extremes){splat(-(real)__builtin_inf()), splat(0)};
}

INLINE struct extremes with_elements(struct extremes so_far, vec elements)
{
    return (struct extremes){max(elements, so_far.max), lower_if_negative(elements, so_far.low)};
}

/* Those of each lane. The first and the last vector may overlap others, which changes nothing. */
NOT_INLINE struct extremes extremes_of_strip(const real *x, ptrdiff_t size)
{
    /* Four independent chains: one would wait for each max in turn. */
    struct extremes a = no_extremes(), b = a, c = a, d = a;
    if (size < LANES) {
        a.max = max(load_first(x, size, -(real)__builtin_inf()), a.max);
        a.low = lower_if_negative(load_first(x, size, 0), a.low);
        return a;
    }
    c = with_elements(c, load(x));
    d = with_elements(d, load(x + size - LANES));
    ptrdiff_t i = size >= ALIGNED_LOADS ? until_aligned(x, size) : 0;
    for (; i + 4 * LANES <= size; i += 4 * LANES) {
        a = with_elements(a, load(x + i));
        b = with_elements(b, load(x + i + LANES));
        c = with_elements(c, load(x + i + 2 * LANES));
        d = with_elements(d, load(x + i + 3 * LANES));
    }
    for (; i + LANES <= size; i += LANES) a = with_elements(a, load(x + i));
    return join(join(a, b), join(c, d));
}

#endif
