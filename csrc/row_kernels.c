/* The kernels of one dtype and instruction set; the file is compiled once for each, with
 * REAL_BITS, VECTOR_BYTES and KERNELS (the one name it exports) from setup.py.
 *
 * For a row x with temperature T, m = max(x), S = sum(e**((x - m)/T)), L = ln S:
 *   softmax        e**((x - m)/T) / S
 *   log_softmax    (x - m)/T - L
 *   logsumexp      m + L
 * and the losses of losses.h. S is found as count + q, count the number of elements equal
 * to m and q the rest, wherever a logarithm of it is taken. */
#if defined(__GNUC__) && !defined(__clang__)
/* GCC's own copies of a function for some caller's constants are not put into a flattened one, which would lose what it
 * knows of its plan: the kernels would be 2.4 times as large, and columns of 10 take 1.1 times as long. */
#pragma GCC optimize("no-ipa-cp-clone")
/* Registers are allotted loop by loop: else GCC 12 keeps vectors of the innermost loop in memory, though some registers
 * are never used. log-softmax of rows of 1000 float32 takes 0.9 of the time with AVX-512, everything else the same. */
#pragma GCC optimize("ira-region=all")
/* No copies of a loop for either outcome of what it asks: they would be a twentieth of the library, and nothing is
 * faster with them. */
#pragma GCC optimize("no-unswitch-loops")
#pragma GCC optimize("no-split-loops")
/* Nor of what is computed on one of two paths alone: an eightieth of it, and most things the same, 0.97 to 1.03 of the
 * time (1.05 for a sample_weight on 10 classes). */
#pragma GCC optimize("no-tree-pre")
/* So that no function's speed depends on what else there is: sums of rows of 1000 float32 with AVX2 take up to 1.1
 * times as long where their loop lies otherwise. */
#pragma GCC optimize("align-functions=64")
#if VECTOR_BYTES == 32
/* What is to be vectors is written so. Of the loops over a group's lanes GCC makes large ones with AVX2 that bring
 * nothing: the loss of 10 classes takes 0.92 of the time without. */
#pragma GCC optimize("no-tree-loop-vectorize")
#endif
#endif

#ifndef REAL_BITS /* bare: float32 in 16 bytes, so that editors and -S just work */
#define REAL_BITS 32
#define VECTOR_BYTES 16
#define KERNELS kernels_f32_scalar
#endif

#include "block_by_block.h"
#include "panel.h"

_Static_assert(sizeof(vec) == VECTOR_BYTES, "VECTOR_BYTES fits the instruction set");

/* ---- A range of rows -------------------------------------------------------------------- */

/* A batch goes through each phase with all its groups before the next: where a phase waits for the
 * end of a long chain of operations, another group's is under way. */

static void sum_batch(const struct plan *plan, struct group *groups, ptrdiff_t count, void *scratch,
                      struct lines_ahead *lines)
{
    EACH_GROUP(g, count)
        sum_phase(plan, &groups[g], &groups[g].frame, 0, &groups[g].sums, group_scratch(plan, scratch, g), lines);
}

/* The one chain of a plain job's short rows; `mode` is a constant. */
INLINE struct chain chain_of_short_rows(const struct plan *plan, const struct group *group, void *scratch, int mode,
                                        struct lines_ahead *lines)
{
    struct sum_strip strip;
    strip.length = plan->job->n;
    strip.shift = group->frame.shift;
    strip.row_max = group->frame.max;
    strip.x = strip.e = strip_memory(plan, scratch, STRIP_X);
    return any_lane(group->frame.clamped) ? vertical_chain(strip, mode, lines)
                                    : vertical_chain(strip, mode | UNCLAMPED, lines);
}

/* As sum_batch for rows of one chain; `mode` is a constant. */
INLINE void chains_of_short_batch(const struct plan *plan, struct group *groups, ptrdiff_t count, void *scratch,
                                  int mode, struct lines_ahead *lines)
{
    EACH_GROUP(g, count) {
        struct chain chain = chain_of_short_rows(plan, &groups[g], group_scratch(plan, scratch, g), mode, lines);
        groups[g].sums.total = (struct pair){chain.sum, chain.compensation};
        groups[g].sums.ties = ties_of_chain(chain, mode);
    }
    EACH_GROUP(g, count)
        groups[g].sums.total = sum_of_chain(groups[g].sums.total.high, groups[g].sums.total.low, mode);
}

