/* Horizontal groups of plain rows, where they go through their phases together: while one is summed, the max of the
 * next is found and the one before is written (see alongside.h). */
#ifndef FASTSOFTMAX_OVERLAP_H
#define FASTSOFTMAX_OVERLAP_H

#include "phases.h"

#define OVERLAPPED_FUNCTION(name, mode, last, streamed)                                            \
    NOT_INLINE void name(const struct sum_strips *strips, struct row_sums sums[],                  \
                         const struct strips_alongside *alongside)                                 \
    {                                                                                              \
        sums_with_alongside(strips, sums, alongside, mode, (struct writing){last, streamed});      \
    }
#define OVERLAPPED_FUNCTIONS(name, mode, last, streamed)                                           \
    OVERLAPPED_FUNCTION(name, mode, last, streamed)                                                \
    OVERLAPPED_FUNCTION(name##_unclamped, (mode) | UNCLAMPED, last, streamed)
OVERLAPPED_FUNCTIONS(store_beside_none, STORE, COPY, 0)
OVERLAPPED_FUNCTIONS(store_beside_scale, STORE, SCALE, 0)
OVERLAPPED_FUNCTIONS(store_beside_scale_or_one, STORE, SCALE_OR_ONE, 0)
OVERLAPPED_FUNCTIONS(log_beside_none, KEEP_MAX_OUT, COPY, 0)
OVERLAPPED_FUNCTIONS(log_beside_log, KEEP_MAX_OUT, TO_LOG, 0)
OVERLAPPED_FUNCTIONS(log_store_beside_none, KEEP_MAX_OUT | STORE, COPY, 0)
OVERLAPPED_FUNCTIONS(log_store_beside_scale, KEEP_MAX_OUT | STORE, SCALE, 0)
/* With a temperature they are always clamped. */
OVERLAPPED_FUNCTION(store_scaled_beside_none, STORE | SCALED, COPY, 0)
OVERLAPPED_FUNCTION(store_scaled_beside_scale, STORE | SCALED, SCALE, 0)
OVERLAPPED_FUNCTION(log_scaled_beside_none, KEEP_MAX_OUT | SCALED, COPY, 0)
#if HAS_STREAMS
OVERLAPPED_FUNCTIONS(store_beside_scale_streamed, STORE, SCALE, 1)
OVERLAPPED_FUNCTIONS(store_beside_scale_or_one_streamed, STORE, SCALE_OR_ONE, 1)
OVERLAPPED_FUNCTIONS(log_beside_log_streamed, KEEP_MAX_OUT, TO_LOG, 1)
OVERLAPPED_FUNCTIONS(log_store_beside_gradient_streamed, KEEP_MAX_OUT | STORE, SCALE_BUT_LABEL, 1)
#endif

typedef void overlapped_function(const struct sum_strips *strips, struct row_sums sums[],
                                 const struct strips_alongside *alongside);

static overlapped_function *overlapped_function_of(const struct plan *plan, enum last_step last, int are_unclamped)
{
    if (plan->is_scaled && keeps_max_out(plan)) return log_scaled_beside_none;
    if (plan->is_scaled) return last == COPY ? store_scaled_beside_none : store_scaled_beside_scale;
#define EITHER(name) (are_unclamped ? name##_unclamped : name)
#if HAS_STREAMS
    if (plan->streamed && last != COPY) {
        if (last == TO_LOG) return EITHER(log_beside_log_streamed);
        if (keeps_max_out(plan)) return EITHER(log_store_beside_gradient_streamed);
        return last == SCALE ? EITHER(store_beside_scale_streamed) : EITHER(store_beside_scale_or_one_streamed);
    }
#endif
    switch (last) {
    case SCALE: return keeps_max_out(plan) ? EITHER(log_store_beside_scale) : EITHER(store_beside_scale);
    case SCALE_OR_ONE: return EITHER(store_beside_scale_or_one);
    case TO_LOG: return EITHER(log_beside_log);
    default:
        if (!keeps_max_out(plan)) return EITHER(store_beside_none);
        return stores_exponentials(plan) ? EITHER(log_store_beside_none) : EITHER(log_beside_none);
    }
#undef EITHER
}

/* A row's exponentials until they are written: there, or in its output, whose elements are neighbours. */
static real *exponentials_of_row(const struct plan *plan, const struct group *group, ptrdiff_t block, ptrdiff_t row,
                                 void *scratch)
{
    if (plan->streamed) return waiting_row(plan, group, block, row, scratch);
    return element(&group->rows[FSM_OUT], row, block * BLOCK);
}

/* A block of each; `last` is what is left to do with the previous group's, COPY if nothing alongside. */
static void overlapped_block(const struct plan *plan, ptrdiff_t block, const struct group *previous,
                             const struct group *group, const struct group *next, enum last_step last,
                             struct extremes *next_extremes, struct row_sums *sums_of_block, void *scratch)
{
    struct row_sums of_row[LANES];
    struct extremes of_strip[LANES];
    struct sum_strips sums = {.length = block_length(plan, block),
                              .end = group->count,
                              .shift = &group->shift,
                              .row_max = &group->row_max};
    struct strips_alongside alongside;
    alongside.extremes = of_strip;
    if (last != COPY) alongside.values = last_values_of(previous, last == SCALE_BUT_LABEL ? SCALE : last);
    if (last == SCALE_BUT_LABEL) alongside.at_label = previous->at_label;
    ptrdiff_t first = block * BLOCK, next_count = next ? next->count : 0;
    for (ptrdiff_t r = 0; r < group->count; r++) {
        sums.x[r] = element(&group->rows[FSM_X], r, first);
        if (stores_exponentials(plan)) sums.e[r] = exponentials_of_row(plan, group, block, r, scratch);
        alongside.next[r] = r < next_count ? element(&next->rows[FSM_X], r, first) : sums.x[r];
        if (last == COPY) continue;
        alongside.to[r] = element(&previous->rows[FSM_OUT], r, first);
        if (last == SCALE_BUT_LABEL) alongside.label[r] = previous->label[r] - first;
        if (last == TO_LOG) alongside.from[r] = element(&previous->rows[FSM_X], r, first);
        else alongside.from[r] = exponentials_of_row(plan, previous, block, r, scratch);
    }
    overlapped_function_of(plan, last, are_unclamped(plan, group, 0, group->count))(&sums, of_row, &alongside);
    if (plan->blocks > 1) *sums_of_block = (struct row_sums){0};
    sums_across_lanes(of_row, group->count, keeps_max_out(plan), 0, sums_of_block);
    if (next) *next_extremes = extremes_across_lanes(of_strip, next->count);
}

/* `previous` is NULL before the first group and `next` after the last one. */
static void overlapped_phases(const struct plan *plan, const struct group *previous, struct group *group,
                              const struct group *next, struct extremes *next_extremes, void *scratch)
{
    int writes = previous && writes_elements(plan);
    enum last_step last = writes && previous->count == group->count ? last_step_of_group(plan, previous) : COPY;
    if (plan->is_scaled && last == SCALE_OR_ONE) last = COPY; /* seldom enough for a function less */
    int writes_labels = last == SCALE && plan->operation == FSM_CROSS_ENTROPY;
    /* With the gradient at its label in place: a line that has gone past the caches would be read again for it. */
    if (writes_labels && plan->streamed) {
        last = SCALE_BUT_LABEL;
        writes_labels = 0;
    }
    for (ptrdiff_t block = 0; block < plan->blocks; block++) {
        struct row_sums sums;
        struct extremes extremes;
        int fills_a_vector = block_length(plan, block) >= LANES;
        if (fills_a_vector) {
            overlapped_block(plan, block, previous, group, next, last, &extremes, &sums, scratch);
        } else {
            if (next) max_phase(plan, next, block, &extremes, scratch);
            sum_phase(plan, group, block, &sums, scratch, NULL);
        }
        if (writes && (last == COPY || !fills_a_vector)) write_phase(plan, previous, block, scratch);
        group->sums = block ? add_sums(group->sums, sums) : sums;
        if (next) *next_extremes = block ? join(*next_extremes, extremes) : extremes;
    }
    if (writes_labels) write_at_label_of_rows(previous);
}

/* Rows [first, last), more than a group of them. */
static void run_overlapped(const struct plan *plan, ptrdiff_t first, ptrdiff_t last, real *losses, void *scratch)
{
    struct group groups[3], *previous = NULL, *group = groups;
    struct extremes extremes;
    begin(plan, group, first, first + plan->group_rows);
    max_of_blocks(plan, group, &extremes, scratch);
    for (ptrdiff_t number = 1; group; number++) {
        end_max(plan, group, &extremes, 1);
        ptrdiff_t end = group->first_row + group->count, left = last - end;
        struct group *next = left > 0 ? &groups[number % 3] : NULL;
        if (next) begin(plan, next, end, left < plan->group_rows ? last : end + plan->group_rows);
        overlapped_phases(plan, previous, group, next, &extremes, scratch);
        end_groups(plan, group, 1, losses ? losses + (group->first_row - first) : NULL);
        previous = group;
        group = next;
    }
    if (writes_elements(plan)) write_blocks(plan, previous, scratch);
}

#endif
