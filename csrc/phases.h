/* The three phases of a group, each over a block of its rows: the max, the sums, the output; and what comes between
 * them. */
#ifndef FASTSOFTMAX_PHASES_H
#define FASTSOFTMAX_PHASES_H

#include "blocks.h"
#include "logsumexp.h"
#include "long_columns.h"
#include "losses.h"

INLINE int has_targets(const struct plan *plan)
{
    return plan->operation == FSM_CROSS_ENTROPY || plan->operation == FSM_GRAD_HESS;
}

/* `blocks` is where those of rows that have several are kept. */
static void begin(const struct plan *plan, struct group *group, ptrdiff_t first, ptrdiff_t last, void *blocks)
{
    begin_rows(plan, group, first, last);
    if (plan->blocks > 1) group->blocks = blocks;
    if (!has_targets(plan)) return;
    read_targets(plan, group);
    /* Block by block exponentials may have taken the logits' place when the max is known. */
    if (plan->sums_by_block) read_label_logits(group);
}

/* Groups of rows [first, last), `most` or fewer; returns how many. */
static ptrdiff_t begin_batch(const struct plan *plan, struct group *groups, ptrdiff_t most, ptrdiff_t first,
                             ptrdiff_t last, void *scratch)
{
    ptrdiff_t count = 0;
    for (ptrdiff_t row = first; count < most && row < last; count++) {
        ptrdiff_t end = row + plan->group_rows - (row + plan->skew) % plan->group_rows;
        if (end > last) end = last;
        begin(plan, &groups[count], row, end, plan->blocks > 1 ? group_blocks(plan, scratch, count) : NULL);
        if (plan->in_place && !lies_in_lines(plan, &groups[count])) return count ? count : 1;
        row = end;
    }
    return count;
}

static const real *x_of_strip(const struct plan *plan, const struct group *group, ptrdiff_t block, ptrdiff_t strip,
                              void *scratch)
{
    if (stays_in_scratch(plan)) return strip_memory(plan, scratch, STRIP_X);
    return read_x(plan, group, block, strip, scratch);
}

/* ---- Phase 1: the max, and how low the row reaches ------------------------------------------------ */

static void max_phase(const struct plan *plan, const struct group *group, ptrdiff_t block, struct extremes *result,
                      void *scratch)
{
    struct extremes of_strip[LANES];
    ptrdiff_t count = strip_count(plan, group), size = strip_size(plan, block);
    if (plan->in_place && lies_in_lines(plan, group)) {
        ptrdiff_t first = block_start(plan, block);
        extremes_of_columns(group, 1, first, first + block_length(plan, block), result);
        return;
    }
    for (ptrdiff_t strip = 0; strip < count; strip++)
        of_strip[strip] = extremes_of_strip(x_of_strip(plan, group, block, strip, scratch), size);
    *result = plan->vertical ? of_strip[0] : extremes_across_lanes(of_strip, count);
}

/* Where each of a row's elements is more than 2**-care_bits of the max, the others sum to too much for end_softmax to
 * find that certain, or for set_log_sum to need care, and no result is subnormal unless its factor is very small. (Such
 * gradients of float32 are computed in float64, see _losses.py.) */
INLINE real care_bits(const struct plan *plan)
{
    return keeps_max_out(plan) ? SMALL_REST_BITS - 1 : MANTISSA_BITS;
}

/* The rows with an exponential that may be 2**-bits of the largest or less. */
INLINE lane_mask reaching(const struct group *group, vec bits, int is_scaled)
{
    vec bound = bits * splat(LN2);
    if (is_scaled) bound *= group->temperature;
    return ~less(group->reach, bound);
}

INLINE void end_max(const struct plan *plan, struct group *group, struct extremes of_row)
{
    if (plan->operation == FSM_LOG_SOFTMAX_VJP) of_row.max = max(splat(-EXP_LIMIT), min(splat(EXP_LIMIT), of_row.max));
    set_frame(plan, &group->frame, of_row, group->temperature);
    group->reach = of_row.max - negative_part(of_row.low);
    group->needs_care = plan->job->n == 1 || any_lane(reaching(group, splat(care_bits(plan)), plan->is_scaled));
    if (keeps_max_out(plan) || group->needs_care)
        group->largest = shifted_exp(of_row.max, &group->frame.shift, plan->is_scaled, 0);
    if (has_targets(plan) && !plan->sums_by_block) read_label_logits(group);
}

static void end_max_batch(const struct plan *plan, struct group *groups, ptrdiff_t count,
                          const struct extremes *extremes)
{
    EACH_GROUP(g, count) end_max(plan, &groups[g], extremes[g]);
}