static void write_batch(const struct plan *plan, const struct group *groups, ptrdiff_t count, void *scratch)
{
    EACH_GROUP(g, count) write_phase(plan, &groups[g], 0, group_scratch(plan, scratch, g));
}

/* The strip of a group that stays in scratch memory, and its extremes. */
static struct extremes read_strip_in_scratch(const struct plan *plan, const struct group *group, void *scratch)
{
    const struct row_pointers *x = &group->rows[FSM_X];
    ptrdiff_t n = plan->job->n;
    if (!plan->is_weighted && can_transpose(x, n))
        return gather_transposed(x, 0, n, strip_memory(plan, scratch, STRIP_X));
    return extremes_of_strip(read_x(plan, group, 0, 0, scratch), n * LANES);
}

/* Its way home; where only the last step of the writing phase is left to do, that comes with it. */
INLINE void write_strip_in_scratch(const struct plan *plan, const struct group *group, void *scratch, int is_known)
{
    const struct row_pointers *out = &group->rows[FSM_OUT];
    real *strip = strip_memory(plan, scratch, STRIP_X);
    ptrdiff_t n = plan->job->n;
    enum last_step last = last_step_of_group(plan, group);
    int transposes = last != COPY && can_transpose(out, n);
    if (transposes && last == SCALE_CAREFULLY) {
        if (n <= ASKED_ROW && needs_no_care(group, strip, n * LANES)) last = SCALE;
        /* Seldom, and so by two passes, but where the plan is known. */
        else transposes = is_known;
    }
    if (transposes) {
        struct last_values values = last_values_of(group, last, &group->factor);
#define SCATTER(step) scatter_transposed(out, group->count, 0, n, strip, step, &values)
        if (last == SCALE) SCATTER(SCALE);
        else if (last == TO_LOG) SCATTER(TO_LOG);
        else if (is_known) SCATTER(SCALE_CAREFULLY);
#undef SCATTER
        if (plan->operation == FSM_CROSS_ENTROPY) write_at_label_of_rows(group);
        return;
    }
    write_phase(plan, group, 0, scratch);
    scatter_rows(out, group->count, 0, n, strip);
}

INLINE void write_strips_in_scratch(const struct plan *plan, const struct group *groups, ptrdiff_t count, void *scratch,
                                    int is_known)
{
    EACH_GROUP(g, count)
        write_strip_in_scratch(plan, &groups[g], group_scratch(plan, scratch, g), is_known);
}

NOT_INLINE void write_any_strips(const struct plan *plan, const struct group *groups, ptrdiff_t count, void *scratch)
{
    write_strips_in_scratch(plan, groups, count, scratch, 0);
}

/* Of the batch after this one, which ends at row `end`, if its rows lie behind it as far apart. (Where they do not,
 * other lines are asked for, which does no harm.) */
static struct lines_ahead lines_of_next_batch(const struct plan *plan, const struct group *groups, ptrdiff_t end,
                                              ptrdiff_t last)
{
    const struct row_pointers *x = &groups->rows[FSM_X], *out = &groups->rows[FSM_OUT],
                              *second = &groups->rows[FSM_SECOND];
    ptrdiff_t n = plan->job->n, rows = end - groups->first_row, left = last - end;
    if (left == 0 || !x->is_regular || !has_unit_stride(x)) return no_lines(row_start(x, 0));
    ptrdiff_t row_bytes = n * (ptrdiff_t)sizeof(real), stride = x->row_stride, ahead = left < rows ? left : rows;
    const char *start = x->first + rows * stride;
    if (are_dense(x, n)) {
        struct lines_ahead lines = runs_of_lines(start, ahead * row_bytes, 0, 1);
        if (has(plan, FSM_OUT) && are_dense(out, n)) lines.to_output = out->first - x->first;
        if (has(plan, FSM_SECOND) && are_dense(second, n)) lines.to_second = second->first - x->first;
        return lines;
    }
    struct lines_ahead lines = runs_of_lines(start, row_bytes, stride, ahead);
    if (has(plan, FSM_OUT) && out->is_regular && has_unit_stride(out)) {
        lines.to_output = out->first + rows * out->row_stride - start;
        lines.output_jump = out->row_stride - stride;
    }
    return lines;
}

