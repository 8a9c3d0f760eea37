/* The logarithm of a row's sum.
 *
 *   ln(count + q),  count + q = 2**k * (1 + f),  sqrt(1/2) <= 1 + f < sqrt(2),
 *   ln(1 + f) = f - (f*f/2 - s * (f*f/2 + R(s*s))),  s = f / (2 + f).
 *
 * count is what the row's largest elements give, 1 for a single one; q is the rest, as
 * a pair. Where count is 1 and q small, f comes out as q itself with every digit it has:
 * that is what keeps a log-probability close to 0 exact. */
#ifndef FASTSOFTMAX_VECTOR_LOG_H
#define FASTSOFTMAX_VECTOR_LOG_H

#include "pair.h"

static const real log_coefficients[] = {LOG_COEFFICIENTS};
#define LOG_TERMS ((int)(sizeof log_coefficients / sizeof *log_coefficients))

/* Good to about 0.2 ulp as a pair; count + q is positive and normal. */
INLINE struct pair log_of_sum(vec count, struct pair q)
{
    struct pair u = two_sum(count, q.high);
    ivec k = ((ivec)u.high - (integer)SQRT_HALF_BITS) >> MANTISSA_BITS;
    ivec k_bits = k << MANTISSA_BITS;
    /* 2**-k as a number, k never being near the ends of the exponent's range. */
    vec inverse_power = (vec)(((ivec){0} + ((integer)EXPONENT_BIAS << MANTISSA_BITS)) - k_bits);
    /* The mantissa less 1 is exact, and 0 or larger than what the sum lost; q.low joins what is left of that. */
    struct pair f = fast_two_sum((vec)((ivec)u.high - k_bits) - splat(1), u.low * inverse_power);
    f.low = fma_(q.low, inverse_power, f.low);
    vec k_real = __builtin_convertvector(k, vec);

    vec s = f.high / (splat(2) + f.high);
    vec z = s * s;
    vec r = splat(log_coefficients[LOG_TERMS - 1]);
    for (int i = LOG_TERMS - 2; i >= 0; i--) r = fma_(r, z, splat(log_coefficients[i]));
    r *= z;
    vec half_square = splat((real)0.5) * f.high * f.high;
    /* f.low / (1 + f) = f.low * (1 - 2*s) to the precision it has. */
    vec correction = fma_(k_real, splat(LN2_LOW), fma_(splat(-2) * s, f.low, f.low));
    struct pair sum = fast_two_sum(k_real * splat(LN2_HIGH), f.high);
    sum.low += correction - (half_square - s * (half_square + r));
    return fast_two_sum(sum.high, sum.low);
}

#endif
