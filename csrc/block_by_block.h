/* Rows longer than a block through the phases, block by block: by one thread (any_long_rows), or by several, each with
 * some of the blocks (run.c). */
#ifndef FASTSOFTMAX_BLOCK_BY_BLOCK_H
#define FASTSOFTMAX_BLOCK_BY_BLOCK_H

#include "phases.h"
#if HAS_FMA
#include "overlap.h"
#endif

/* ---- Of one group: the phases in order --------------------------------------------------- */

/* Where the rows' max has to be known before their sums. */
static void max_of_blocks(const struct plan *plan, struct group *group, ptrdiff_t first, ptrdiff_t end, void *scratch)
{
    for (ptrdiff_t number = first; number < end; number++) {
        struct extremes extremes;
        max_phase(plan, group, number, &extremes, scratch);
        KEEP_OF_BLOCK(plan, group, number, extremes, extremes);
    }
}

/* Bytes of a row from which finding the next block's max alongside the sum takes less time, where nothing is written
 * alongside. With vectors of 32 bytes, which have few registers: 1.04 of it for rows of 128 KiB, 0.98 of 800. */
#define OVERLAPPED_BYTES (VECTOR_BYTES == 64 ? 0 : (ptrdiff_t)512 << 10)

static void sum_of_blocks(const struct plan *plan, struct group *group, ptrdiff_t first, ptrdiff_t end, void *scratch)
{
#if HAS_FMA
    ptrdiff_t row_bytes = plan->job->n * (ptrdiff_t)sizeof(real);
    if (plan->overlaps && plan->sums_by_block && row_bytes >= OVERLAPPED_BYTES) {
        struct blocks_ahead ahead;
        begin_ahead(plan, group, first, end, &ahead, scratch);
        overlapped_blocks(plan, NULL, group, NULL, first, end, 0, &ahead, scratch);
        return;
    }
#endif
    for (ptrdiff_t number = first; number < end; number++) {
        struct frame of_block, *frame = &group->frame;
        struct row_sums sums;
        clear_sums(&sums);
        if (plan->sums_by_block) {
            struct extremes extremes;
            max_phase(plan, group, number, &extremes, scratch);
            begin_block(plan, group, number, extremes, &of_block);
            frame = &of_block;
        }
        sum_phase(plan, group, frame, number, &sums, scratch, NULL);
        KEEP_OF_BLOCK(plan, group, number, sums, sums);
    }
}

static void end_sum_of_blocks(const struct plan *plan, struct group *group, void *losses)
{
    if (plan->sums_by_block) relate_blocks(plan, group);
    join_sums_of_blocks(plan, group);
    end_groups(plan, group, 1, losses);
}

static void write_blocks(const struct plan *plan, struct group *group, ptrdiff_t first, ptrdiff_t end, void *scratch)
{
    for (ptrdiff_t number = first; number < end; number++) write_phase(plan, group, number, scratch);
}

/* ---- A range of rows -------------------------------------------------------------------- */

/* Groups side by side that lie in lines. */
static void run_long_columns(const struct plan *plan, struct group *groups, ptrdiff_t count, real *losses,
                             void *scratch)
{
    struct extremes extremes[BATCH_GROUPS];
    struct frame frames[BATCH_GROUPS];
    if (!plan->sums_by_block) {
        extremes_of_columns(groups, count, 0, plan->job->n, extremes);
        end_max_batch(plan, groups, count, extremes);
        EACH_GROUP(g, count) frames[g] = groups[g].frame;
    }
    for (ptrdiff_t number = 0; number < plan->blocks; number++) {
        struct row_sums sums[BATCH_GROUPS];
        EACH_GROUP(g, count) clear_sums(&sums[g]);
        ptrdiff_t first = block_start(plan, number), end = first + block_length(plan, number);
        if (plan->sums_by_block) {
            extremes_of_columns(groups, count, first, end, extremes);
            EACH_GROUP(g, count) begin_block(plan, &groups[g], number, extremes[g], &frames[g]);
        }
        sums_of_long_columns(plan, groups, frames, count, number, sums, scratch);
        EACH_GROUP(g, count) KEEP_OF_BLOCK(plan, &groups[g], number, sums, sums[g]);
    }
    EACH_GROUP(g, count) {
        if (plan->sums_by_block) relate_blocks(plan, &groups[g]);
        join_sums_of_blocks(plan, &groups[g]);
    }
    end_groups(plan, groups, count, losses);
    if (!writes_elements(plan)) return;
    for (ptrdiff_t number = 0; number < plan->blocks; number++) write_columns(plan, groups, count, number);
    EACH_GROUP(g, count) {
        if (last_step_of_group(plan, &groups[g]) == COPY) write_blocks(plan, &groups[g], 0, plan->blocks, scratch);
        else if (plan->operation == FSM_CROSS_ENTROPY) write_at_label_of_rows(&groups[g]);
    }
}

static void any_long_rows(const struct plan *plan, ptrdiff_t first, ptrdiff_t last, real *losses, void *scratch)
{
    struct group groups[BATCH_GROUPS];
    for (ptrdiff_t row = first; row < last;) {
        real *losses_from = losses ? losses + (row - first) : NULL;
        ptrdiff_t count = begin_batch(plan, groups, plan->batch_groups, row, last, scratch);
        row = groups[count - 1].first_row + groups[count - 1].count;
        if (plan->in_place && lies_in_lines(plan, groups)) {
            run_long_columns(plan, groups, count, losses_from, scratch);
            continue;
        }
        if (needs_max(plan) && !plan->sums_by_block) {
            max_of_blocks(plan, groups, 0, plan->blocks, scratch);
            end_max_of_blocks(plan, groups);
        }
        sum_of_blocks(plan, groups, 0, plan->blocks, scratch);
        end_sum_of_blocks(plan, groups, losses_from);
        if (writes_elements(plan)) write_blocks(plan, groups, 0, plan->blocks, scratch);
    }
}

#endif
