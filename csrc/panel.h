/* Vertical groups side by side: their strips are read and written together.
 *
 * A group of columns takes 64 bytes of each line of memory that lies along its rows; a
 * panel takes several groups' at once, so that the processor fetches them in longer runs,
 * and each page's address is looked up once. */
#ifndef FASTSOFTMAX_PANEL_H
#define FASTSOFTMAX_PANEL_H

#include "group.h"

static void *group_scratch(const struct plan *plan, void *scratch, ptrdiff_t group)
{
    return (char *)scratch + group * plan->group_scratch_bytes;
}

/* The groups' rows are neighbours all through the panel. */
static int lie_side_by_side(const struct group *groups, ptrdiff_t count, enum fsm_operand_name name)
{
    for (ptrdiff_t g = 0; g < count; g++) {
        if (!groups[g].rows[name].neighbours) return 0;
        if (groups[g].rows[name].lane[0] != groups[0].rows[name].lane[0] + g * VECTOR_BYTES) return 0;
    }
    return 1;
}

static void read_panel(const struct plan *plan, const struct group *groups, ptrdiff_t count, void *scratch)
{
    if (count > 1 && !is_weighted(plan) && lie_side_by_side(groups, count, FSM_X)) {
        const struct row_pointers *rows = &groups[0].rows[FSM_X];
        for (ptrdiff_t i = 0; i < plan->job->n; i++)
            for (ptrdiff_t g = 0; g < count; g++)
                store(strip_memory(plan, group_scratch(plan, scratch, g), STRIP_X) + i * LANES,
                      load(element(rows, 0, i) + g * LANES));
        return;
    }
    for (ptrdiff_t g = 0; g < count; g++) read_x(plan, &groups[g], 0, 0, group_scratch(plan, scratch, g));
}

static void write_panel(const struct plan *plan, const struct group *groups, ptrdiff_t count, void *scratch)
{
    if (count > 1 && lie_side_by_side(groups, count, FSM_OUT)) {
        const struct row_pointers *rows = &groups[0].rows[FSM_OUT];
        for (ptrdiff_t i = 0; i < plan->job->n; i++)
            for (ptrdiff_t g = 0; g < count; g++)
                store(element(rows, 0, i) + g * LANES,
                      load(strip_memory(plan, group_scratch(plan, scratch, g), STRIP_X) + i * LANES));
        return;
    }
    for (ptrdiff_t g = 0; g < count; g++)
        scatter_rows(&groups[g].rows[FSM_OUT], groups[g].count, 0, plan->job->n,
                     strip_memory(plan, group_scratch(plan, scratch, g), STRIP_X));
}

#endif