/* In place of the mode of a short row's one chain, where that is no constant. */
#define ANY_MODE (-1)

/* Returns the row after the last one of the batch. */
INLINE ptrdiff_t run_batch(const struct plan *plan, ptrdiff_t first, ptrdiff_t last, real *losses, void *scratch,
                           int mode)
{
    struct group groups[BATCH_GROUPS];
    struct extremes extremes[BATCH_GROUPS];
    int in_scratch = stays_in_scratch(plan);
    /* Between panels there is one group at a time that is not whole. */
    ptrdiff_t count = begin_batch(plan, groups, plan->panel_groups ? 1 : plan->batch_groups, first, last, scratch);
    ptrdiff_t end = groups[count - 1].first_row + groups[count - 1].count;
    EACH_GROUP(g, count) {
        void *strips = group_scratch(plan, scratch, g);
        if (in_scratch) extremes[g] = read_strip_in_scratch(plan, &groups[g], strips);
        else if (needs_max(plan)) max_phase(plan, &groups[g], 0, &extremes[g], strips);
    }
    struct lines_ahead lines;
    if (in_scratch) lines = lines_of_next_batch(plan, groups, end, last);
    if (needs_max(plan)) end_max_batch(plan, groups, count, extremes);
    if (mode != ANY_MODE && in_scratch && plan->job->n < SHORT_ROW)
        chains_of_short_batch(plan, groups, count, scratch, mode, &lines);
    else sum_batch(plan, groups, count, scratch, in_scratch ? &lines : NULL);
    end_groups(plan, groups, count, losses);
    if (!writes_elements(plan)) return end;
    if (!in_scratch) write_batch(plan, groups, count, scratch);
    else if (mode == ANY_MODE) write_any_strips(plan, groups, count, scratch);
    else write_strips_in_scratch(plan, groups, count, scratch, 1);
    return end;
}

/* Of the panel that begins with this row; where none does, a line that has just been read. */
static struct lines_ahead lines_of_panel(const struct plan *plan, ptrdiff_t row, ptrdiff_t last)
{
    const struct fsm_operand *x = &plan->job->operands[FSM_X];
    ptrdiff_t groups = row < last ? groups_of_panel(plan, row, last) : 0;
    if (groups == 0) return no_lines(x->data + row_offset(plan->job, x, row - 1));
    return runs_of_lines(x->data + row_offset(plan->job, x, row), groups * VECTOR_BYTES, x->axis_stride, plan->job->n);
}

/* The groups of a panel from row `first` on. What is known of the plan would be known no longer if another function
 * got its address: those are given the `whole` plan. */
INLINE ptrdiff_t run_panel(const struct plan *plan, const struct plan *whole, ptrdiff_t first, ptrdiff_t group_count,
                           ptrdiff_t last, real *losses, void *scratch, int mode)
{
    struct panel panel;
    struct group groups[BATCH_GROUPS];
    ptrdiff_t end = first + group_count * LANES;
    panel.first_row = first;
    panel.groups = group_count;
    panel.needs_care = 0;
    read_panel(whole, &panel, scratch);
    /* The next panel comes into the second-level cache while this one is summed. */
    struct lines_ahead lines;
    if (plan->fetches_panels) lines = lines_of_panel(plan, end, last);
    for (ptrdiff_t done = 0, count; done < group_count; done += count) {
        void *batch_scratch = group_scratch(plan, scratch, done);
        count = begin_batch(plan, groups, BATCH_GROUPS, first + done * LANES, end, batch_scratch);
        end_max_batch(plan, groups, count, panel.extremes + done);
        if (mode == ANY_MODE) sum_batch(plan, groups, count, batch_scratch, plan->fetches_panels ? &lines : NULL);
        else chains_of_short_batch(plan, groups, count, batch_scratch, mode, &lines);
        end_groups(plan, groups, count, losses ? losses + done * LANES : NULL);
        if (!writes_elements(plan)) continue;
        if (!plan->writes_panels) {
            write_any_strips(plan, groups, count, batch_scratch);
        } else if (panel_step_of(plan) == COPY) {
            write_batch(plan, groups, count, batch_scratch);
        } else {
            EACH_GROUP(g, count) {
                /* Before their exponentials are scaled by 0: one may be NaN. */
                if (panel_step_of(plan) == SCALE_BUT_LABEL)
                    clear_ignored(plan, &groups[g], 0, strip_of_group(plan, batch_scratch, g), plan->job->n * LANES);
                struct last_values *values = &panel.last_values[done + g];
                *values = last_values_of(&groups[g], panel_step_of(plan), &groups[g].factor);
                if (panel_step_of(plan) == TO_LOG) continue;
                values->care = (struct care){splat((real)__builtin_inf()), splat(1), splat(0)};
                if (!groups[g].needs_care) continue;
                struct last_values careful = careful_values(&groups[g], &values->factor);
                values->factor = careful.factor;
                values->care = careful.care;
                panel.needs_care = 1;
            }
        }
    }
    if (plan->writes_panels) write_panel(whole, &panel, scratch);
    return end;
}

