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
OVERLAPPED_FUNCTIONS(log_beside_none, KEEP_MAX_OUT, COPY, 0)
OVERLAPPED_FUNCTIONS(log_beside_log, KEEP_MAX_OUT, TO_LOG, 0)
OVERLAPPED_FUNCTIONS(log_store_beside_scale, KEEP_MAX_OUT | STORE, SCALE, 0)
/* For what seldom comes, one for rows that are clamped and others; and past the caches as well. */
OVERLAPPED_FUNCTION(log_store_beside_none, KEEP_MAX_OUT | STORE, COPY, 0)
OVERLAPPED_FUNCTION(store_beside_scale_carefully, STORE, SCALE_CAREFULLY, alongside->streamed)
/* With a temperature they are always clamped. */
OVERLAPPED_FUNCTION(store_scaled_beside_none, STORE | SCALED, COPY, 0)
OVERLAPPED_FUNCTION(store_scaled_beside_scale, STORE | SCALED, SCALE, 0)
OVERLAPPED_FUNCTION(log_scaled_beside_none, KEEP_MAX_OUT | SCALED, COPY, 0)
#if HAS_STREAMS
OVERLAPPED_FUNCTIONS(store_beside_scale_streamed, STORE, SCALE, 1)
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
        return last == SCALE ? EITHER(store_beside_scale_streamed) : store_beside_scale_carefully;
    }
#endif
    switch (last) {
    case SCALE: return keeps_max_out(plan) ? EITHER(log_store_beside_scale) : EITHER(store_beside_scale);
    case SCALE_CAREFULLY: return store_beside_scale_carefully;
    case TO_LOG: return EITHER(log_beside_log);
    default:
        if (!keeps_max_out(plan)) return EITHER(store_beside_none);
        return stores_exponentials(plan) ? log_store_beside_none : EITHER(log_beside_none);
    }
#undef EITHER
}

/* A row's exponentials until they are written: there, or in its output, whose elements are neighbours. */
static real *exponentials_of_row(const struct plan *plan, const struct group *group, ptrdiff_t block, ptrdiff_t row,
                                 void *scratch)
{
    if (plan->streamed) return waiting_row(plan, group, block, row, scratch);
    return element(&group->rows[FSM_OUT], row, block_start(plan, block));
}

/* What goes through a turn together: a block of the group that is summed, relative to `frame`; the same block of the
 * one that is written, NULL if there is none; a block of the one whose extremes are found, NULL if there is none. */
struct turn {
    const struct group *written, *group, *next;
    const struct frame *frame;
    ptrdiff_t block, next_block;
};

/* `last` is what is left to do with what is written; COPY: nothing alongside. `factor` is that of its exponentials. */
INLINE void overlapped_block(const struct plan *plan, const struct turn *turn, enum last_step last,
                             struct pair factor, struct extremes *next_extremes, struct row_sums *found, void *scratch)
{
    const struct group *written = turn->written, *group = turn->group, *next = turn->next;
    struct row_sums of_row[LANES];
    struct extremes of_strip[LANES];
    struct sum_strips sums; /* the fields of horizontal strips without a second operand */
    sums.vertical = sums.is_short = 0;
    sums.length = block_length(plan, turn->block);
    sums.ahead = 0;
    sums.x_step = sums.e_step = LANES;
    sums.first = 0;
    sums.end = group->count;
    sums.shift = &turn->frame->shift;
    sums.row_max = &turn->frame->max;
    struct strips_alongside alongside;
    alongside.streamed = plan->streamed;
    alongside.extremes = of_strip;
    alongside.next_length = next ? block_length(plan, turn->next_block) : sums.length;
    if (last != COPY) alongside.values = last_values_of(written, last == SCALE_BUT_LABEL ? SCALE : last, &factor);
    if (last == SCALE_BUT_LABEL) alongside.at_label = written->at_label;
    ptrdiff_t first = block_start(plan, turn->block), next_first = block_start(plan, turn->next_block);
    ptrdiff_t next_count = next ? next->count : 0;
    for (ptrdiff_t r = 0; r < group->count; r++) {
        sums.x[r] = element(&group->rows[FSM_X], r, first);
        if (stores_exponentials(plan)) sums.e[r] = exponentials_of_row(plan, group, turn->block, r, scratch);
        alongside.next[r] = r < next_count ? element(&next->rows[FSM_X], r, next_first) : sums.x[r];
        if (last == COPY) continue;
        alongside.to[r] = element(&written->rows[FSM_OUT], r, first);
        if (last == SCALE_BUT_LABEL) alongside.label[r] = written->label[r] - first;
        if (last == TO_LOG) alongside.from[r] = element(&written->rows[FSM_X], r, first);
        else alongside.from[r] = exponentials_of_row(plan, written, turn->block, r, scratch);
    }
    overlapped_function_of(plan, last, are_unclamped(plan, turn->frame, 0, group->count))(&sums, of_row, &alongside);
    sums_across_lanes(of_row, group->count, keeps_max_out(plan), 0, found);
    if (next) *next_extremes = extremes_across_lanes(of_strip, next->count);
}

