/* A number kept as the unevaluated sum of two reals, about twice as precise as one. */
#ifndef FASTSOFTMAX_PAIR_H
#define FASTSOFTMAX_PAIR_H

#include "simd.h"

struct pair {
    vec high, low;
};

/* a + b exactly, for any a and b (Knuth's TwoSum). */
INLINE struct pair two_sum(vec a, vec b)
{
    vec sum = a + b;
    vec b_part = sum - a;
    return (struct pair){sum, (a - (sum - b_part)) + (b - b_part)};
}

/* The same in three operations, for |a| >= |b| or a = 0 (Dekker's Fast2Sum). */
INLINE struct pair fast_two_sum(vec a, vec b)
{
    vec sum = a + b;
    return (struct pair){sum, b - (sum - a)};
}

/* a * b exactly. */
INLINE struct pair two_product(vec a, vec b)
{
    vec product = a * b;
    return (struct pair){product, fma_(a, b, -product)};
}

/* Commutative to the last bit, so that it may be used in a tree whose lanes all end up equal. */
INLINE struct pair add_pairs(struct pair a, struct pair b)
{
    struct pair sum = two_sum(a.high, b.high);
    return (struct pair){sum.high, sum.low + (a.low + b.low)};
}

INLINE struct pair multiply_pairs(struct pair a, struct pair b)
{
    struct pair product = two_product(a.high, b.high);
    product.low += fma_(a.high, b.low, a.low * b.high);
    return fast_two_sum(product.high, product.low);
}

INLINE lane_mask is_finite(vec a) { return equal(a - a, splat(0)); }

/* An infinite number has no low part: what is computed as one is NaN, or infinite with the other sign. */
INLINE struct pair infinite_alone(struct pair a)
{
    return (struct pair){a.high, choose(is_finite(a.high), a.low, splat(0))};
}

/* The same as multiply_pairs where the product may be infinite. */
INLINE struct pair multiply_or_overflow(struct pair a, struct pair b)
{
    struct pair product = multiply_pairs(a, b);
    vec high = a.high * b.high;
    lane_mask finite = is_finite(high);
    return (struct pair){choose(finite, product.high, high), choose(finite, product.low, splat(0))};
}

INLINE struct pair divide_pairs(struct pair a, struct pair b)
{
    vec reciprocal = splat(1) / b.high;
    vec quotient = a.high * reciprocal;
    vec rest = fma_(-quotient, b.high, a.high) + fma_(-quotient, b.low, a.low);
    return (struct pair){quotient, rest * reciprocal};
}

INLINE struct pair reciprocal(struct pair a)
{
    vec high = splat(1) / a.high;
    vec rest = fma_(-high, a.high, splat(1)) - high * a.low;
    return (struct pair){high, rest * high};
}

#endif
