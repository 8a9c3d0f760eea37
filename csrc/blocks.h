/* What is known of a row's blocks. Of long rows (plan->sums_by_block) each is summed relative to its own max, m_b: that
 * is found soon before the block is summed, and its logits come from memory once. With the row's max m
 *   S = sum(R_b * S_b),   S_b = sum(e**(x - m_b)),   R_b = e**(m_b - m).
 * As exponentials are kept times 2**-N, with N from their max (vector_exp.h), R_b becomes a power of two and exact,
 * unless one of the maxima is so large that it is subtracted from the logits first. */
#ifndef FASTSOFTMAX_BLOCKS_H
#define FASTSOFTMAX_BLOCKS_H

#include "group.h"

/* R_b = lowering * factor: the first, a power of two and as a rule 1, is for the exponentials, the second for what they
 * are multiplied by. Either alone might not be a normal number. */
struct relation {
    vec lowering;
    struct pair factor;
};

/* For each lane's row. */
struct block {
    struct extremes extremes;
    struct pair largest; /* the exponential of its max in its own frame, where that is kept out of the sum */
    vec magic;           /* of that frame, where nothing is subtracted; else NaN */
    struct row_sums sums;
    struct relation relation;
};

/* In memory a vector for each field of a vertical group, one number of a horizontal one, which has a single row. */
#define BLOCK_FIELDS ((ptrdiff_t)(sizeof(struct block) / sizeof(vec)))

INLINE void keep_fields(const struct plan *plan, const struct group *group, ptrdiff_t number, size_t offset,
                        const void *values, size_t size)
{
    ptrdiff_t first = number * BLOCK_FIELDS + (ptrdiff_t)(offset / sizeof(vec));
    for (ptrdiff_t f = 0; f < (ptrdiff_t)(size / sizeof(vec)); f++) {
        vec value = ((const vec *)values)[f];
        if (plan->vertical) store(group->blocks + (first + f) * LANES, value);
        else group->blocks[first + f] = value[0];
    }
}

INLINE void read_fields(const struct plan *plan, const struct group *group, ptrdiff_t number, size_t offset,
                        void *values, size_t size)
{
    ptrdiff_t first = number * BLOCK_FIELDS + (ptrdiff_t)(offset / sizeof(vec));
    for (ptrdiff_t f = 0; f < (ptrdiff_t)(size / sizeof(vec)); f++)
        ((vec *)values)[f] =
            plan->vertical ? load(group->blocks + (first + f) * LANES) : splat(group->blocks[first + f]);
}

/* A field of struct block, from and to a variable of its type. */
#define KEEP_OF_BLOCK(plan, group, number, field, value)                                           \
    keep_fields(plan, group, number, offsetof(struct block, field), &(value), sizeof(value))
#define READ_OF_BLOCK(plan, group, number, field, value)                                           \
    read_fields(plan, group, number, offsetof(struct block, field), &(value), sizeof(value))

INLINE void set_frame(const struct plan *plan, struct frame *frame, struct extremes extremes, vec temperature)
{
    frame->max = extremes.max;
    frame->clamped =
        set_shift(&frame->shift, extremes.max, negative_part(extremes.low), temperature, plan->is_scaled);
}

INLINE void set_largest(const struct plan *plan, struct frame *frame)
{
    frame->largest = shifted_exp(frame->max, &frame->shift, plan->is_scaled, 0);
}

/* 2**exponent of each lane, exponents within the normal range. */
INLINE vec power_of_two(vec exponent)
{
    return (vec)((__builtin_convertvector(exponent, ivec) + EXPONENT_BIAS) << MANTISSA_BITS);
}

/* From 2**-NEAR_BLOCK on a factor times R_b is normal, low part and all; below 2**-LOWEST_BLOCK every result is 0. */
#define NEAR_BLOCK ((real)24)
#define LOWEST_BLOCK ((real)(EXPONENT_BIAS + MANTISSA_BITS + 2))

/* For all of what follows one function, as it is done once for a block. */
NOT_INLINE void set_frame_of_block(const struct plan *plan, struct frame *frame, struct extremes extremes,
                                   vec temperature)
{
    set_frame(plan, frame, extremes, temperature);
}

NOT_INLINE struct pair exponential_in(const struct plan *plan, const struct exp_shift *shift, vec x)
{
    return as_pair(shifted_exp(x, shift, plan->is_scaled, 0));
}

