/* Columns longer than a block, read and written where they lie if nothing but their exponentials is summed and they
 * fill their group; others are copied to strips and back, block by block. Of each line (what the columns have at one
 * index along the axis, see panel.h) a group takes a vector, which is a step of its strip.
 *
 * Groups side by side go through a phase together, some lines after others, so that memory is read in order and in long
 * runs. What was found so far of each group waits meanwhile, in a block's sums all of its chains. */
#ifndef FASTSOFTMAX_LONG_COLUMNS_H
#define FASTSOFTMAX_LONG_COLUMNS_H

#include "blocks.h"

/* Lines that one group goes through before the next does: some steps of each chain. Measured with 8 to 1000 columns:
 * half as many take 0.9 to 1.2 of the time, a quarter 0.9 to 1.4, twice or four times as many 0.9 to 1.1. */
#define LINES_OF_PART (8 * CHAINS)

INLINE int lies_in_lines(const struct plan *plan, const struct group *group)
{
    return are_neighbours(&group->rows[FSM_X]) && (!writes_elements(plan) || are_neighbours(&group->rows[FSM_OUT]));
}

/* Reals from a line to the next one. */
INLINE ptrdiff_t step_between_lines(const struct row_pointers *rows)
{
    return rows->axis_stride / (ptrdiff_t)sizeof(real);
}

/* The lines from number `first` to `end` of neighbouring groups, which are asked for a part ahead. */
INLINE struct lines_ahead lines_of_groups(const struct row_pointers *rows, ptrdiff_t count, ptrdiff_t first,
                                          ptrdiff_t end)
{
    ptrdiff_t stride = rows->axis_stride, bytes = count * VECTOR_BYTES, runs = end - first - LINES_OF_PART;
    if (runs <= 0) return no_lines(row_start(rows, 0));
    const char *start = row_start(rows, 0) + (first + LINES_OF_PART) * stride;
    return bytes == stride ? runs_of_lines(start, runs * bytes, 0, 1) : runs_of_lines(start, bytes, stride, runs);
}

/* The same, and those of the output which belong to them, if they are as far apart. */
INLINE struct lines_ahead lines_of_groups_and_output(const struct group *group, ptrdiff_t count, ptrdiff_t first,
                                                     ptrdiff_t end)
{
    const struct row_pointers *x = &group->rows[FSM_X], *out = &group->rows[FSM_OUT];
    struct lines_ahead lines = lines_of_groups(x, count, first, end);
    if (x->axis_stride == out->axis_stride) lines.to_output = out->first - x->first;
    return lines;
}

/* ---- Phase 1 ---------------------------------------------------------------------------- */

NOT_INLINE struct extremes extremes_of_lines(struct extremes found, const real *x, ptrdiff_t step, ptrdiff_t length,
                                             struct lines_ahead *lines_ahead)
{
    struct lines_ahead lines = *lines_ahead;
    for (ptrdiff_t i = 0; i < length; i++) {
        prefetch_line(&lines);
        found = with_elements(found, load(x + i * step));
    }
    *lines_ahead = lines;
    return found;
}

/* Of the elements [first, end) of each row. */
static void extremes_of_columns(const struct group groups[], ptrdiff_t count, ptrdiff_t first, ptrdiff_t end,
                                struct extremes extremes[])
{
    struct lines_ahead lines = lines_of_groups(&groups->rows[FSM_X], count, first, end);
    EACH_GROUP(g, count) extremes[g] = no_extremes();
    for (ptrdiff_t i = first; i < end; i += LINES_OF_PART) {
        ptrdiff_t length = end - i < LINES_OF_PART ? end - i : LINES_OF_PART;
        EACH_GROUP(g, count) {
            const struct row_pointers *x = &groups[g].rows[FSM_X];
            extremes[g] = extremes_of_lines(extremes[g], element(x, 0, i), step_between_lines(x), length, &lines);
        }
    }
}

/* ---- Phase 2 ---------------------------------------------------------------------------- */

