/* What is known of a row's blocks. Of long rows (plan->sums_by_block) each is summed relative to its own max, m_b: that
 * is found soon before the block is summed, and its logits come from memory once. With the row's max m
 *   S = sum(R_b * S_b),   S_b = sum(e**(x - m_b)),   R_b = e**(m_b - m).
 * As exponentials are kept times 2**-N, with N from their max (vector_exp.h), R_b becomes a power of two and exact,
 * unless one of the maxima is so large that it is subtracted from the logits first. */
#ifndef FASTSOFTMAX_BLOCKS_H
#define FASTSOFTMAX_BLOCKS_H

#include "group.h"

/* R_b = 2**exponent * mantissa; 0 for what is too low to count. */
struct relation {
    vec exponent;
    struct pair mantissa;
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

/* 2**exponent of each lane, exponents within the normal range. */
INLINE vec power_of_two(vec exponent)
{
    return (vec)((__builtin_convertvector(exponent, ivec) + EXPONENT_BIAS) << MANTISSA_BITS);
}

/* The same for lower exponents, down to -LOWEST_BLOCK, as the product of two. */
INLINE void split_power(vec exponent, vec *first, vec *second)
{
    vec normal = max(splat((real)(1 - EXPONENT_BIAS)), exponent);
    *first = power_of_two(normal);
    *second = power_of_two(exponent - normal);
}

/* Where R_b is less than 2**-LOWEST_BLOCK all exponentials of the block would be 0 in the frame of the row. */
#define LOWEST_BLOCK ((real)(EXPONENT_BIAS - 1 + SUM_EXPONENT))

/* set_frame and shifted_exp, not inlined: they are called once or twice a block. */
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
    lane_mask others = differ(magic, magic) | differ(of_row->shift.subtract, zero);
    vec exponent = min(zero, choose(others, zero, (of_row->shift.magic - magic) * splat((real)1 / TABLE_SIZE)));
    lane_mask none = less(exponent, splat(-LOWEST_BLOCK));
    struct pair mantissa = {one, zero};
    if (any_lane(others & first_lanes(group->count))) {
        /* The exponentials of the block's max in both frames, their quotient times SUM_SCALE. */
        struct frame frame;
        set_frame_of_block(plan, &frame, of_block, group->temperature);
        struct pair in_row = exponential_in(plan, &of_row->shift, frame.max);
        struct pair in_block = exponential_in(plan, &frame.shift, frame.max);
        struct pair quotient = divide_pairs(in_row, (struct pair){in_block.high * down, in_block.low * down});
        lane_mask same = equal(frame.max, of_row->max);
        none |= others & equal(in_row.high, zero) & ~same;
        quotient.high = choose(same, splat(SUM_SCALE), quotient.high);
        quotient.low = choose(same, zero, quotient.low);
        ivec bits = ((ivec)quotient.high >> MANTISSA_BITS) - EXPONENT_BIAS;
        vec inverse = power_of_two(-__builtin_convertvector(bits, vec));
        exponent = choose(others, __builtin_convertvector(bits - SUM_EXPONENT, vec), exponent);
        mantissa.high = choose(others, quotient.high * inverse, mantissa.high);
        mantissa.low = choose(others, quotient.low * inverse, mantissa.low);
    }
    return (struct relation){choose(none, zero, exponent),
                             {choose(none, zero, mantissa.high), choose(none, zero, mantissa.low)}};
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
    struct pair total = multiply_pairs(sums.total, relation.mantissa);
    vec first, second;
    split_power(relation.exponent, &first, &second);
    sums.total = (struct pair){total.high * first * second, total.low * first * second};
    return sums;
}

/* What the exponentials of a block are to be multiplied by on their way out. */
struct block_factors {
    int are_lowered; /* whether first by `lowering`, a power of two, or at once by `factor` */
    vec lowering;
    struct pair factor;
};

/* Where no exponentials are stored. (Not zeros alone: see clear_sums.) */
INLINE struct block_factors no_factors(void)
{
    return (struct block_factors){0, splat(1), {splat(1), splat(0)}};
}

/* From it on a factor is a normal number and keeps 8 bits of its low part. */
#define LOWEST_FACTOR (REAL_TRUE_MIN * 256 * (real)((integer)1 << MANTISSA_BITS))

static struct block_factors factors_of_block(const struct plan *plan, const struct group *group, ptrdiff_t number)
{
    if (!plan->sums_by_block) return (struct block_factors){0, splat(1), group->factor};
    struct relation relation;
    READ_OF_BLOCK(plan, group, number, relation, relation);
    struct pair factor = multiply_pairs(group->factor, relation.mantissa);
    vec first, second;
    split_power(relation.exponent, &first, &second);
    vec whole = factor.high * first * second;
    /* Exponentials times a power of two become what they are in the frame of the row, but for what is 0 there. */
    lane_mask at_once = equal(factor.high, splat(0)) | ~less(absolute(whole), splat(LOWEST_FACTOR));
    vec power = choose(at_once, first * second, second);
    return (struct block_factors){any_lane(~at_once & first_lanes(group->count)),
                                  choose(at_once, splat(1), first),
                                  {factor.high * power, factor.low * power}};
}

#endif