/* R_b, where the group's frame is that of its rows. */
static struct relation relation_of(const struct plan *plan, const struct group *group, struct extremes of_block,
                                   vec magic)
{
    const struct frame *of_row = &group->frame;
    const vec zero = splat(0), one = splat(1), down = splat(1 / SUM_SCALE);
    struct relation relation;
    vec exponent = (of_row->shift.magic - magic) * splat((real)1 / TABLE_SIZE);
    exponent = min(zero, max(splat(-LOWEST_BLOCK), exponent));
    vec low = choose(less(exponent, splat(-NEAR_BLOCK)), max(splat((real)(1 - EXPONENT_BIAS)), exponent), zero);
    relation.lowering = power_of_two(low);
    relation.factor = (struct pair){power_of_two(exponent - low), zero};
    lane_mask others = differ(magic, magic) | differ(of_row->shift.subtract, zero);
    if (!any_lane(others & first_lanes(group->count))) return relation;

    /* The exponentials of the block's max in both frames, the quotient times SUM_SCALE. */
    struct frame frame;
    set_frame_of_block(plan, &frame, of_block, group->temperature);
    struct pair in_row = exponential_in(plan, &of_row->shift, frame.max);
    struct pair in_block = exponential_in(plan, &frame.shift, frame.max);
    struct pair quotient = divide_pairs(in_row, (struct pair){in_block.high * down, in_block.low * down});
    lane_mask same = equal(frame.max, of_row->max), none = equal(in_row.high, zero);
    quotient.high = choose(same, splat(SUM_SCALE), choose(none, zero, quotient.high));
    quotient.low = choose(same | none, zero, quotient.low);
    lane_mask is_low = less(quotient.high, splat(SUM_SCALE / (1 << 24)));
    vec scale = choose(is_low, one, down);
    relation.lowering = choose(others, choose(is_low, down, one), relation.lowering);
    relation.factor.high = choose(others, quotient.high * scale, relation.factor.high);
    relation.factor.low = choose(others, quotient.low * scale, relation.factor.low);
    return relation;
}

static void relate_block(const struct plan *plan, const struct group *group, ptrdiff_t number)
{
    struct extremes extremes;
    vec magic;
    READ_OF_BLOCK(plan, group, number, extremes, extremes);
    READ_OF_BLOCK(plan, group, number, magic, magic);
    struct relation relation = relation_of(plan, group, extremes, magic);
    KEEP_OF_BLOCK(plan, group, number, relation, relation);
}

/* R_b * S_b, once they are related. Where the row's max is kept out of its sum, the block's own belongs to it unless
 * they are the same. */
static struct row_sums sums_in_row(const struct plan *plan, const struct group *group, ptrdiff_t number)
{
    struct row_sums sums;
    struct relation relation;
    READ_OF_BLOCK(plan, group, number, sums, sums);
    READ_OF_BLOCK(plan, group, number, relation, relation);
    if (keeps_max_out(plan)) {
        struct extremes extremes;
        struct pair largest;
        READ_OF_BLOCK(plan, group, number, extremes, extremes);
        READ_OF_BLOCK(plan, group, number, largest, largest);
        lane_mask same = equal(extremes.max, group->frame.max);
        struct pair all = add_pairs(sums.total, multiply_pairs(largest, (struct pair){sums.ties, splat(0)}));
        sums.total.high = choose(same, sums.total.high, all.high);
        sums.total.low = choose(same, sums.total.low, all.low);
        sums.ties = choose(same, sums.ties, splat(0));
    }
    struct pair total = {sums.total.high * relation.lowering, sums.total.low * relation.lowering};
    sums.total = multiply_pairs(total, relation.factor);
    return sums;
}

/* What the exponentials of a block are to be multiplied by on their way out. */
struct block_factors {
    int are_lowered; /* whether first by `lowering`, or at once by `factor` */
    vec lowering;
    struct pair factor;
};

static struct block_factors factors_of_block(const struct plan *plan, const struct group *group, ptrdiff_t number)
{
    if (!plan->sums_by_block) return (struct block_factors){0, splat(1), group->factor};
    struct relation relation;
    READ_OF_BLOCK(plan, group, number, relation, relation);
    int are_lowered = any_lane(differ(relation.lowering, splat(1)) & first_lanes(group->count));
    return (struct block_factors){are_lowered, relation.lowering, multiply_pairs(group->factor, relation.factor)};
}

#endif