/* The frame of a block that is summed relative to its own max. */
static void begin_block(const struct plan *plan, const struct group *group, ptrdiff_t number, struct extremes extremes,
                        struct frame *frame)
{
    KEEP_OF_BLOCK(plan, group, number, extremes, extremes);
    set_frame_of_block(plan, frame, extremes, group->temperature);
    lane_mask is_plain = equal(frame->shift.subtract, splat(0)) & less(splat(-(real)__builtin_inf()), frame->max);
    vec magic = choose(is_plain, frame->shift.magic, splat((real)__builtin_nan("")));
    KEEP_OF_BLOCK(plan, group, number, magic, magic);
    if (!keeps_max_out(plan)) return;
    struct pair largest = exponential_in(plan, &frame->shift, frame->max);
    KEEP_OF_BLOCK(plan, group, number, largest, largest);
}

static void end_max_of_blocks(const struct plan *plan, struct group *group)
{
    struct extremes of_row = no_extremes(), of_block;
    for (ptrdiff_t number = 0; number < plan->blocks; number++) {
        READ_OF_BLOCK(plan, group, number, extremes, of_block);
        of_row = join(of_row, of_block);
    }
    end_max_batch(plan, group, 1, &of_row);
}

/* The same when all blocks have begun, and how their frames relate to the rows'. */
static void relate_blocks(const struct plan *plan, struct group *group)
{
    end_max_of_blocks(plan, group);
    for (ptrdiff_t number = 0; number < plan->blocks; number++) relate_block(plan, group, number);
}

/* ---- Phase 2: the sums ------------------------------------------------------------------ */

/* Each combination in use is a function, and so a loop, of its own. */
#define SUMS_FUNCTION(name, mode)                                                                  \
    NOT_INLINE void name(const struct sum_strips *strips, struct row_sums sums[])                  \
    {                                                                                              \
        sums_of_strips(strips, sums, mode);                                                        \
    }
SUMS_FUNCTION(sums_store, STORE)
SUMS_FUNCTION(sums_store_unclamped, STORE | UNCLAMPED)
SUMS_FUNCTION(sums_store_scaled, STORE | SCALED)
SUMS_FUNCTION(sums_log, KEEP_MAX_OUT)
SUMS_FUNCTION(sums_log_unclamped, KEEP_MAX_OUT | UNCLAMPED)
SUMS_FUNCTION(sums_log_scaled, KEEP_MAX_OUT | SCALED)
SUMS_FUNCTION(sums_log_store, KEEP_MAX_OUT | STORE)
SUMS_FUNCTION(sums_targets, KEEP_MAX_OUT | TARGETS)
SUMS_FUNCTION(sums_targets_store, KEEP_MAX_OUT | TARGETS | STORE)
SUMS_FUNCTION(sums_weighted, KEEP_MAX_OUT | WEIGHTED)
SUMS_FUNCTION(sums_products, PRODUCTS)
SUMS_FUNCTION(sums_distances, PRODUCTS | DISTANCES)

static sums_function *sums_function_of(const struct plan *plan)
{
    switch (plan->operation) {
    case FSM_SOFTMAX:
    case FSM_GRAD_HESS: return plan->is_scaled ? sums_store_scaled : sums_store;
    case FSM_CROSS_ENTROPY:
        if (plan->reads_targets) return has(plan, FSM_OUT) ? sums_targets_store : sums_targets;
        return has(plan, FSM_OUT) ? sums_log_store : sums_log;
    case FSM_SOFTMAX_VJP:
    case FSM_LOG_SOFTMAX_VJP: return sums_products;
    default:
        if (plan->is_weighted) return sums_weighted;
        return plan->is_scaled ? sums_log_scaled : sums_log;
    }
}

static sums_function *unclamped(sums_function *function)
{
    if (function == sums_store) return sums_store_unclamped;
    if (function == sums_log) return sums_log_unclamped;
    return function;
}

INLINE int stores_exponentials(const struct plan *plan)
{
    switch (plan->operation) {
    case FSM_SOFTMAX:
    case FSM_GRAD_HESS: return 1;
    case FSM_CROSS_ENTROPY: return has(plan, FSM_OUT);
    default: return 0;
    }
}

/* Of a block of groups that lie in lines; frames[g] is that of group g. */
static void sums_of_long_columns(const struct plan *plan, const struct group groups[], const struct frame frames[],
                                 ptrdiff_t count, ptrdiff_t block, struct row_sums sums[], void *scratch)
{
    sums_function *functions[BATCH_GROUPS], *function = sums_function_of(plan);
    EACH_GROUP(g, count)
        functions[g] = any_lane(frames[g].clamped) ? function : unclamped(function);
    sums_in_parts(plan, groups, frames, count, block, functions, stores_exponentials(plan), sums, scratch);
}