/* Of a block; functions[g] sums the strips of group g, and stores its exponentials in the output if `stores`. */
static void sums_in_parts(const struct plan *plan, const struct group groups[], const struct frame frames[],
                          ptrdiff_t count, ptrdiff_t block, sums_function *const functions[], int stores,
                          struct row_sums sums[], void *scratch)
{
    ptrdiff_t first = block_start(plan, block), length = block_length(plan, block);
    struct lines_ahead lines = stores ? lines_of_groups_and_output(groups, count, first, first + length)
                                      : lines_of_groups(&groups->rows[FSM_X], count, first, first + length);
    struct sum_strips strips = {.vertical = 1, .end = 1, .lines = &lines};
    strips.x_step = step_between_lines(&groups->rows[FSM_X]);
    if (stores) strips.e_step = step_between_lines(&groups->rows[FSM_OUT]);
    for (ptrdiff_t i = 0; i < length; i += LINES_OF_PART) {
        strips.length = length - i < LINES_OF_PART ? length - i : LINES_OF_PART;
        strips.is_first = i == 0;
        strips.is_last = i + strips.length == length;
        EACH_GROUP(g, count) {
            strips.x[0] = element(&groups[g].rows[FSM_X], 0, first + i);
            if (stores) strips.e[0] = element(&groups[g].rows[FSM_OUT], 0, first + i);
            strips.chains = (struct chain *)scratch + g * CHAINS;
            strips.shift = &frames[g].shift;
            strips.row_max = &frames[g].max;
            functions[g](&strips, &sums[g]);
        }
    }
}

/* ---- Phase 3 ---------------------------------------------------------------------------- */

NOT_INLINE void write_strided(const real *from, ptrdiff_t from_step, real *to, ptrdiff_t to_step, ptrdiff_t length,
                              enum last_step last, const struct last_values *values, struct lines_ahead *lines_ahead)
{
    struct lines_ahead lines = *lines_ahead;
#define WRITE(last_step)                                                                           \
    for (ptrdiff_t i = 0; i < length; i++) {                                                       \
        prefetch_line(&lines);                                                                     \
        store(to + i * to_step, after_last_step(load(from + i * from_step), last_step, values));   \
    }
    if (last == SCALE) {
        WRITE(SCALE)
    } else if (last == SCALE_CAREFULLY) {
        WRITE(SCALE_CAREFULLY)
    } else {
        WRITE(TO_LOG)
    }
#undef WRITE
    *lines_ahead = lines;
}

/* The exponentials of a block in the output. */
static void lower_columns(const struct plan *plan, const struct group *group, ptrdiff_t block, vec lowering)
{
    const struct row_pointers *out = &group->rows[FSM_OUT];
    for (ptrdiff_t i = block_start(plan, block); i < block_start(plan, block) + block_length(plan, block); i++)
        store(element(out, 0, i), load(element(out, 0, i)) * lowering);
}

/* A block of each row whose last step it is, from their exponentials in the output or from x. */
static void write_columns(const struct plan *plan, const struct group groups[], ptrdiff_t count, ptrdiff_t block)
{
    ptrdiff_t first = block_start(plan, block), end = first + block_length(plan, block);
    enum last_step last[BATCH_GROUPS];
    struct last_values values[BATCH_GROUPS];
    int is_log = plan->operation == FSM_LOG_SOFTMAX;
    EACH_GROUP(g, count) {
        last[g] = last_step_of_group(plan, &groups[g]);
        struct block_factors factors = no_factors();
        if (!is_log && last[g] != COPY) factors = factors_of_block(plan, &groups[g], block);
        if (factors.are_lowered) lower_columns(plan, &groups[g], block, factors.lowering);
        values[g] = last_values_of(&groups[g], last[g], &factors.factor);
    }
    struct lines_ahead lines = is_log ? lines_of_groups_and_output(groups, count, first, end)
                                      : lines_of_groups(&groups->rows[FSM_OUT], count, first, end);
    for (ptrdiff_t i = first; i < end; i += LINES_OF_PART) {
        ptrdiff_t length = end - i < LINES_OF_PART ? end - i : LINES_OF_PART;
        EACH_GROUP(g, count) {
            const struct row_pointers *out = &groups[g].rows[FSM_OUT], *from = is_log ? &groups[g].rows[FSM_X] : out;
            if (last[g] == COPY) continue;
            write_strided(element(from, 0, i), step_between_lines(from), element(out, 0, i), step_between_lines(out),
                          length, last[g], &values[g], &lines);
        }
    }
}

#endif
