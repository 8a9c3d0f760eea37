/* Panels: vertical groups side by side, whose strips are read and written together.
 *
 * A group of columns takes 64 bytes of each line of memory that lies along its rows. Lines a
 * power of two apart share a few places in every cache, and what the processor fetched ahead
 * of one group's turn would be gone by the next one's: so a panel takes up to a page's worth
 * of neighbouring columns from each line, in one run, and asks for the next lines' meanwhile:
 * what the processor fetches ahead by itself ends with the page. */
#ifndef FASTSOFTMAX_PANEL_H
#define FASTSOFTMAX_PANEL_H

#include "group.h"

/* From where on the next lines are asked for. Measured with softmax of (1, 2048, 1024), whose panels
 * take 256 bytes of a line: one line ahead is too late, 0.77 of JAX's speed against 0.95 with these. */
#define AHEAD_BYTES ((ptrdiff_t)4096)

static void *group_scratch(const struct plan *plan, void *scratch, ptrdiff_t group)
{
    return (char *)scratch + group * plan->group_scratch_bytes;
}

/* Rows [first, last) are whole groups of neighbouring columns. */
static int lie_side_by_side(const struct plan *plan, enum fsm_operand_name name, ptrdiff_t first, ptrdiff_t last)
{
    const struct fsm_job *job = plan->job;
    int inner = job->dimensions - 1;
    return (last - first) % LANES == 0 && job->operands[name].strides[inner] == (ptrdiff_t)sizeof(real) &&
           first % job->shape[inner] + (last - first) <= job->shape[inner];
}

/* So many lines of a panel make the bytes that should be on their way. */
INLINE ptrdiff_t lines_ahead(ptrdiff_t bytes) { return bytes < AHEAD_BYTES ? AHEAD_BYTES / bytes : 1; }

static void read_panel(const struct plan *plan, ptrdiff_t first, ptrdiff_t last, void *scratch)
{
    const struct fsm_operand *x = &plan->job->operands[FSM_X];
    const char *start = x->data + row_offset(plan->job, x, first);
    ptrdiff_t groups = (last - first) / LANES, bytes = groups * VECTOR_BYTES, ahead = lines_ahead(bytes);
    for (ptrdiff_t i = 0; i < plan->job->n; i++) {
        const char *line = start + i * x->axis_stride;
        for (ptrdiff_t at = 0; at < bytes && i + ahead < plan->job->n; at += LINE_BYTES)
            prefetch(line + ahead * x->axis_stride + at);
        for (ptrdiff_t g = 0; g < groups; g++)
            store(strip_memory(plan, group_scratch(plan, scratch, g), STRIP_X) + i * LANES,
                  load((const real *)(const void *)line + g * LANES));
    }
}

static void write_panel(const struct plan *plan, ptrdiff_t first, ptrdiff_t last, void *scratch)
{
    const struct fsm_operand *out = &plan->job->operands[FSM_OUT];
    char *start = out->data + row_offset(plan->job, out, first);
    ptrdiff_t groups = (last - first) / LANES, bytes = groups * VECTOR_BYTES, ahead = lines_ahead(bytes);
    for (ptrdiff_t i = 0; i < plan->job->n; i++) {
        char *line = start + i * out->axis_stride;
        for (ptrdiff_t at = 0; at < bytes && i + ahead < plan->job->n; at += LINE_BYTES)
            prefetch_to_write(line + ahead * out->axis_stride + at);
        for (ptrdiff_t g = 0; g < groups; g++)
            store((real *)(void *)line + g * LANES,
                  load(strip_memory(plan, group_scratch(plan, scratch, g), STRIP_X) + i * LANES));
    }
}

#endif
