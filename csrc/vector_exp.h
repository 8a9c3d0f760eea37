/* exp, for a row at a time.
 *
 *   c * e**y * 2**(SUM_EXPONENT - N)  =  2**(k - N + SUM_EXPONENT) * (c * 2**(j/TABLE_SIZE)) * e**r,
 *   y = (k + j/TABLE_SIZE) * ln 2 + r,   |r| <= ln 2 / (2 * TABLE_SIZE).
 *
 * The row's N takes the place of the usual y - max: softmax does not change under a
 * common factor, and taking an integer from k costs no rounding, where y - max would
 * lose up to log2(max - y) bits of the result. Nothing here is subnormal: the factor
 * 2**SUM_EXPONENT keeps all that a row's results depend on in the normal range, and
 * whatever lies below comes out as 0 exactly (so do -inf and the padding of a tail).
 *
 * c = TABLE_FACTOR cancels like the rest. It is chosen so that the numbers c * 2**(j/TABLE_SIZE)
 * are closer to reals than such numbers are as a rule (derive_constants.py): with few digits
 * more of them to look up, or none, vectors of 32 bytes take 0.88 to 0.93 of the time.
 *
 * The result is left as scale * (1 + tail): rounded once it is within 0.63 ulp (of float32,
 * every y from -60 to 43), and the sum of a row takes it unrounded. */
#ifndef FASTSOFTMAX_VECTOR_EXP_H
#define FASTSOFTMAX_VECTOR_EXP_H

#include "pair.h"

static const union {
    bit_pattern bits[TABLE_SIZE];
    real values[TABLE_SIZE];
} exp_table __attribute__((aligned(64))) = {{EXP_TABLE_BITS}};
#if TAILS_SIZE
static const real exp_tails[TAILS_SIZE] __attribute__((aligned(64))) = {EXP_TABLE_TAILS};
#endif
static const real exp_coefficients[] = {EXP_COEFFICIENTS};
#define EXP_TERMS ((int)(sizeof exp_coefficients / sizeof *exp_coefficients))

/* What the exponentials of a row, or of a block of it, are taken relative to. */
struct exp_shift {
    vec subtract; /* from each element: 0, or the row's max where that is exact */
    vec magic;    /* ROUND_MAGIC - TABLE_SIZE * (N - SUM_EXPONENT) */
    /* With a temperature y = x / temperature, and the reduction's constants are those for x, prescaled. */
    vec prescale; /* a power of two on x and temperature, where the inverse would leave the range */
    vec steps_per_unit, step_high, step_low, inverse;
};

struct exponential {
    vec scale, tail;
};

INLINE vec rounded(struct exponential e) { return fma_(e.scale, e.tail, e.scale); }

INLINE struct pair as_pair(struct exponential e)
{
    vec high = rounded(e);
    return (struct pair){high, fma_(e.scale, e.tail, e.scale - high)};
}

/* k and j of an exponential, as the low bits of `steps`, and what is left of its argument. */
struct reduced {
    vec steps, r;
};

/* Exact, as exp_of_reduced needs it, where y is not too low for an exponential. */
INLINE struct reduced reduce_in_range(vec y, const struct exp_shift *shift)
{
    vec steps = fma_(y, splat(STEPS_PER_UNIT), shift->magic);
    vec k = steps - shift->magic;
    /* The first product is exact in the fma, and so is its sum: both are multiples of
     * ulp(STEP_HIGH) or of a small y's own ulp, and they cancel to less than a step. */
    vec r = fma_(k, splat(-STEP_HIGH), y);
    r = fma_(k, splat(-STEP_LOW), r);
    return (struct reduced){steps, r};
}

/* Of y = x / T, x and T prescaled. The quotient itself, which would have to be kept to twice the precision, is not
 * found: x is reduced by steps of T * ln 2 / TABLE_SIZE, as exactly as y by its own, and what is left divided by T. */
INLINE struct reduced reduce_scaled_in_range(vec x, const struct exp_shift *shift)
{
    vec steps = fma_(x, shift->steps_per_unit, shift->magic);
    vec k = steps - shift->magic;
    vec left = fma_(-k, shift->step_high, x);
    left = fma_(-k, shift->step_low, left);
    return (struct reduced){steps, left * shift->inverse};
}

