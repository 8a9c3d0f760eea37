/* A group of rows on its way through the three phases, and its operands in memory.
 *
 * Each lane of the group's vectors is a row. What is done element by element goes strip by
 * strip: a vertical group has one, whose vectors hold one element of every row; a
 * horizontal group has one for each row, and then the row's value in every lane. */
#ifndef FASTSOFTMAX_GROUP_H
#define FASTSOFTMAX_GROUP_H

#include "elements.h"
#include "kernels.h"
#include "strips.h"
#include "sums.h"

/* What exponentials are taken relative to: the max of a row, or of a block of it. */
struct frame {
    vec max;
    struct exp_shift shift;
    lane_mask clamped; /* see set_shift */
};

struct group {
    ptrdiff_t first_row, count; /* rows, at most LANES */
    struct row_pointers rows[FSM_OPERANDS];
    real *blocks; /* of rows that have several: see blocks.h */
    vec temperature;
    struct frame frame;
    struct exponential largest; /* of frame.max */
    struct row_sums sums;
    struct pair rest; /* the sum without the largest exponentials, in units of one of them */
    struct pair log_sum;
    struct pair factor; /* of each exponential in the output */
    vec reach;          /* from the max down to where no element lies below, or to 0 where none is negative */
    /* Whether any row may have a result of 1 or a subnormal one (see end_softmax, set_unit); before end_groups, whether
     * that is to be found out. */
    int needs_care;
    vec certain_above, unit; /* see struct care */
    /* The losses' own: see losses.h. */
    int64_t label[LANES];
    vec weight, target, label_logit;
    vec at_label; /* of the gradient */
    struct pair upstream, slope; /* the gradient is slope * p - upstream * t */
    vec unused;                  /* for the size */
};
/* Else one field of all the groups of a batch would lie in one set of the first cache, and a load wait for the store to
 * another group's (measured: logsumexp of 3 classes takes 1.2 times as long). */
_Static_assert(sizeof(struct group) % 4096 != 0, "groups lie a multiple of 4096 bytes apart");

/* Over the groups of a batch. GCC, which knows how many there are at most, would write the body so many times. */
#define EACH_GROUP(g, count) _Pragma("GCC unroll 1") for (ptrdiff_t g = 0; g < (count); g++)

/* The sum's logarithm is wanted, so the max is kept out of it. */
INLINE int keeps_max_out(const struct plan *plan)
{
    switch (plan->operation) {
    case FSM_LOG_SOFTMAX:
    case FSM_LOGSUMEXP:
    case FSM_SELECT:
    case FSM_CROSS_ENTROPY: return 1;
    default: return 0;
    }
}

INLINE ptrdiff_t block_start(const struct plan *plan, ptrdiff_t block) { return block * plan->block_length; }

INLINE ptrdiff_t block_length(const struct plan *plan, ptrdiff_t block)
{
    if (plan->blocks == 1) return plan->job->n;
    ptrdiff_t left = plan->job->n - block_start(plan, block);
    return left < plan->block_length ? left : plan->block_length;
}

/* ---- Strips ----------------------------------------------------------------------------- */

INLINE ptrdiff_t strip_count(const struct plan *plan, const struct group *group)
{
    return plan->vertical ? 1 : group->count;
}

/* Reals in a strip of the block. */
INLINE ptrdiff_t strip_size(const struct plan *plan, ptrdiff_t block)
{
    return block_length(plan, block) * (plan->vertical ? LANES : 1);
}

/* Whether none of the strips [first, end) has a row that must be clamped. */
INLINE int are_unclamped(const struct plan *plan, const struct frame *frame, ptrdiff_t first, ptrdiff_t end)
{
    if (plan->vertical) return !any_lane(frame->clamped);
    for (ptrdiff_t strip = first; strip < end; strip++)
        if (is_set(frame->clamped, strip)) return 0;
    return 1;
}

/* Where element i of the row in this lane lies in the row's strip. */
INLINE ptrdiff_t index_in_strip(const struct plan *plan, ptrdiff_t lane, ptrdiff_t i)
{
    return plan->vertical ? i * LANES + lane : i;
}