NOT_INLINE ptrdiff_t run_batch_or_panel(const struct plan *plan, ptrdiff_t first, ptrdiff_t last, real *losses,
                                        void *scratch)
{
    ptrdiff_t groups = groups_of_panel(plan, first, last);
    return groups ? run_panel(plan, plan, first, groups, last, losses, scratch, ANY_MODE)
                  : run_batch(plan, first, last, losses, scratch, ANY_MODE);
}

static void any_rows(const struct plan *plan, ptrdiff_t first, ptrdiff_t last, real *losses, void *scratch)
{
    for (ptrdiff_t row = first; row < last;)
        row = run_batch_or_panel(plan, row, last, losses ? losses + (row - first) : NULL, scratch);
}

typedef void rows_function(const struct plan *plan, ptrdiff_t first, ptrdiff_t last, real *losses, void *scratch);

#if HAS_FMA
/* Most of what is done for a group besides its elements is to ask the plan what to do. For the commonest jobs the
 * answers are constants, and `flatten` puts all that asks where the compiler sees them. (Where the arithmetic itself is
 * slow, the copies would be half of the library and not worth it.) */
enum kind_of_groups {
    TRANSPOSED, /* vertical, of rows, or of columns too few for a panel */
    PANELS,     /* of columns shorter than SHORT_ROW */
    ONE_BLOCK,  /* horizontal, of a few rows of one block */
};

/* The rows of a plan of this kind, operation and operands, all of them constants. */
INLINE void known_rows(const struct plan *plan, ptrdiff_t first, ptrdiff_t last, real *losses, void *scratch,
                       enum kind_of_groups kind, enum fsm_operation operation, unsigned operands, int mode)
{
    struct plan known = *plan;
    known.operation = operation;
    known.operands = operands;
    known.vertical = kind != ONE_BLOCK;
    known.blocks = 1;
    if (known.vertical) known.group_rows = LANES;
    else known.batch_groups = 1;
    if (kind == PANELS) {
        known.writes_panels = writes_elements(&known);
        known.fetches_panels = 1;
    } else {
        known.skew = known.panel_groups = 0;
    }
    known.sums_by_block = known.in_place = known.is_scaled = known.is_weighted = known.streamed = 0;
    known.has_dense_targets = known.has_uniform_targets = known.reads_targets = 0;
    for (ptrdiff_t row = first; row < last;) {
        real *losses_from = losses ? losses + (row - first) : NULL;
        ptrdiff_t groups = kind == PANELS ? groups_of_panel(&known, row, last) : 0;
        if (groups) row = run_panel(&known, plan, row, groups, last, losses_from, scratch, mode);
        else if (kind == PANELS) row = run_batch_or_panel(plan, row, last, losses_from, scratch);
        else row = run_batch(&known, row, last, losses_from, scratch, mode);
    }
}

#define KNOWN_ROWS(name, kind, operation, operands, mode)                                          \
    static __attribute__((flatten)) void name(const struct plan *plan, ptrdiff_t first, ptrdiff_t last, \
                                              real *losses, void *scratch)                         \
    {                                                                                              \
        known_rows(plan, first, last, losses, scratch, kind, operation, operands, mode);           \
    }