/* The same, and what cannot be done alongside. */
INLINE void overlapped_phases(const struct plan *plan, struct turn turn, enum last_step last,
                              struct extremes *next_extremes, struct row_sums *found, void *scratch)
{
    const struct group *next = turn.next;
    struct block_factors factors = no_factors();
    if (turn.written && stores_exponentials(plan)) factors = factors_of_block(plan, turn.written, turn.block);
    if (factors.are_lowered) last = COPY;
    int fills_a_vector = block_length(plan, turn.block) >= LANES;
    if (next && !(fills_a_vector && block_length(plan, turn.next_block) >= LANES)) turn.next = NULL;
    if (!fills_a_vector) last = COPY;
    /* First: the exponentials of this group may take the place of those. */
    if (turn.written && last == COPY) write_phase(plan, turn.written, turn.block, scratch);
    if (fills_a_vector) overlapped_block(plan, &turn, last, factors.factor, next_extremes, found, scratch);
    else sum_phase(plan, turn.group, turn.frame, turn.block, found, scratch, NULL);
    if (next && !turn.next) max_phase(plan, next, turn.next_block, next_extremes, scratch);
}

/* What is left to do of a group while the next one is summed. */
static enum last_step step_alongside(const struct plan *plan, const struct group *written, const struct group *group)
{
    if (!written || written->count != group->count) return COPY;
    enum last_step step = last_step_of_group(plan, written);
    /* Seldom enough for a function less. */
    if (step == SCALE_CAREFULLY && (plan->is_scaled || plan->operation == FSM_CROSS_ENTROPY)) return COPY;
    /* With the gradient at its label in place: a line that has gone past the caches would be read again for it. */
    if (plan->streamed && step == SCALE && plan->operation == FSM_CROSS_ENTROPY) return SCALE_BUT_LABEL;
    return step;
}

static struct extremes extremes_of_blocks(const struct plan *plan, const struct group *group, void *scratch)
{
    struct extremes of_row = no_extremes(), of_block;
    for (ptrdiff_t block = 0; block < plan->blocks; block++) {
        max_phase(plan, group, block, &of_block, scratch);
        of_row = join(of_row, of_block);
    }
    return of_row;
}

/* Rows [first, last), more than a group of them, each relative to its own max. */
static void run_overlapped(const struct plan *plan, ptrdiff_t first, ptrdiff_t last, real *losses, void *scratch)
{
    struct group groups[OVERLAPPED_GROUPS], *written = NULL, *group = groups;
    struct extremes extremes;
    begin(plan, group, first, first + plan->group_rows, NULL);
    extremes = extremes_of_blocks(plan, group, scratch);
    for (ptrdiff_t number = 1; group; number++) {
        end_max_batch(plan, group, 1, &extremes);
        ptrdiff_t end = group->first_row + group->count, left = last - end;
        struct group *next = left > 0 ? &groups[number % OVERLAPPED_GROUPS] : NULL;
        if (next) begin(plan, next, end, left < plan->group_rows ? last : end + plan->group_rows, NULL);
        enum last_step step = step_alongside(plan, written, group);
        for (ptrdiff_t block = 0; block < plan->blocks; block++) {
            struct turn turn = {written, group, next, &group->frame, block, block};
            struct extremes of_block;
            struct row_sums sums;
            clear_sums(&sums);
            overlapped_phases(plan, turn, step, &of_block, &sums, scratch);
            group->sums = block ? add_sums(group->sums, sums) : sums;
            if (next) extremes = block ? join(extremes, of_block) : of_block;
        }
        if (step == SCALE && plan->operation == FSM_CROSS_ENTROPY) write_at_label_of_rows(written);
        end_groups(plan, group, 1, losses ? losses + (group->first_row - first) : NULL);
        written = writes_elements(plan) ? group : NULL;
        group = next;
    }
    for (ptrdiff_t block = 0; written && block < plan->blocks; block++) write_phase(plan, written, block, scratch);
}