/* unclamped, as for reduce: no exponential is too low. */
INLINE struct exponential exp_of_reduced(struct reduced argument, int unclamped)
{
    vec steps = argument.steps, r = argument.r;
    vec polynomial = splat(exp_coefficients[EXP_TERMS - 1]);
    for (int i = EXP_TERMS - 2; i >= 0; i--) polynomial = fma_(polynomial, r, splat(exp_coefficients[i]));
    polynomial = fma_(polynomial, r, splat(1));
    ivec exponent = (ivec)steps << (MANTISSA_BITS - TABLE_BITS);
    ivec scale = (ivec)look_up(exp_table.values, TABLE_SIZE, (ivec)steps) + exponent;
#if TAILS_SIZE
    vec tail = fma_(polynomial, r, look_up(exp_tails, TAILS_SIZE, (ivec)steps));
#else
    vec tail = polynomial * r;
#endif
    if (!unclamped) {
        /* 0 where the exponent might be less than a normal number's; there may be no r then. A NaN stays one. */
        const real least = ROUND_MAGIC + (real)(TABLE_SIZE * (2 - EXPONENT_BIAS));
        lane_mask kept = not_less(steps, splat(least));
        scale = only_integers(kept, scale);
        tail = only(kept, tail);
    }
    return (struct exponential){(vec)scale, tail};
}

/* e / TABLE_FACTOR, where nothing cancels that. */
INLINE struct exponential without_factor(struct exponential e)
{
    return (struct exponential){e.scale, fma_(e.tail, splat(INVERSE_FACTOR), splat(INVERSE_FACTOR_LESS_ONE))};
}

/* scaled: with a temperature. unclamped, as set_shift says that it may be: nothing is to be subtracted. */
INLINE struct reduced reduce(vec x, const struct exp_shift *shift, int scaled, int unclamped)
{
    if (!unclamped) {
        x -= shift->subtract;
        if (scaled) x *= shift->prescale;
    }
    return scaled ? reduce_scaled_in_range(x, shift) : reduce_in_range(x, shift);
}

INLINE struct exponential shifted_exp(vec x, const struct exp_shift *shift, int scaled, int unclamped)
{
    return exp_of_reduced(reduce(x, shift, scaled, unclamped), unclamped);
}

/* temperature and the fields that belong to it are left alone where not scaled. No element of a row is below row_low;
 * returns the rows whose exponentials might not be the same unclamped, with a temperature all of them. */
INLINE lane_mask set_shift(struct exp_shift *shift, vec row_max, vec row_low, vec temperature, int scaled)
{
    vec y_max = row_max, unit = splat(1);
    if (scaled) {
        const vec tiny = splat(1 / SUM_SCALE), huge = splat(SUM_SCALE * (1 << 30));
        shift->prescale = choose(less(temperature, tiny), splat(SUM_SCALE), splat(1));
        shift->prescale = choose(less(huge, temperature), tiny, shift->prescale);
        unit = temperature * shift->prescale;
        shift->inverse = splat(1) / unit;
        shift->steps_per_unit = splat(STEPS_PER_UNIT) * shift->inverse;
        struct pair step = two_product(unit, splat(STEP_HIGH));
        shift->step_high = step.high;
        shift->step_low = fma_(unit, splat(STEP_LOW), step.low);
        y_max = row_max * shift->prescale * shift->inverse;
    }
    /* An empty row's max is -inf: its elements must come out as 0, so nothing is subtracted. */
    vec zero = splat(0);
    lane_mask plain = less(absolute(y_max), splat(LARGE_MAX));
    shift->subtract = choose(plain | equal(row_max, splat(-(real)__builtin_inf())), zero, row_max);
    y_max = choose(plain, y_max, zero);
    vec n = fma_(y_max, splat(LOG2_E), splat(ROUND_MAGIC)) - splat(ROUND_MAGIC);
    vec n_scaled = n - splat(SUM_EXPONENT);
    shift->magic = splat(ROUND_MAGIC) - splat(TABLE_SIZE) * n_scaled;
    if (scaled) return first_lanes(LANES);
    /* The exponential of `lowest` is 0; from 3 * ln 2 above it on they are what they should be. */
    vec lowest = (n_scaled - splat(EXPONENT_BIAS + 1)) * splat(LN2);
    return ~(equal(shift->subtract, zero) & less(lowest + splat(3 * LN2), row_low));
}

#endif