static void sum_phase(const struct plan *plan, const struct group *group, const struct frame *frame, ptrdiff_t block,
                      struct row_sums *sums, void *scratch, struct lines_ahead *lines)
{
    struct row_sums of_row[LANES];
    if (plan->in_place && lies_in_lines(plan, group)) {
        sums_of_long_columns(plan, group, frame, 1, block, sums, scratch);
        return;
    }
    enum fsm_operation operation = plan->operation;
    sums_function *sums_of = sums_function_of(plan);
    int has_second = plan->reads_targets || (operation != FSM_GRAD_HESS && has(plan, FSM_SECOND));
    const struct row_pointers *out = &group->rows[FSM_OUT];
    ptrdiff_t first = block_start(plan, block), count = strip_count(plan, group);
    struct sum_strips strips;
    strips.vertical = plan->vertical;
    strips.is_short = plan->job->n < SHORT_ROW;
    strips.length = block_length(plan, block);
    strips.ahead = plan->ahead;
    strips.lines = lines;
    strips.x_step = strips.e_step = LANES;
    strips.chains = NULL;
    if (plan->has_uniform_targets) strips.distance_scale = distance_scale(plan->job);
    strips.shift = &frame->shift;
    strips.row_max = &frame->max;
    /* A horizontal group of short rows has one row (are_transposed of run.c), and its sums in every lane. */
    int is_total = plan->vertical || strips.is_short;
    /* All rows of a group in one call, unless they have to be copied to the one place there is for a strip. */
    int needs_copy = has_second || !has_unit_stride(&group->rows[FSM_X]) ||
                     (stores_exponentials(plan) && !has_unit_stride(out));
    ptrdiff_t together = needs_copy ? 1 : count;
    for (ptrdiff_t s = 0; s < count; s += together) {
        strips.first = s;
        strips.end = s + together;
        for (ptrdiff_t r = s; r < strips.end; r++) {
            strips.x[r] = x_of_strip(plan, group, block, r, scratch);
            if (!stores_exponentials(plan)) continue;
            strips.e[r] = plan->streamed
                              ? waiting_row(plan, group, block, r, scratch)
                              : strip_to_write(out, plan->vertical, r, first, strip_memory(plan, scratch, STRIP_X));
        }
        if (plan->reads_targets) strips.second = read_dense_targets(plan, group, block, s, scratch);
        else if (has_second) strips.second = read_second(plan, group, block, s, scratch);
        /* The sum of g alone; where there is a second operand the strips come one by one. */
        if (operation == FSM_LOG_SOFTMAX_VJP) strips.x[s] = NULL;
        int any_clamped = !needs_max(plan) || !are_unclamped(plan, frame, s, strips.end);
        sums_function *function = any_clamped ? sums_of : unclamped(sums_of);
        /* Before exponentials may take the logits' place; what it makes of the total is written over. */
        if (plan->has_uniform_targets) sums_distances(&strips, is_total ? sums : of_row);
        function(&strips, is_total ? sums : of_row);
        if (stores_exponentials(plan) && !plan->streamed && !stays_in_scratch(plan))
            for (ptrdiff_t r = s; r < strips.end; r++)
                write_strip(out, plan->vertical, r, group->count, first, strips.length, strips.e[r]);
    }
    if (!is_total)
        sums_across_lanes(of_row, count, keeps_max_out(plan), plan->has_dense_targets || sums_of == sums_products,
                          sums);
}

static void write_selected(const struct plan *plan, const struct group *group)
{
    const struct fsm_job *job = plan->job;
    const struct row_pointers *labels = &group->rows[FSM_LABELS];
    for (ptrdiff_t lane = 0; lane < group->count; lane++) {
        for (ptrdiff_t k = 0; k < job->n_selected; k++) {
            int64_t label = read_label(row_start(labels, lane) + k * labels->axis_stride, job->label_type);
            if (!is_class(job, label)) continue; /* changed since it was checked */
            real x = *element(&group->rows[FSM_X], lane, (ptrdiff_t)label), row_max = group->frame.max[lane];
            real distance = x - row_max;
            if (plan->is_scaled)
                distance = scaled_distance(splat(x), splat(row_max), splat(group->temperature[lane]))[0];
            *element(&group->rows[FSM_OUT], lane, k) = distance - group->log_sum.high[lane];
        }
    }
}

/* The unit of rows whose exponentials times the factor, or times its low part, may be subnormal, and whether there are
 * any. In that unit they are not, nor are they infinite: exponentials are less than 2**(SUM_EXPONENT + 1). */
