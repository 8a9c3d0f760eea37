/* Panels: vertical groups of columns side by side, whose strips are read together, and written
 * together where the output lies in columns too.
 *
 * A line is what the columns have at one index along the axis, neighbours in memory. A group of
 * columns takes a vector's bytes of each line. Lines a power of two apart share a few places in
 * every cache, and what the processor fetched ahead of one group's turn would be gone by the next
 * one's. So a panel takes a page's worth of neighbouring columns from each line, in long runs, and
 * asks for lines further on. What has to be done once with every element is done on the way: the
 * max, the last multiplication. */
#ifndef FASTSOFTMAX_PANEL_H
#define FASTSOFTMAX_PANEL_H

#include "group.h"

/* At most. */
#define PANEL_GROUPS (PANEL_LINE_BYTES / VECTOR_BYTES)
/* Lines of a wide panel of which one run, of BATCH_GROUPS groups, is read before the next run: the
 * extremes of those groups stay in registers meanwhile. */
#define TILE_LINES 8
/* From where on the next lines are asked for. Measured with runs of 256 bytes, 4096 bytes from line to
 * line: 17 cycles for 64 bytes with 2 lines ahead, 7.4 with 16. Lines of x are asked for from further on, unless they
 * have been while the panel before was summed (short columns 1.02 to 1.06): on an Intel Xeon, whose third-level cache
 * is far away, logsumexp takes 0.75 to 0.97 of the time then, softmax 0.91 to 1.03. */
#define AHEAD_BYTES ((ptrdiff_t)4096)
#define FAR_AHEAD_BYTES ((ptrdiff_t)16384)

struct panel {
    ptrdiff_t first_row, groups;
    int needs_care; /* in place of the plan's step SCALE_CAREFULLY, for any operation */
    struct extremes extremes[PANEL_GROUPS];
    struct last_values last_values[PANEL_GROUPS];
};

static void *group_scratch(const struct plan *plan, void *scratch, ptrdiff_t group)
{
    return (char *)scratch + group * plan->group_scratch_bytes;
}

static real *strip_of_group(const struct plan *plan, void *scratch, ptrdiff_t group)
{
    return strip_memory(plan, group_scratch(plan, scratch, group), STRIP_X);
}

/* Whole groups of neighbouring columns from this row on, as many as a panel takes, or fewer where the next panels are
 * to be as wide. */
static ptrdiff_t groups_of_panel(const struct plan *plan, ptrdiff_t row, ptrdiff_t last)
{
    if (plan->panel_groups == 0 || (row + plan->skew) % LANES != 0) return 0;
    const struct fsm_job *job = plan->job;
    ptrdiff_t inner = job->shape[job->dimensions - 1], left = inner - row % inner;
    ptrdiff_t groups = (left < last - row ? left : last - row) / LANES;
    if (groups <= plan->panel_groups) return groups;
    ptrdiff_t panels = (groups - 1) / plan->panel_groups + 1;
    return (groups - 1) / panels + 1;
}

/* The line that should be on its way when the panel's line i is: of the next panel after the last one. */
INLINE const char *line_ahead(const char *line, ptrdiff_t i, ptrdiff_t n, ptrdiff_t stride, ptrdiff_t run_bytes,
                              ptrdiff_t panel_bytes, ptrdiff_t ahead_bytes)
{
    ptrdiff_t ahead = run_bytes < ahead_bytes ? ahead_bytes / run_bytes : 1;
    if (ahead > n) ahead = n;
    return i + ahead < n ? line + ahead * stride : line + (ahead - n) * stride + panel_bytes;
}

/* Lines [first, last) of `count` groups, a constant. */
INLINE void read_tile(const struct plan *plan, struct panel *panel, ptrdiff_t first_group, int count, ptrdiff_t first,
                      ptrdiff_t last, const char *start, void *scratch)
{
    ptrdiff_t n = plan->job->n, stride = plan->job->operands[FSM_X].axis_stride;
    ptrdiff_t ahead_bytes = plan->fetches_panels ? AHEAD_BYTES : FAR_AHEAD_BYTES;
    real *strips[BATCH_GROUPS];
    struct extremes found[BATCH_GROUPS];
    for (int g = 0; g < count; g++) {
        strips[g] = strip_of_group(plan, scratch, first_group + g);
        found[g] = first == 0 ? no_extremes() : panel->extremes[first_group + g];
    }
    for (ptrdiff_t i = first; i < last; i++) {
        const char *line = start + i * stride + first_group * VECTOR_BYTES;
        const char *ahead =
            line_ahead(line, i, n, stride, count * VECTOR_BYTES, panel->groups * VECTOR_BYTES, ahead_bytes);
        for (int g = 0; g < count; g++) {
            prefetch(ahead + g * VECTOR_BYTES);
            vec elements = load((const real *)(const void *)line + g * LANES);
            store(strips[g] + i * LANES, elements);
            found[g] = with_elements(found[g], elements);
        }
    }
    for (int g = 0; g < count; g++) panel->extremes[first_group + g] = found[g];
}

