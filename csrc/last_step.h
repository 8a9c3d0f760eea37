/* What is left to do with an element on its way out. */
#ifndef FASTSOFTMAX_LAST_STEP_H
#define FASTSOFTMAX_LAST_STEP_H

#include "across_lanes.h"

enum last_step {
    COPY,            /* nothing: write_phase does what there is to do */
    SCALE,           /* e * factor */
    SCALE_CAREFULLY, /* the same where that may be subnormal, and 1 above certain_above */
    SCALE_BUT_LABEL, /* as SCALE, but another value at the label: of panels, and of rows that go past the caches */
    TO_LOG,          /* (x - row_max) - log_sum */
};

/* For SCALE_CAREFULLY. */
struct care {
    vec certain_above; /* probabilities above it are 1; infinite for gradients */
    vec unit;          /* the factor comes divided by it: a power of two */
    vec small_below;   /* exponentials below it make subnormal results */
};

/* Of a group's rows, for its step alone. */
struct last_values {
    union {
        struct {
            struct pair factor;
            vec label, at_label; /* the element of this number (below 0: none) is that instead */
            struct care care;
        };
        struct {
            vec row_max, log_sum;
        };
    };
};

/* Those of the row of this number, in every lane. */
INLINE struct last_values last_values_in_strip(const struct last_values *values, ptrdiff_t strip, enum last_step step)
{
    struct last_values result;
    if (step == TO_LOG) {
        result.row_max = in_strip(0, &values->row_max, strip);
        result.log_sum = in_strip(0, &values->log_sum, strip);
    } else {
        result.factor = pair_in_strip(0, &values->factor, strip);
        if (step == SCALE_CAREFULLY) {
            result.care.certain_above = in_strip(0, &values->care.certain_above, strip);
            result.care.unit = in_strip(0, &values->care.unit, strip);
            result.care.small_below = in_strip(0, &values->care.small_below, strip);
        }
    }
    return result;
}

INLINE vec scaled(vec e, struct pair factor) { return fma_(e, factor.high, e * factor.low); }

/* 2**exponent / power, where power is one of two as well. */
INLINE vec power_quotient(integer exponent, vec power)
{
    return (vec)(((2 * (integer)EXPONENT_BIAS + exponent) << MANTISSA_BITS) - (ivec)power);
}

/* value * unit, a power of two, where that may be subnormal: `small` are lanes where it is no more than the smallest
 * normal number, all where it is surely less, `sign` the value's sign bit. Intel's processors take a hundred cycles for
 * a vector in which an operation's result is subnormal, or what is added to a product. Next to the smallest normal
 * number, of the same sign, a result's last bit is that of a subnormal one, and what the bits of their sum count beyond
 * those of that number are the subnormal's bits. */
INLINE vec from_units(vec value, lane_mask small, vec unit, ivec sign)
{
    vec least = (vec)((ivec)power_quotient(1 - EXPONENT_BIAS, unit) | sign);
    vec result = add_where(small, value, least) * unit;
    return (vec)subtract_where(small, (ivec)result, (integer)1 << MANTISSA_BITS);
}

/* e * factor, which comes divided by care.unit. */
INLINE vec scaled_carefully(vec e, const struct pair *factor, const struct care *care)
{
    return from_units(scaled(e, *factor), less(e, care->small_below), care->unit, sign_of(factor->high));
}

INLINE vec log_probability(vec x, vec row_max, vec log_sum) { return (x - row_max) - log_sum; }

/* 1 where the probability is above the bound */
INLINE vec certain_or(vec probability, vec bound) { return choose(less(bound, probability), splat(1), probability); }

/* `step` is a constant. */
INLINE vec after_last_step(vec element, enum last_step step, const struct last_values *values)
{
    switch (step) {
    case SCALE:
    case SCALE_BUT_LABEL: return scaled(element, values->factor);
    case SCALE_CAREFULLY:
        return certain_or(scaled_carefully(element, &values->factor, &values->care), values->care.certain_above);
    case TO_LOG: return log_probability(element, values->row_max, values->log_sum);
    default: return element;
    }
}

#endif
