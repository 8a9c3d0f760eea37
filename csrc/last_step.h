/* What is left to do with an element on its way out. */
#ifndef FASTSOFTMAX_LAST_STEP_H
#define FASTSOFTMAX_LAST_STEP_H

#include "across_lanes.h"

enum last_step {
    COPY,            /* nothing: write_phase does what there is to do */
    SCALE,           /* e * factor */
    SCALE_OR_ONE,    /* the same, but 1 above certain_above */
    SCALE_BUT_LABEL, /* the same, but another value at the label: of panels, and of rows that go past the caches */
    TO_LOG,          /* (x - row_max) - log_sum */
};

/* Of a group's rows, for its step alone. */
struct last_values {
    union {
        struct {
            struct pair factor;
            union {
                vec certain_above; /* probabilities above it are 1 */
                struct {
                    vec label, at_label; /* the element of this number (below 0: none) is that instead */
                };
            };
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
        if (step == SCALE_OR_ONE) result.certain_above = in_strip(0, &values->certain_above, strip);
    }
    return result;
}

INLINE vec scaled(vec e, struct pair factor) { return fma_(e, factor.high, tiny_product(e, factor.low)); }

INLINE vec log_probability(vec x, vec row_max, vec log_sum) { return (x - row_max) - log_sum; }

/* 1 where the probability is above the bound */
INLINE vec certain_or(vec probability, vec bound) { return choose(less(bound, probability), splat(1), probability); }

/* `step` is a constant. */
INLINE vec after_last_step(vec element, enum last_step step, const struct last_values *values)
{
    switch (step) {
    case SCALE: return scaled(element, values->factor);
    case SCALE_OR_ONE: return certain_or(scaled(element, values->factor), values->certain_above);
    case TO_LOG: return log_probability(element, values->row_max, values->log_sum);
    default: return element;
    }
}

#endif
