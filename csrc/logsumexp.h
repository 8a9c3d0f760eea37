/* From a row's sums to its logsumexp. */
#ifndef FASTSOFTMAX_LOGSUMEXP_H
#define FASTSOFTMAX_LOGSUMEXP_H

#include "group.h"
#include "vector_log.h"

/* In two steps, as all that follows the sums: see end_groups. */
INLINE void set_rest(struct group *group)
{
    group->rest = divide_pairs(group->sums.total, as_pair(group->largest));
}

/* ln S as a pair; NaN where the row holds a NaN, an infinite max or nothing. */
INLINE void set_log_sum(struct group *group) { group->log_sum = log_of_sum(group->sums.ties, group->rest); }

/* Where q is less than 2 to minus this, ln(1 + q) is q as exactly as it is wanted, and powers of q might be
 * subnormal. */
#define SMALL_REST_BITS (REAL_BITS == 32 ? 40 : 62)

/* The same where q may be small, and even subnormal itself: beside a single max it is the logarithm then, and nothing
 * beside several. */
NOT_INLINE void set_log_sum_carefully(struct group *group)
{
    const vec up = splat(SUM_SCALE), unit = splat(1 / SUM_SCALE);
    struct pair total = group->sums.total, largest = as_pair(group->largest);
    lane_mask is_small = less(total.high, splat(SUM_SCALE / (real)((uint64_t)1 << SMALL_REST_BITS)));
    struct pair larger = {only(~is_small, total.high), only(~is_small, total.low)};
    group->log_sum = log_of_sum(group->sums.ties, divide_pairs(larger, largest));
    struct pair enlarged = divide_pairs((struct pair){total.high * up, total.low * up}, largest);
    struct pair q = fast_two_sum(enlarged.high, enlarged.low);
    const vec least = power_quotient(1 - EXPONENT_BIAS, unit);
    q.high = from_units(q.high, less(q.high, least), unit, (ivec){0});
    q.low = from_units(q.low, less(absolute(q.low), least), unit, sign_of(q.low));
    is_small &= equal(group->sums.ties, splat(1));
    group->log_sum.high = choose(is_small, q.high, group->log_sum.high);
    group->log_sum.low = choose(is_small, q.low, group->log_sum.low);
}

/* max + log_sum; the max itself where it is infinite, unless there is a NaN. */
static vec logsumexp_of(const struct group *group, struct pair log_sum)
{
    struct pair sum = two_sum(group->frame.max, log_sum.high);
    vec finite = sum.high + (sum.low + log_sum.low);
    vec nan_or_zero = group->sums.total.high * splat(0);
    return choose(less(splat(REAL_MAX), absolute(group->frame.max)), group->frame.max + nan_or_zero, finite);
}

/* With factors: sum(b * e**x) = e**max * (ties + q), of either sign. An infinite element
 * or factor makes ties or the total infinite. */
static void end_weighted(const struct plan *plan, struct group *group)
{
    const vec infinity = splat((real)__builtin_inf()), zero = splat(0), nan = splat((real)__builtin_nan(""));
    const vec up = splat(SUM_SCALE);
    vec ties = group->sums.ties, total = group->sums.total.high;
    struct pair q = group->rest;
    /* Where ties and q nearly cancel, the low part may be all that is left, or as large as the high one. */
    struct pair sum = two_sum(ties, q.high);
    sum = two_sum(sum.high, sum.low + q.low);
    /* What is left may be too small a part of the largest exponential: it is taken times SUM_SCALE, before the division
     * where there are no ties. */
    lane_mask is_small = less(absolute(sum.high), splat(1 / SUM_SCALE)), has_ties = differ(ties, zero);
    struct pair largest = as_pair(group->largest);
    struct pair enlarged = divide_pairs((struct pair){total * up, group->sums.total.low * up}, largest);
    enlarged = two_sum(choose(has_ties, sum.high * up, enlarged.high), choose(has_ties, sum.low * up, enlarged.low));
    sum = (struct pair){choose(is_small, enlarged.high, sum.high), choose(is_small, enlarged.low, sum.low)};
    vec value = sum.high;
    /* Infinite terms decide alone; their pairs have no low part. */
    value = choose(equal(absolute(q.high), infinity), q.high + ties, value);
    value = choose(equal(absolute(ties), infinity), total + ties, value);
    value = choose(equal(group->frame.max, -infinity), zero, value);
    /* A NaN of x or b is in the total, whatever became of it on the way here. */
    value = choose(equal(total, total) & equal(ties, ties), value, nan);

    lane_mask negative = less(value, zero);
    struct pair magnitude = {choose(negative, -sum.high, sum.high), choose(negative, -sum.low, sum.low)};
    struct pair log_sum = log_of_sum(zero, magnitude);
    struct pair down = {splat(-SUM_EXPONENT * LN2_HIGH), splat(-SUM_EXPONENT * LN2_LOW)};
    down = add_pairs(log_sum, down);
    log_sum = (struct pair){choose(is_small, down.high, log_sum.high), choose(is_small, down.low, log_sum.low)};
    vec result = logsumexp_of(group, log_sum);
    result = choose(equal(value, zero), -infinity, result);
    result = choose(equal(absolute(value), infinity), infinity, result);
    result = choose(equal(value, value), result, nan);
    vec sign = choose(negative, splat(-1), choose(equal(value, zero), zero, splat(1)));
    sign = choose(equal(value, value), sign, nan);
    if (has(plan, FSM_SIGN_OUT)) write_row_values(group, FSM_SIGN_OUT, sign);
    else result = choose(negative, nan, result);
    write_row_values(group, FSM_ROW_OUT, result);
}

static void end_logsumexp(const struct plan *plan, struct group *group)
{
    if (plan->is_weighted) end_weighted(plan, group);
    else write_row_values(group, FSM_ROW_OUT, logsumexp_of(group, group->log_sum));
}

#endif