/* Aligned to 64 bytes, as all that is counted in strips and groups: no vertical strip has a vector to be cut. */
INLINE real *strip_memory(const struct plan *plan, void *scratch, enum strip_use use)
{
    return (real *)(void *)((char *)scratch + use * plan->strip_bytes);
}

/* Vertical strips of rows of one block are read before the first phase, stay in scratch
 * memory through all of them and go home after the last (run_batch, run_panel). */
INLINE int stays_in_scratch(const struct plan *plan) { return plan->vertical && plan->blocks == 1; }

INLINE const real *read_operand(const struct plan *plan, const struct group *group, enum fsm_operand_name name,
                                ptrdiff_t block, ptrdiff_t strip, real *scratch)
{
    return read_strip(&group->rows[name], plan->vertical, strip, block_start(plan, block), block_length(plan, block),
                      scratch);
}

/* Where a streamed row's exponentials wait until they are written; plan->waiting_groups groups of them have memory. The
 * row begins in a cache line where its output does: vectors are aligned in both. */
INLINE real *waiting_row(const struct plan *plan, const struct group *group, ptrdiff_t block, ptrdiff_t row,
                         void *scratch)
{
    ptrdiff_t place = row + group->first_row / plan->group_rows % plan->waiting_groups * plan->group_rows;
    char *waiting = (char *)strip_memory(plan, scratch, WHOLE_ROWS) + place * plan->waiting_bytes;
    uintptr_t begin = (uintptr_t)row_start(&group->rows[FSM_OUT], row) % CACHE_LINE_BYTES;
    return (real *)(void *)(waiting + begin) + block_start(plan, block);
}

/* Where the blocks of a thread's group of this number are kept. */
INLINE void *group_blocks(const struct plan *plan, void *scratch, ptrdiff_t number)
{
    return (char *)scratch + plan->blocks_at + number * plan->blocks_bytes;
}

/* kept = x, but -inf where b is 0 */
INLINE void drop_zeros_step(ptrdiff_t i, ptrdiff_t lanes, const real *x, const real *b, real *kept)
{
    lane_mask absent = equal(load_lanes(b + i, lanes), splat(0));
    store_lanes(kept + i, lanes, choose(absent, splat(-(real)__builtin_inf()), load_lanes(x + i, lanes)));
}

/* x with -inf where b is 0, so that those elements are absent. */
static const real *read_weighted_x(const struct plan *plan, const struct group *group, ptrdiff_t block,
                                   ptrdiff_t strip, void *scratch)
{
    real *copy = strip_memory(plan, scratch, STRIP_X);
    const real *x = read_operand(plan, group, FSM_X, block, strip, copy);
    const real *b = read_operand(plan, group, FSM_SECOND, block, strip, strip_memory(plan, scratch, STRIP_SECOND));
    EACH_VECTOR(strip_size(plan, block), drop_zeros_step, x, b, copy);
    return copy;
}

INLINE const real *read_x(const struct plan *plan, const struct group *group, ptrdiff_t block, ptrdiff_t strip,
                          void *scratch)
{
    if (plan->is_weighted) return read_weighted_x(plan, group, block, strip, scratch);
    return read_operand(plan, group, FSM_X, block, strip, strip_memory(plan, scratch, STRIP_X));
}

static const real *read_second(const struct plan *plan, const struct group *group, ptrdiff_t block, ptrdiff_t strip,
                               void *scratch)
{
    return read_operand(plan, group, FSM_SECOND, block, strip, strip_memory(plan, scratch, STRIP_SECOND));
}

/* ---- Rows ------------------------------------------------------------------------------- */