NOT_INLINE void set_unit(struct group *group, real least_bits, int is_scaled)
{
    const integer lowest = 1 - EXPONENT_BIAS + MANTISSA_BITS + 1, most_bits = EXPONENT_BIAS - 3;
    ivec exponent = ((ivec)absolute(group->factor.high) >> MANTISSA_BITS) - EXPONENT_BIAS;
    vec exponent_real = __builtin_convertvector(exponent, vec);
    vec least_reach = max(splat(least_bits), exponent_real + splat(SUM_EXPONENT - 3 - lowest));
    lane_mask small = reaching(group, least_reach, is_scaled);
    vec bits = min(splat(most_bits), max(splat(0), splat(most_bits - SUM_EXPONENT) - exponent_real));
    group->unit = choose(small, power_of_two(-bits), splat(1));
    group->needs_care |= any_lane(small);
}

/* Bits that a row of n has to reach down for set_unit to find anything where the factor is the inverse of its sum, which
 * is less than n * 2**(SUM_EXPONENT + 1). */
INLINE real unit_bits(ptrdiff_t n)
{
    return (real)(EXPONENT_BIAS - MANTISSA_BITS - 6 - (64 - __builtin_clzll((unsigned long long)n)));
}

/* A row's only probability of 1 may come out an ulp off, its exponential being rounded: where
 * the others sum to less than a quarter of an ulp of 1 it is set right when it is written. */
static void end_softmax(const struct plan *plan, struct group *group)
{
    struct pair total = fast_two_sum(group->sums.total.high, group->sums.total.low);
    group->factor = reciprocal(total);
    group->certain_above = splat(2);
    if (!group->needs_care) return;
    struct pair largest = as_pair(group->largest);
    vec others = (total.high - largest.high) + (total.low - largest.low);
    lane_mask certain = less(absolute(others), total.high * splat((real)1 / ((integer)4 << MANTISSA_BITS)));
    group->certain_above = choose(certain, splat((real)0.5), splat(2));
    group->needs_care = any_lane(certain);
    vec bits = splat(unit_bits(plan->job->n));
    if (any_lane(reaching(group, bits, plan->is_scaled))) set_unit(group, care_bits(plan), plan->is_scaled);
    else group->unit = splat(1);
}

static void join_sums_of_blocks(const struct plan *plan, struct group *group)
{
    struct row_sums of_block;
    for (ptrdiff_t number = 0; number < plan->blocks; number++) {
        if (plan->sums_by_block) of_block = sums_in_row(plan, group, number);
        else READ_OF_BLOCK(plan, group, number, sums, of_block);
        group->sums = number ? add_sums(group->sums, of_block) : of_block;
    }
}

/* From the sums of `count` groups to what is written. Step by step for all of them: each step is a chain of operations
 * that wait for one another, and of the steps of one group in a row the processor could not see the next group's. */
static void end_groups(const struct plan *plan, struct group *groups, ptrdiff_t count, real *losses)
{
    enum fsm_operation operation = plan->operation;
    if (plan->is_weighted) {
        EACH_GROUP(g, count) set_rest(&groups[g]);
    } else if (keeps_max_out(plan)) {
        EACH_GROUP(g, count) if (!groups[g].needs_care) set_rest(&groups[g]);
        EACH_GROUP(g, count)
        {
            if (groups[g].needs_care) set_log_sum_carefully(&groups[g]);
            else set_log_sum(&groups[g]);
        }
    }
    EACH_GROUP(g, count) {
        struct group *group = &groups[g];
        switch (operation) {
        case FSM_SOFTMAX: end_softmax(plan, group); break;
        case FSM_GRAD_HESS:
            end_softmax(plan, group);
            end_grad_hess(plan, group);
            break;
        case FSM_LOGSUMEXP: end_logsumexp(plan, group); break;
        case FSM_SELECT: write_selected(plan, group); break;
        case FSM_CROSS_ENTROPY:
            end_cross_entropy(plan, group, losses ? losses + (group->first_row - groups->first_row) : NULL);
            break;
        case FSM_LOG_SOFTMAX:
        case FSM_SOFTMAX_VJP:
        case FSM_LOG_SOFTMAX_VJP: break;
        }
    }
    if (operation != FSM_CROSS_ENTROPY || !has(plan, FSM_OUT)) return;
    EACH_GROUP(g, count) set_gradient_factor(&groups[g]);
    if (plan->has_dense_targets) return;
    EACH_GROUP(g, count) {
        set_gradient_at_label(plan, &groups[g]);
        if (!groups[g].needs_care) continue;
        groups[g].certain_above = splat((real)__builtin_inf());
        groups[g].needs_care = 0;
        set_unit(&groups[g], care_bits(plan), plan->is_scaled);
    }
}