/* ---- Rows whose blocks are summed each relative to its own max ---------------------------- */

/* A block's extremes are found two turns before it is summed, and its frame is ready one turn before: what is made of
 * them in between would have to be waited for. */
struct blocks_ahead {
    struct frame frames[2];
    int now;                  /* the frame of the block whose turn it is; the other is the next one's */
    struct extremes extremes; /* of the block after that one, when its turn is over */
};

static void begin_ahead(const struct plan *plan, const struct group *group, ptrdiff_t first, ptrdiff_t end,
                        struct blocks_ahead *ahead, void *scratch)
{
    max_phase(plan, group, first, &ahead->extremes, scratch);
    ahead->now = 0;
    begin_block(plan, group, first, ahead->extremes, &ahead->frames[0]);
    if (first + 1 < end) max_phase(plan, group, first + 1, &ahead->extremes, scratch);
}

/* Blocks [first, end) of a group, and what is done alongside. `relates`: they are all of them, and are related while
 * the last one is summed. */
static void overlapped_blocks(const struct plan *plan, const struct group *written, struct group *group,
                              const struct group *next, ptrdiff_t first, ptrdiff_t end, int relates,
                              struct blocks_ahead *ahead, void *scratch)
{
    enum last_step step = step_alongside(plan, written, group);
    for (ptrdiff_t number = first; number < end; number++) {
        ptrdiff_t after = number + 2;
        if (number + 1 < end) begin_block(plan, group, number + 1, ahead->extremes, &ahead->frames[!ahead->now]);
        else if (next) begin_block(plan, next, 0, ahead->extremes, &ahead->frames[!ahead->now]);
        if (relates && number + 1 == end) relate_blocks(plan, group);
        struct turn turn = {written, group, after < end ? group : next, &ahead->frames[ahead->now], number,
                            after < end ? after : after - end};
        struct row_sums sums;
        clear_sums(&sums);
        overlapped_phases(plan, turn, step, &ahead->extremes, &sums, scratch);
        KEEP_OF_BLOCK(plan, group, number, sums, sums);
        ahead->now = !ahead->now;
    }
    if (step == SCALE && plan->operation == FSM_CROSS_ENTROPY) write_at_label_of_rows(written);
}

/* Rows [first, last). */
static void run_overlapped_blocks(const struct plan *plan, ptrdiff_t first, ptrdiff_t last, real *losses, void *scratch)
{
    struct group groups[OVERLAPPED_GROUPS], *written = NULL;
    struct blocks_ahead ahead;
    begin(plan, groups, first, first + 1, group_blocks(plan, scratch, 0));
    begin_ahead(plan, groups, 0, plan->blocks, &ahead, scratch);
    for (ptrdiff_t row = first; row < last; row++) {
        ptrdiff_t place = (row - first) % OVERLAPPED_GROUPS, next_place = (place + 1) % OVERLAPPED_GROUPS;
        struct group *group = &groups[place], *next = row + 1 < last ? &groups[next_place] : NULL;
        if (next) begin(plan, next, row + 1, row + 2, group_blocks(plan, scratch, next_place));
        overlapped_blocks(plan, written, group, next, 0, plan->blocks, 1, &ahead, scratch);
        join_sums_of_blocks(plan, group);
        end_groups(plan, group, 1, losses ? losses + (row - first) : NULL);
        written = writes_elements(plan) ? group : NULL;
    }
    for (ptrdiff_t number = 0; written && number < plan->blocks; number++) write_phase(plan, written, number, scratch);
}

#endif