static void point_to_rows(const struct plan *plan, struct group *group, enum fsm_operand_name name)
{
    const struct fsm_job *job = plan->job;
    const struct fsm_operand *operand = &job->operands[name];
    struct row_pointers *rows = &group->rows[name];
    int inner = job->dimensions - 1;
    rows->axis_stride = operand->axis_stride;
    rows->row_stride = operand->strides[inner];
    rows->count = (int)group->count;
    rows->first = operand->data + row_offset(job, operand, group->first_row);
    rows->is_regular =
        group->count == LANES && (inner == 0 || group->first_row % job->shape[inner] + LANES <= job->shape[inner]);
    if (rows->is_regular) return;
    ptrdiff_t inner_row = inner == 0 ? 0 : group->first_row % job->shape[inner];
    char *start = rows->first;
    ptrdiff_t lanes = plan->vertical ? LANES : group->count;
    for (ptrdiff_t lane = 0; lane < lanes; lane++) {
        rows->lane[lane] = start;
        if (lane + 1 >= group->count) continue;
        inner_row++;
        if (inner == 0 || inner_row < job->shape[inner]) {
            start += rows->row_stride;
        } else {
            inner_row = 0;
            start = operand->data + row_offset(job, operand, group->first_row + lane + 1);
        }
    }
}

/* A double of each row, 1 where the operand is absent. */
INLINE double row_double(const struct group *group, const struct plan *plan, enum fsm_operand_name name,
                         ptrdiff_t lane)
{
    if (!has(plan, name)) return 1;
    return *(const double *)(const void *)row_start(&group->rows[name], lane);
}

/* The nearest temperature that a real can be. */
static real temperature_of(double given)
{
    if (given > (double)REAL_MAX) return REAL_MAX;
    if (given < (double)REAL_TRUE_MIN) return REAL_TRUE_MIN;
    return (real)given;
}

static void begin_rows(const struct plan *plan, struct group *group, ptrdiff_t first, ptrdiff_t last)
{
    group->first_row = first;
    group->count = last - first;
    /* A known plan's two operands: the compiler does not unroll the loop below. */
    if (plan->operands == (1u << FSM_X | 1u << FSM_OUT)) {
        point_to_rows(plan, group, FSM_X);
        point_to_rows(plan, group, FSM_OUT);
        return;
    }
    for (unsigned left = plan->operands; left; left &= left - 1)
        point_to_rows(plan, group, (enum fsm_operand_name)__builtin_ctz(left));
    if (!plan->is_scaled) return;
    /* One for all, as a rule; and for lanes without a row. */
    group->temperature = splat(temperature_of(row_double(group, plan, FSM_TEMPERATURE, 0)));
    const struct row_pointers *temperatures = &group->rows[FSM_TEMPERATURE];
    if (temperatures->is_regular && temperatures->row_stride == 0) return;
    for (ptrdiff_t lane = 1; lane < group->count; lane++)
        group->temperature[lane] = temperature_of(row_double(group, plan, FSM_TEMPERATURE, lane));
}

/* For a group of which a row needs care; a row that does not has a unit of 1. */
NOT_INLINE struct last_values careful_values(const struct group *group, const struct pair *factor)
{
    vec inverse = power_quotient(0, group->unit);
    struct last_values values;
    values.factor = (struct pair){factor->high * inverse, factor->low * inverse};
    /* Less than the quotient, lest what is below it be normal. */
    const vec margin = splat(1 - (real)0x1p-20);
    vec small_below = power_quotient(1 - EXPONENT_BIAS, group->unit) / absolute(values.factor.high) * margin;
    small_below = choose(equal(inverse, splat(1)), splat(0), small_below);
    values.care = (struct care){group->certain_above, group->unit, small_below};
    return values;
}

/* Elements of the longest rows of which needs_no_care is asked. With -inf among 10 they take 0.93 to 0.96 of the time
 * (with vectors of 32 bytes 0.81 to 0.86), among 48 1.03; rows that do need care up to 1.06, if some results are 0. */
#define ASKED_ROW ((ptrdiff_t)32)

/* Of a group that seems to need care, by how low its rows reach: whether it does not, as no result is 1 for being
 * certain, and none but 0, nor its exponential's product with the factor's low part, is subnormal (what is -inf reaches
 * far). Then all that care does is exact, and the bits are the same without. */