NOT_INLINE void read_panel(const struct plan *plan, struct panel *panel, void *scratch)
{
    const struct fsm_operand *x = &plan->job->operands[FSM_X];
    const char *start = x->data + row_offset(plan->job, x, panel->first_row);
    ptrdiff_t n = plan->job->n, lines = panel->groups > BATCH_GROUPS ? TILE_LINES : n;
    for (ptrdiff_t i = 0; i < n; i += lines) {
        ptrdiff_t end = i + lines < n ? i + lines : n;
        for (ptrdiff_t g = 0; g < panel->groups; g += BATCH_GROUPS) {
            ptrdiff_t count = panel->groups - g < BATCH_GROUPS ? panel->groups - g : BATCH_GROUPS;
#define READ(count) read_tile(plan, panel, g, count, i, end, start, scratch)
            WITH_CONSTANT(count, BATCH_GROUPS, READ)
#undef READ
        }
    }
}

INLINE enum last_step panel_step_of(const struct plan *plan)
{
    if (plan->operation == FSM_SOFTMAX) return SCALE;
    if (plan->operation == FSM_LOG_SOFTMAX && !plan->is_scaled) return TO_LOG;
    if (plan->operation == FSM_CROSS_ENTROPY && !plan->has_dense_targets) return SCALE_BUT_LABEL;
    return COPY;
}

INLINE vec element_of_panel(vec element, ptrdiff_t i, enum last_step step, int has_label,
                            const struct last_values *values)
{
    vec value = after_last_step(element, step, values);
    return has_label ? choose(equal(values->label, splat((real)i)), values->at_label, value) : value;
}

/* `step` and `streamed` are constants. */
INLINE void write_lines(const struct plan *plan, const struct panel *panel, void *scratch, enum last_step step,
                        int streamed)
{
    const struct fsm_operand *out = &plan->job->operands[FSM_OUT];
    char *line = out->data + row_offset(plan->job, out, panel->first_row);
    ptrdiff_t strip_reals = plan->group_scratch_bytes / (ptrdiff_t)sizeof(real), n = plan->job->n;
    ptrdiff_t bytes = panel->groups * VECTOR_BYTES;
    const real *strip = strip_of_group(plan, scratch, 0);
    int has_label = step == SCALE_BUT_LABEL || (step == SCALE_CAREFULLY && plan->operation == FSM_CROSS_ENTROPY);
    for (ptrdiff_t i = 0; i < n; i++, line += out->axis_stride) {
        const char *ahead = line_ahead(line, i, n, out->axis_stride, bytes, bytes, AHEAD_BYTES);
        for (ptrdiff_t g = 0; g < panel->groups; g++) {
            vec element = load(strip + g * strip_reals + i * LANES);
            element = element_of_panel(element, i, step, has_label, &panel->last_values[g]);
            real *to = (real *)(void *)line + g * LANES;
            if (streamed) {
                stream(to, element);
            } else {
                prefetch_to_write(ahead + g * VECTOR_BYTES);
                store(to, element);
            }
        }
    }
}

NOT_INLINE void write_panel(const struct plan *plan, const struct panel *panel, void *scratch)
{
#define WRITE(step)                                                                                \
    do {                                                                                           \
        if (plan->streams_panels) write_lines(plan, panel, scratch, step, 1);                      \
        else write_lines(plan, panel, scratch, step, 0);                                           \
    } while (0)
    switch (panel->needs_care ? SCALE_CAREFULLY : panel_step_of(plan)) {
    case SCALE: WRITE(SCALE); break;
    case SCALE_CAREFULLY: WRITE(SCALE_CAREFULLY); break;
    case SCALE_BUT_LABEL: WRITE(SCALE_BUT_LABEL); break;
    case TO_LOG: WRITE(TO_LOG); break;
    default: WRITE(COPY); break;
    }
#undef WRITE
}

#endif