#define KNOWN_ROWS_OF_ALL(name, operation, operands, mode)                                         \
    KNOWN_ROWS(transposed_##name##_rows, TRANSPOSED, operation, operands, mode)                    \
    KNOWN_ROWS(panels_##name##_rows, PANELS, operation, operands, mode)                            \
    KNOWN_ROWS(one_block_##name##_rows, ONE_BLOCK, operation, operands, mode)
#define BIT(name) (1u << FSM_##name)
#define VALUE_AND_GRAD_OPERANDS (BIT(X) | BIT(OUT) | BIT(LABELS))
#define GRAD_HESS_OPERANDS (BIT(X) | BIT(OUT) | BIT(HESSIAN) | BIT(LABELS))
KNOWN_ROWS_OF_ALL(softmax, FSM_SOFTMAX, BIT(X) | BIT(OUT), STORE)
KNOWN_ROWS_OF_ALL(log_softmax, FSM_LOG_SOFTMAX, BIT(X) | BIT(OUT), KEEP_MAX_OUT)
KNOWN_ROWS_OF_ALL(logsumexp, FSM_LOGSUMEXP, BIT(X) | BIT(ROW_OUT), KEEP_MAX_OUT)
KNOWN_ROWS_OF_ALL(summed_loss, FSM_CROSS_ENTROPY, BIT(X) | BIT(LABELS), KEEP_MAX_OUT)
KNOWN_ROWS_OF_ALL(value_and_grad, FSM_CROSS_ENTROPY, VALUE_AND_GRAD_OPERANDS, KEEP_MAX_OUT | STORE)
KNOWN_ROWS(transposed_grad_hess_rows, TRANSPOSED, FSM_GRAD_HESS, GRAD_HESS_OPERANDS, STORE)

static rows_function *rows_function_of(const struct plan *plan, ptrdiff_t count)
{
    if (plan->overlaps_rows && plan->sums_by_block && plan->overlaps && count > 1) return run_overlapped_blocks;
    if (plan->overlaps && !plan->sums_by_block && count > plan->group_rows) return run_overlapped;
    if (plan->blocks > 1) return any_long_rows;
    ptrdiff_t n = plan->job->n;
    enum kind_of_groups kind;
    if (plan->panel_groups > 0 && n < SHORT_ROW && plan->writes_panels == writes_elements(plan)) kind = PANELS;
    else if (plan->panel_groups == 0 && plan->vertical) kind = TRANSPOSED;
    else if (!plan->vertical && !plan->streamed) kind = ONE_BLOCK;
    else return any_rows;
    if (plan->is_scaled || plan->has_dense_targets) return any_rows;
#define KNOWN(name)                                                                                \
    (kind == TRANSPOSED ? transposed_##name##_rows : kind == PANELS ? panels_##name##_rows : one_block_##name##_rows)
    switch (plan->operation) {
    case FSM_SOFTMAX: return KNOWN(softmax);
    case FSM_LOG_SOFTMAX: return KNOWN(log_softmax);
    case FSM_LOGSUMEXP: return plan->operands == (BIT(X) | BIT(ROW_OUT)) ? KNOWN(logsumexp) : any_rows;
    case FSM_CROSS_ENTROPY:
        if (plan->operands == (BIT(X) | BIT(LABELS))) return KNOWN(summed_loss);
        return plan->operands == VALUE_AND_GRAD_OPERANDS ? KNOWN(value_and_grad) : any_rows;
    case FSM_GRAD_HESS:
        return kind == TRANSPOSED && plan->operands == GRAD_HESS_OPERANDS ? transposed_grad_hess_rows : any_rows;
    default: return any_rows;
    }
#undef KNOWN
}
#else
static rows_function *rows_function_of(const struct plan *plan, ptrdiff_t count)
{
    (void)count;
    return plan->blocks > 1 ? any_long_rows : any_rows;
}
#endif

static void rows(const struct plan *plan, ptrdiff_t first, ptrdiff_t last, void *losses, void *scratch)
{
    rows_function_of(plan, last - first)(plan, first, last, losses, scratch);
    if (plan->streamed || plan->streams_panels) stream_fence();
}

const struct kernels KERNELS = {
    .lanes = LANES,
    .short_row = SHORT_ROW,
    .transposed_row = TRANSPOSED_ROW,
    .overlap = HAS_FMA,
    .streams = HAS_STREAMS,
    .group_bytes = sizeof(struct group),
    .block_fields = BLOCK_FIELDS,
    .rows = rows,
    .begin = begin,
    .max_of_blocks = max_of_blocks,
    .end_max_of_blocks = end_max_of_blocks,
    .sum_of_blocks = sum_of_blocks,
    .end_sum_of_blocks = end_sum_of_blocks,
    .write_blocks = write_blocks,
};