/* ---- Phase 3: the output ---------------------------------------------------------------- */

static void write_log_softmax(const struct plan *plan, const struct group *group, ptrdiff_t strip, const real *x,
                              real *out, ptrdiff_t size)
{
    vec row_max = in_strip(plan->vertical, &group->frame.max, strip);
    vec log_sum = in_strip(plan->vertical, &group->log_sum.high, strip);
    if (plan->is_scaled) {
        vec temperature = in_strip(plan->vertical, &group->temperature, strip);
        EACH_VECTOR(size, scaled_log_step, x, out, row_max, log_sum, temperature);
    } else if (plan->streamed) {
        STREAM_VALUES(size, log_probability, x, out, row_max, log_sum);
    } else {
        WRITE_VALUES(size, log_probability, x, out, row_max, log_sum);
    }
}

static void write_log_softmax_vjp(const struct plan *plan, const struct group *group, ptrdiff_t strip, const real *x,
                                  const real *g, real *out, ptrdiff_t size)
{
    struct exp_shift shift = shift_in_strip(plan->vertical, &group->frame.shift, strip, 0);
    struct pair total = infinite_alone(pair_in_strip(plan->vertical, &group->sums.cost, strip));
    vec n = (splat(ROUND_MAGIC) - shift.magic) / splat(TABLE_SIZE);
    vec half = (n * splat((real)0.5) + splat(ROUND_MAGIC)) - splat(ROUND_MAGIC);
    vec half_power = power_of_two(half), other_half = power_of_two(n - half);
    EACH_VECTOR(size, log_vjp_step, x, g, out, &shift, half_power, other_half, total);
}

static void write_phase(const struct plan *plan, const struct group *group, ptrdiff_t block, void *scratch)
{
    ptrdiff_t first = block_start(plan, block), length = block_length(plan, block), size = strip_size(plan, block);
    const struct row_pointers *out_rows = &group->rows[FSM_OUT];
    real *in_scratch = strip_memory(plan, scratch, STRIP_X);
    if (plan->in_place && lies_in_lines(plan, group) && last_step_of_group(plan, group) != COPY) {
        write_columns(plan, group, 1, block);
        if (plan->operation == FSM_CROSS_ENTROPY) write_at_labels_in_place(plan, group, block);
        return;
    }
    struct block_factors factors = no_factors();
    if (stores_exponentials(plan)) factors = factors_of_block(plan, group, block);
    for (ptrdiff_t strip = 0; strip < strip_count(plan, group); strip++) {
        real *out = strip_to_write(out_rows, plan->vertical, strip, first, in_scratch);
        const real *from = in_scratch;
        if (stores_exponentials(plan) && plan->streamed) from = waiting_row(plan, group, block, strip, scratch);
        else if (stores_exponentials(plan) && !stays_in_scratch(plan))
            from = read_operand(plan, group, FSM_OUT, block, strip, in_scratch);
        else if (!stays_in_scratch(plan)) from = read_x(plan, group, block, strip, scratch);
        if (factors.are_lowered) {
            EACH_VECTOR(size, lower_step, from, out, in_strip(plan->vertical, &factors.lowering, strip));
            from = out;
        }
        switch (plan->operation) {
        case FSM_SOFTMAX: write_scaled_strip(plan, group, strip, &factors.factor, from, out, size); break;
        case FSM_LOG_SOFTMAX: write_log_softmax(plan, group, strip, from, out, size); break;
        case FSM_CROSS_ENTROPY: write_gradient(plan, group, block, strip, &factors.factor, from, out, scratch); break;
        case FSM_GRAD_HESS: write_grad_hess(plan, group, block, strip, from, scratch); continue;
        case FSM_SOFTMAX_VJP: {
            struct pair dot = infinite_alone(pair_in_strip(plan->vertical, &group->sums.cost, strip));
            const real *g = read_second(plan, group, block, strip, scratch);
            EACH_VECTOR(size, vjp_step, from, g, out, dot);
            break;
        }
        case FSM_LOG_SOFTMAX_VJP: {
            const real *g = read_second(plan, group, block, strip, scratch);
            write_log_softmax_vjp(plan, group, strip, from, g, out, size);
            break;
        }
        case FSM_SELECT:
        case FSM_LOGSUMEXP: break;
        }
        if (!stays_in_scratch(plan)) write_strip(out_rows, plan->vertical, strip, group->count, first, length, out);
    }
}

#endif