NOT_INLINE int needs_no_care(const struct group *group, const real *exponentials, ptrdiff_t size)
{
    /* Where a row does not reach down to where exponentials are 0 its lowest is too small, as a rule. */
    lane_mask small = differ(group->unit, splat(1)) & less(group->reach, splat((SUM_EXPONENT + EXPONENT_BIAS) * LN2));
    /* With a negative factor 0 would lose its sign if the low part is positive. */
    lane_mask other = less(group->certain_above, splat(1)) | less(group->factor.high, splat(0));
    if (any_lane(small | other)) return 0;
    vec smallest = splat((real)__builtin_inf());
    /* One bit less: of 0 that makes a NaN, which is not the smaller. */
    for (ptrdiff_t i = 0; i < size; i += LANES) smallest = min((vec)((ivec)load(exponentials + i) - 1), smallest);
    vec bound = power_quotient(2 - EXPONENT_BIAS, splat(1)) / absolute(group->factor.low);
    return !any_lane(~less(bound, smallest) & first_lanes(group->count));
}

/* `factor` is that of the exponentials. */
INLINE struct last_values last_values_of(const struct group *group, enum last_step step, const struct pair *factor)
{
    struct last_values values;
    if (step == SCALE_CAREFULLY) return careful_values(group, factor);
    if (step == TO_LOG) {
        values.row_max = group->frame.max;
        values.log_sum = group->log_sum.high;
    } else if (step == SCALE_BUT_LABEL) {
        /* Where a row is ignored 1 / sum may be NaN, and so may the gradient at its label. */
        lane_mask ignored = equal(group->weight, splat(0));
        values.factor.high = choose(ignored, splat(0), factor->high);
        values.factor.low = choose(ignored, splat(0), factor->low);
        real labels[LANES]; /* of a panel: below BLOCK, and so exact */
        for (ptrdiff_t lane = 0; lane < LANES; lane++) labels[lane] = (real)group->label[lane];
        values.label = choose(ignored, splat(-1), load(labels));
        values.at_label = group->at_label;
    } else {
        values.factor = *factor;
    }
    return values;
}

/* What is left to do with the strip of a group when all rows have their sums; COPY: what write_phase does. */
INLINE enum last_step last_step_of_group(const struct plan *plan, const struct group *group)
{
    switch (plan->operation) {
    case FSM_SOFTMAX: return group->needs_care ? SCALE_CAREFULLY : SCALE;
    case FSM_LOG_SOFTMAX: return plan->is_scaled ? COPY : TO_LOG;
    case FSM_CROSS_ENTROPY:
        if (plan->has_dense_targets) return COPY;
        if (any_lane(equal(group->weight, splat(0)) & first_lanes(group->count))) return COPY;
        return group->needs_care ? SCALE_CAREFULLY : SCALE;
    default: return COPY;
    }
}

/* The exponentials e of a strip; `factors` are theirs. */
static void write_scaled_strip(const struct plan *plan, const struct group *group, ptrdiff_t strip,
                               const struct pair *factors, const real *e, real *out, ptrdiff_t size)
{
    struct pair factor = pair_in_strip(plan->vertical, factors, strip);
    if (group->needs_care) {
        struct last_values values = last_values_of(group, SCALE_CAREFULLY, factors);
        if (!plan->vertical) values = last_values_in_strip(&values, strip, SCALE_CAREFULLY);
        write_carefully(e, out, size, &values);
    } else if (plan->streamed) {
        stream_scaled(e, out, size, factor);
    } else {
        write_scaled(e, out, size, factor);
    }
}

static void write_row_values(const struct group *group, enum fsm_operand_name name, vec values)
{
    if (are_neighbours(&group->rows[name])) {
        store((real *)(void *)group->rows[name].first, values);
        return;
    }
    for (ptrdiff_t lane = 0; lane < group->count; lane++)
        *(real *)(void *)row_start(&group->rows[name], lane) = values[lane];
}

#endif
