/* Runs a job: chooses the group's shape, cuts the rows into items, shares them out.
 *
 * All that is chosen here is a matter of speed; the bits of a row are fixed by its blocks
 * (kernels.h) and by sums.h, those of a summed loss by the fixed pieces below. */
#include "kernels.h"
#include "parallel.h"

#include <stdlib.h>

/* Elements below which a second thread costs more than it brings to calls that follow one
 * another (benchmarks/thresholds.py), and what a row costs besides its elements, in elements. */
#define PARALLEL_ELEMENTS ((ptrdiff_t)32768)
#define ROW_ELEMENTS ((ptrdiff_t)16)
/* Elements in a piece of rows, whose losses are added up by themselves. */
#define PIECE_ELEMENTS ((ptrdiff_t)4096)
/* Items of which the square is a ptrdiff_t. */
#define MOST_ITEMS ((ptrdiff_t)1 << (sizeof(ptrdiff_t) * 4 - 2))
/* Losses that a thread keeps until they are added up: the groups at the ends of so many rows do not overlap. */
#define HELD_LOSSES ((ptrdiff_t)2048)
/* Bytes of output from which it is written past the caches: with as much input it would not stay in
 * 32 MB of them. Measured there with softmax: faster from 12 MB on; at 16 MB, if the result is read at
 * once, 1.06 times the speed on one thread and 0.87 on two. */
#define STREAM_BYTES ((ptrdiff_t)16 << 20)
/* Bytes of the longest row whose exponentials wait in a thread's own memory meanwhile. */
#define WAITING_ROW_BYTES ((ptrdiff_t)512 << 10)
/* The same where groups overlap, of all rows that wait. */
#define OVERLAPPED_WAITING_BYTES ((ptrdiff_t)4 << 20)
/* Groups of a panel below which reading takes longer (measured: 1 takes 1.3 times as long as 4 to 25). */
#define NARROW_PANEL ((ptrdiff_t)4)
/* Bytes of the strips of a panel: they stay in a core's second-level cache. Where that is large, which costs a slow way
 * to the third level, the lines that they come from and go to are to stay there as well: NARROW_PANEL_BYTES, but whole
 * lines of some bytes. Measured on an Intel Xeon (2 MB), columns of 300 to 2048: 0.73 to 0.98 of the time. */
#define PANEL_BYTES ((ptrdiff_t)768 << 10)
#define LARGE_SECOND_LEVEL ((ptrdiff_t)2 << 20)
#define LEAST_LINE_BYTES ((ptrdiff_t)256)
/* The same of long columns where the next panel is to come into that cache as well; the bytes of logits, and those of a
 * line, from which that pays; the bytes after which memory shares its places (1 MB in 8 ways or 2 MB in 16). Measured
 * with 60 MB: 0.5 to 0.8 of the time with 200 to 1000 float32; 384 KiB 0.85 to 1.1; with 1500, in lines of 128 bytes,
 * 1.2. With 4 MB 0.92 to 0.95, with 2 MB 0.96 to 1.04. */
#define NARROW_PANEL_BYTES ((ptrdiff_t)192 << 10)
#define FETCHED_BYTES ((ptrdiff_t)3 << 20)
#define FETCHED_LINE_BYTES ((ptrdiff_t)192)
#define CACHE_WAY_BYTES ((ptrdiff_t)128 << 10)
/* Bytes of the rows of a horizontal group: enough for 8 of a thousand float32, which share the work across lanes. Twice
 * as many take 0.99 of the time on one thread and 1.05 on two, where the groups at the ends of a step count for more;
 * half as many 1.05. */
#define GROUP_BYTES ((ptrdiff_t)32768)
/* The same where the rows are too large for the caches (rows of 1000 float32 with two threads: 0.92 to 0.97 on an Intel
 * Xeon; not measured elsewhere). */
#define LARGE_GROUP_BYTES ((ptrdiff_t)65536)
/* The same where exponentials wait and groups do not overlap (with 64 MB of output 64 KiB take 1.25 times as long). */
#define WAITING_BYTES ((ptrdiff_t)16384)
/* Columns side by side from which they go in vertical groups though most lanes may be idle; fewer, if they are too long
 * to be transposed, go horizontally, copied one by one. Vertical against horizontal, columns of 300 to 2000: two 1.3 to
 * 2 (0.9 with vectors of 32 bytes), three 0.6 to 1.0; of 20,000: three 1.3, four 0.6 to 1.0. */
#define FEWEST_COLUMNS ((ptrdiff_t)3)
#define FEWEST_LONG_COLUMNS ((ptrdiff_t)4)
/* Bytes of the strips of a batch of short rows. The groups of a batch hide how long the steps between their sums and what
 * is written take: least where that is a division alone, without a logarithm. But their lines come and go at once, and
 * not those of one batch while another is summed. Measured on an Intel Xeon, 16 KiB against these: softmax of 20 to 100
 * float32 1.02 to 1.12 (vectors of 32 bytes 1.0 to 1.07), log_softmax and the loss with its gradient 0.99 to 1.06; these
 * against 16 KiB, logsumexp 1.0 to 1.09. */
#define SHORT_BATCH_BYTES ((ptrdiff_t)6144)
#define BATCH_BYTES ((ptrdiff_t)10240)
#define UNWRITTEN_BATCH_BYTES ((ptrdiff_t)16384)
/* Bytes of the longest rows that are fetched into the cache ahead of their turn, where groups do not overlap. */
#define PREFETCH_BYTES ((ptrdiff_t)131072)
/* Scratch memory of a small job, on the stack. */
#define SMALL_SCRATCH 20480
#define ALIGNMENT 64

static ptrdiff_t itemsize_of(const struct fsm_job *job) { return job->is_double ? 8 : 4; }

static ptrdiff_t round_up(ptrdiff_t value, ptrdiff_t multiple) { return (value + multiple - 1) / multiple * multiple; }

static ptrdiff_t least(ptrdiff_t a, ptrdiff_t b) { return a < b ? a : b; }
static ptrdiff_t most(ptrdiff_t a, ptrdiff_t b) { return a > b ? a : b; }
static ptrdiff_t at_least_one(ptrdiff_t value) { return most(value, 1); }

/* Neighbouring rows lie one element apart, so that a vector takes an element of each. */
static int are_columns(const struct fsm_job *job, const struct fsm_operand *operand)
{
    ptrdiff_t itemsize = itemsize_of(job), fewest = job->n <= BLOCK ? FEWEST_COLUMNS : FEWEST_LONG_COLUMNS;
    int last = job->dimensions - 1;
    return operand->axis_stride != itemsize && operand->strides[last] == itemsize && job->shape[last] >= fewest;
}

/* Whether a step along any of the first dimensions leads to the same place in another line of the cache. */
static int are_whole_lines(const struct fsm_job *job, const struct fsm_operand *operand, int dimensions)
{
    for (int d = 0; d < dimensions; d++)
        if (job->shape[d] > 1 && operand->strides[d] % ALIGNMENT != 0) return 0;
    return 1;
}

/* Every line of a panel begins as its first one does, relative to a line of the cache. */
static int are_lines_alike(const struct fsm_job *job, const struct fsm_operand *operand, ptrdiff_t lanes)
{
    int last = job->dimensions - 1;
    return operand->axis_stride % ALIGNMENT == 0 && (last == 0 || job->shape[last] % lanes == 0) &&
           are_whole_lines(job, operand, last);
}

static int is_cache_large(void) { return second_level_cache_bytes >= LARGE_SECOND_LEVEL; }

/* Groups of a panel that leaves room in the cache. */
static ptrdiff_t narrow_panel_groups(ptrdiff_t strip_bytes, ptrdiff_t group_line_bytes)
{
    ptrdiff_t groups = NARROW_PANEL_BYTES / strip_bytes;
    return is_cache_large() ? most(groups, LEAST_LINE_BYTES / group_line_bytes) : groups;
}

/* Whether long columns come from memory in panels that leave room for the next one: its lines may take half of the ways
 * of any place in the cache, and a stride of many twos leaves them few places. */
static int are_fetched_ahead(const struct fsm_job *job, ptrdiff_t strip_bytes, ptrdiff_t lanes)
{
    const struct fsm_operand *x = &job->operands[FSM_X];
    ptrdiff_t itemsize = itemsize_of(job), group_line_bytes = lanes * itemsize;
    ptrdiff_t line_bytes = narrow_panel_groups(strip_bytes, group_line_bytes) * group_line_bytes;
    ptrdiff_t lines_apart = x->axis_stride & -x->axis_stride;
    return job->n * itemsize * job->rows >= FETCHED_BYTES && are_lines_alike(job, x, lanes) &&
           line_bytes >= FETCHED_LINE_BYTES && job->n * most(line_bytes, lines_apart) <= 4 * CACHE_WAY_BYTES;
}

/* Nothing but exponentials are summed, of logits that are read where they lie. */
static int sums_exponentials_alone(const struct plan *plan)
{
    switch (plan->operation) {
    case FSM_SOFTMAX:
    case FSM_LOG_SOFTMAX:
    case FSM_SELECT: return 1;
    case FSM_LOGSUMEXP: return !plan->is_weighted;
    case FSM_CROSS_ENTROPY: return !plan->has_dense_targets;
    default: return 0;
    }
}

static ptrdiff_t batch_bytes(const struct plan *plan)
{
    if (!writes_elements(plan)) return UNWRITTEN_BATCH_BYTES;
    int ends_soon = plan->operation == FSM_SOFTMAX || plan->operation == FSM_GRAD_HESS;
    return ends_soon ? SHORT_BATCH_BYTES : BATCH_BYTES;
}

static void plan_vertical(struct plan *plan, const struct kernels *kernels, int columns, int threads)
{
    const struct fsm_job *job = plan->job;
    const struct fsm_operand *out = &job->operands[FSM_OUT];
    ptrdiff_t itemsize = itemsize_of(job), groups = (job->rows - 1) / kernels->lanes + 1;
    plan->group_rows = kernels->lanes;
    if (job->n > BLOCK) {
        plan->in_place = columns && sums_exponentials_alone(plan);
        /* As many side by side as wait in the caches, but as many for each thread. */
        ptrdiff_t batches = round_up((groups - 1) / BATCH_GROUPS + 1, threads);
        if (plan->in_place) plan->batch_groups = (groups - 1) / batches + 1;
        return;
    }
    plan->batch_groups = at_least_one(least(least(batch_bytes(plan) / plan->strip_bytes, BATCH_GROUPS), groups));
    if (!columns || plan->is_weighted || job->shape[job->dimensions - 1] < 2 * kernels->lanes) return;
    plan->writes_panels = writes_elements(plan) && are_columns(job, out);
    /* As wide as memory and cache allow, but two panels or more for each thread, and as many whole ones for each thread
     * unless they had fewer than NARROW_PANEL groups then. */
    ptrdiff_t line_groups = PANEL_LINE_BYTES / (kernels->lanes * itemsize);
    line_groups = least(line_groups, most(groups / (2 * threads), BATCH_GROUPS));
    int are_long = job->n >= kernels->short_row;
    plan->fetches_panels = !are_long || are_fetched_ahead(job, plan->strip_bytes, kernels->lanes);
    int is_narrow = is_cache_large() || (are_long && plan->fetches_panels);
    ptrdiff_t widest = is_narrow ? narrow_panel_groups(plan->strip_bytes, kernels->lanes * itemsize)
                                 : PANEL_BYTES / plan->strip_bytes;
    widest = at_least_one(least(widest, line_groups));
    ptrdiff_t panels = (groups - 1) / widest + 1;
    if (panels > 1 && groups >= NARROW_PANEL * round_up(panels, threads)) panels = round_up(panels, threads);
    plan->panel_groups = (groups - 1) / panels + 1;
    /* Pieces of summed losses begin at fixed rows, which a skew would move. */
    if (!kernels->streams || !plan->writes_panels || job->sum_losses || job->n * itemsize * job->rows < STREAM_BYTES ||
        !are_lines_alike(job, out, kernels->lanes))
        return;
    plan->streams_panels = 1;
    plan->skew = (ptrdiff_t)((uintptr_t)out->data / (uintptr_t)itemsize) % kernels->lanes;
}

/* Where the output is streamed the exponentials cannot wait in it for the third phase. */
static int exponentials_wait(enum fsm_operation operation)
{
    return operation == FSM_SOFTMAX || operation == FSM_CROSS_ENTROPY;
}

static void plan_horizontal(struct plan *plan, const struct kernels *kernels, int threads)
{
    const struct fsm_job *job = plan->job;
    const struct fsm_operand *x = &job->operands[FSM_X], *out = &job->operands[FSM_OUT];
    ptrdiff_t itemsize = itemsize_of(job), row_bytes = job->n * itemsize;
    int last = job->dimensions - 1, waits = exponentials_wait(job->operation);
    int is_large = row_bytes * job->rows >= STREAM_BYTES;
    plan->overlaps = kernels->overlap && sums_exponentials_alone(plan) && !(plan->is_scaled && is_large) &&
                     job->n >= kernels->short_row && x->axis_stride == itemsize &&
                     (!writes_elements(plan) || out->axis_stride == itemsize);
    /* Block by block a row's exponentials may take the place of those of the row before, if both begin alike. */
    plan->waiting_groups = plan->overlaps && !(plan->blocks > 1 && are_whole_lines(job, out, job->dimensions)) ? 2 : 1;
    ptrdiff_t longest = plan->overlaps ? OVERLAPPED_WAITING_BYTES / plan->waiting_groups : WAITING_ROW_BYTES;
    int fits = job->operation == FSM_LOG_SOFTMAX || (waits && row_bytes <= longest);
    plan->streamed = kernels->streams && fits && has(plan, FSM_OUT) && out->axis_stride == itemsize && is_large;
    plan->overlaps_rows = !writes_elements(plan) || !is_large || plan->streamed;
    ptrdiff_t group_bytes = is_large ? LARGE_GROUP_BYTES : GROUP_BYTES;
    if (plan->streamed && waits && !plan->overlaps) group_bytes = WAITING_BYTES;
    /* As many rows of one block as share the work across lanes, a power of two of them: summed losses go by pieces of
     * 16 rows or a multiple, which are to be whole groups. But two groups or more for each thread. */
    plan->group_rows = job->n <= BLOCK ? kernels->lanes : 1;
    while (plan->group_rows > 1 && (plan->group_rows * row_bytes > group_bytes ||
                                    (threads > 1 && plan->group_rows * 2 * threads > job->rows)))
        plan->group_rows /= 2;
    /* Longer rows would push each other out of the second-level cache; others are read from a copy. */
    if (x->axis_stride == itemsize && !plan->is_weighted && job->shape[last] > plan->group_rows &&
        plan->group_rows * row_bytes <= PREFETCH_BYTES)
        plan->ahead = plan->group_rows * x->strides[last] / itemsize;
}

/* Whether rows are transposed. A single short row takes less time if its sum is found element by element, instead of
 * all in one lane of vectors (measured: 0.8 with 31 float32, 0.5 with 100). Longer rows are transposed in whole groups
 * only, or where there are so many that an unfilled one does not count. */
static int are_transposed(const struct plan *plan, const struct kernels *kernels)
{
    const struct fsm_job *job = plan->job;
    int is_simple = sums_exponentials_alone(plan);
    if (job->n < kernels->short_row) return job->rows > 1 || !is_simple;
    return job->n < (writes_elements(plan) ? 1 : 2) * kernels->transposed_row && is_simple && !plan->is_scaled &&
           (job->rows % kernels->lanes == 0 || job->rows >= 8 * kernels->lanes);
}

/* Field by field: to clear the whole of it first takes a tenth of a small call. */
static void make_plan(struct plan *plan, const struct fsm_job *job, const struct kernels *kernels, int threads)
{
    ptrdiff_t itemsize = itemsize_of(job);
    plan->job = job;
    plan->operation = job->operation;
    plan->operands = 0;
    for (int name = 0; name < FSM_OPERANDS; name++)
        if (job->operands[name].data) plan->operands |= 1u << name;
    plan->is_scaled = has(plan, FSM_TEMPERATURE);
    plan->is_weighted = job->operation == FSM_LOGSUMEXP && has(plan, FSM_SECOND);
    plan->has_dense_targets =
        job->operation == FSM_CROSS_ENTROPY && (has(plan, FSM_SECOND) || job->label_smoothing != 0);
    /* Targets that are 0 as floats cost nothing even at an infinite distance, which is asked one by one. */
    plan->has_uniform_targets = plan->has_dense_targets && !has(plan, FSM_SECOND) && !job->class_weight &&
                                (float)(job->label_smoothing / (double)job->n) > 0;
    plan->reads_targets = plan->has_dense_targets && !plan->has_uniform_targets;
    plan->sums_by_block = job->n > LONG_ROW && sums_exponentials_alone(plan);
    plan->blocks = 1;
    plan->block_length = job->n;
    if (job->n > BLOCK) {
        plan->block_length = plan->sums_by_block ? long_block_length(job->n) : BLOCK;
        plan->blocks = (job->n - 1) / plan->block_length + 1;
    }
    plan->in_place = plan->overlaps = plan->overlaps_rows = plan->streamed = 0;
    plan->waiting_groups = 1;
    plan->writes_panels = plan->streams_panels = plan->fetches_panels = 0;
    plan->skew = plan->ahead = plan->panel_groups = 0;
    plan->batch_groups = 1;
    int columns = are_columns(job, &job->operands[FSM_X]);
    plan->vertical = columns || are_transposed(plan, kernels);
    ptrdiff_t strip_rows = plan->vertical ? kernels->lanes : 1;
    plan->strip_bytes = round_up(plan->block_length * strip_rows * itemsize, ALIGNMENT) + ALIGNMENT;
    plan->group_scratch_bytes = WHOLE_ROWS * plan->strip_bytes;
    if (plan->vertical) plan_vertical(plan, kernels, columns, threads);
    else plan_horizontal(plan, kernels, threads);
    /* In place there is a group at a time in scratch memory, or the chains of all. */
    plan->scratch_bytes =
        plan->group_scratch_bytes * (plan->in_place ? 1 : most(plan->batch_groups, plan->panel_groups));
    plan->waiting_bytes =
        plan->streamed && exponentials_wait(job->operation) ? round_up(job->n * itemsize, ALIGNMENT) + ALIGNMENT : 0;
}

/* What the threads of a job share. */
struct run {
    const struct kernels *kernels;
    struct plan plan;
    char *scratch; /* scratch_bytes for each thread */
    /* Rows are shared out by items of whole units, as many in each or one more; summed losses are added up by pieces,
     * of which a unit has whole ones. A thread has room for the losses of held_rows, whole units. */
    ptrdiff_t items, units, unit_rows, piece_rows, held_rows, losses_bytes;
    double *piece_losses, *scaled_piece_losses;
    /* Groups of long rows, block by block. */
    char *groups, *blocks, *losses;
    blocks_function *phase;
};

static void *scratch_of(const struct run *run, int thread) { return run->scratch + thread * run->plan.scratch_bytes; }

/* Sums that need not wait for one another, each of every eighth loss. */
#define LOSS_SUMS 8

/* Real losses times a scale: those sums, added up in halves. */
static inline double sum_losses(int is_double, const void *losses, ptrdiff_t count, double scale)
{
    double sums[LOSS_SUMS] = {0};
    for (ptrdiff_t i = 0; i < count; i += LOSS_SUMS)
        for (ptrdiff_t k = 0; k < LOSS_SUMS && i + k < count; k++)
            sums[k] += scale * (is_double ? ((const double *)losses)[i + k] : (double)((const float *)losses)[i + k]);
    for (ptrdiff_t half = LOSS_SUMS / 2; half > 0; half /= 2)
        for (ptrdiff_t k = 0; k < half; k++) sums[k] += sums[k + half];
    return sums[0];
}

static int is_finite(double value) { return value - value == 0; }

/* The sums of the pieces of rows [first, end), `first` beginning one, from these rows' losses. */
static void sum_pieces(const struct run *run, const char *losses, ptrdiff_t first, ptrdiff_t end)
{
    int is_double = run->plan.job->is_double;
    ptrdiff_t itemsize = itemsize_of(run->plan.job);
    for (ptrdiff_t row = first; row < end; row += run->piece_rows) {
        const char *of_piece = losses + (row - first) * itemsize;
        ptrdiff_t piece = row / run->piece_rows, rows = least(run->piece_rows, end - row);
        double sum = sum_losses(is_double, of_piece, rows, 1);
        run->piece_losses[piece] = sum;
        run->scaled_piece_losses[piece] =
            is_finite(sum) ? sum * FSM_LOSS_SUM_SCALE : sum_losses(is_double, of_piece, rows, FSM_LOSS_SUM_SCALE);
    }
}

static ptrdiff_t first_row_of_item(const struct run *run, ptrdiff_t item)
{
    ptrdiff_t left_over = run->units % run->items;
    ptrdiff_t unit = item * (run->units / run->items) + (item * left_over + run->items - 1) / run->items;
    return most(0, least(unit * run->unit_rows - run->plan.skew, run->plan.job->rows));
}

static void run_items(void *context, ptrdiff_t first, ptrdiff_t last, int thread)
{
    const struct run *run = context;
    const struct fsm_job *job = run->plan.job;
    char *scratch = scratch_of(run, thread);
    ptrdiff_t begin = first_row_of_item(run, first), end = first_row_of_item(run, last);
    if (!job->sum_losses) {
        run->kernels->rows(&run->plan, begin, end, NULL, scratch);
        return;
    }
    char *losses = scratch + run->plan.scratch_bytes - run->losses_bytes;
    for (ptrdiff_t row = begin; row < end; row += run->held_rows) {
        ptrdiff_t last_row = least(row + run->held_rows, end);
        run->kernels->rows(&run->plan, row, last_row, losses, scratch);
        sum_pieces(run, losses, row, last_row);
    }
}

static struct group *group_of(const struct run *run, ptrdiff_t group)
{
    return (struct group *)(void *)(run->groups + group * (ptrdiff_t)run->kernels->group_bytes);
}

/* Blocks [first, last) of all groups: each group's in turn. */
static void run_blocks(void *context, ptrdiff_t first, ptrdiff_t last, int thread)
{
    const struct run *run = context;
    ptrdiff_t blocks = run->plan.blocks;
    for (ptrdiff_t at = first, end; at < last; at = end) {
        ptrdiff_t group = at / blocks, before = group * blocks;
        end = least(last, before + blocks);
        run->phase(&run->plan, group_of(run, group), at - before, end - before, scratch_of(run, thread));
    }
}

static void share_out_blocks(struct run *run, int team, ptrdiff_t groups, blocks_function *phase)
{
    run->phase = phase;
    share_out(team, groups * run->plan.blocks, run_blocks, run);
}

/* Few long rows: each phase's blocks, of all the rows, are shared out. */
static void run_by_blocks(struct run *run, int team, ptrdiff_t groups)
{
    const struct kernels *kernels = run->kernels;
    const struct fsm_job *job = run->plan.job;
    ptrdiff_t step = run->plan.group_rows, itemsize = itemsize_of(job);
    for (ptrdiff_t g = 0; g < groups; g++) {
        ptrdiff_t end = least((g + 1) * step, job->rows);
        kernels->begin(&run->plan, group_of(run, g), g * step, end, run->blocks + g * run->plan.blocks_bytes);
    }
    if (needs_max(&run->plan) && !run->plan.sums_by_block) {
        share_out_blocks(run, team, groups, kernels->max_of_blocks);
        for (ptrdiff_t g = 0; g < groups; g++) kernels->end_max_of_blocks(&run->plan, group_of(run, g));
    }
    share_out_blocks(run, team, groups, kernels->sum_of_blocks);
    for (ptrdiff_t g = 0; g < groups; g++)
        kernels->end_sum_of_blocks(&run->plan, group_of(run, g),
                                   job->sum_losses ? run->losses + g * step * itemsize : NULL);
    if (writes_elements(&run->plan)) share_out_blocks(run, team, groups, kernels->write_blocks);
    if (job->sum_losses) sum_pieces(run, run->losses, 0, job->rows);
}

/* One allocation cut into aligned parts. */
struct arena {
    char *base;
    ptrdiff_t size;
};

static ptrdiff_t reserve(struct arena *arena, ptrdiff_t count, ptrdiff_t bytes)
{
    ptrdiff_t at = arena->size;
    arena->size += round_up(count * bytes, ALIGNMENT);
    return at;
}

/* A few short rows would leave half of the widest vectors' lanes idle: 8 rows of 100 float32 take 0.76 of the time
 * with half the width. (A single one does not go by lanes: see are_transposed.) So would as few columns: 8 of 1000
 * float32 0.7. */
static const struct kernels *kernels_for(const struct fsm_job *job)
{
    int is_double = job->is_double != 0;
    const struct kernels *narrow = narrow_kernels[is_double];
    int are_few = job->rows > 1 && job->rows <= narrow->lanes;
    int are_vertical = job->n < narrow->short_row || are_columns(job, &job->operands[FSM_X]);
    return are_few && are_vertical ? narrow : chosen_kernels[is_double];
}

enum fsm_status fsm_run(struct fsm_job *job)
{
    job->loss_sum = job->scaled_loss_sum = 0;
    if (job->rows == 0 || job->n == 0) return FSM_DONE;
    struct run run;
    run.kernels = kernels_for(job);
    /* Divided rather than multiplied: a stride of 0 makes rows of any number. */
    ptrdiff_t row_elements = job->n + ROW_ELEMENTS;
    int threads = job->rows >= (PARALLEL_ELEMENTS + row_elements - 1) / row_elements ? fsm_thread_limit() : 1;
    make_plan(&run.plan, job, run.kernels, threads);
    ptrdiff_t itemsize = itemsize_of(job);
    ptrdiff_t groups = (job->rows + run.plan.group_rows - 1) / run.plan.group_rows;

    run.piece_rows = run.held_rows = run.losses_bytes = 0;
    int cuts_panels = run.plan.panel_groups > 0 && !job->sum_losses;
    ptrdiff_t item_rows = run.plan.group_rows * most(run.plan.batch_groups, run.plan.panel_groups);
    /* Of whole lines of the cache, lest two threads write to one. */
    run.unit_rows = cuts_panels ? most(run.plan.group_rows, ALIGNMENT / itemsize) : item_rows;
    if (job->sum_losses) {
        /* Pieces depend on n alone: a summed loss adds up in the same order on any machine. */
        run.piece_rows = job->n >= PIECE_ELEMENTS ? 1 : round_up(PIECE_ELEMENTS / job->n, 16);
        run.unit_rows = round_up(run.unit_rows, run.piece_rows);
        run.held_rows = round_up(least(HELD_LOSSES, job->rows), run.unit_rows);
        run.losses_bytes = round_up(run.held_rows * itemsize, ALIGNMENT);
    }
    run.units = (job->rows + run.plan.skew - 1) / run.unit_rows + 1;
    run.items = run.units;
    /* As much for each thread, with panels a little narrower: 524 columns of 1000 float32 take 0.93 to 1.03 of the time
     * with two threads, 900 of them 0.89 to 0.95. */
    if (cuts_panels)
        run.items = least(round_up((job->rows - 1) / item_rows + 1, threads), least(run.units, MOST_ITEMS));
    ptrdiff_t pieces = job->sum_losses ? (job->rows - 1) / run.piece_rows + 1 : 0;

    int team = claim_team(threads);
    int by_blocks = team > 1 && run.plan.blocks > 1 && groups < 4 * (ptrdiff_t)team && groups % team != 0;
    run.plan.blocks_bytes = 0;
    if (run.plan.blocks > 1)
        run.plan.blocks_bytes =
            round_up(run.plan.blocks * run.kernels->block_fields * run.plan.group_rows * itemsize, ALIGNMENT);
    if (by_blocks) {
        run.plan.streamed = 0;
    } else {
        run.plan.scratch_bytes += run.plan.waiting_groups * run.plan.group_rows * run.plan.waiting_bytes;
        run.plan.blocks_at = run.plan.scratch_bytes;
        run.plan.scratch_bytes += most(run.plan.batch_groups, OVERLAPPED_GROUPS) * run.plan.blocks_bytes;
        run.plan.scratch_bytes += run.losses_bytes;
    }

    struct arena arena = {0};
    ptrdiff_t scratch_at = reserve(&arena, team, run.plan.scratch_bytes);
    ptrdiff_t piece_losses_at = reserve(&arena, pieces, 2 * sizeof(double));
    ptrdiff_t groups_at = 0, blocks_at = 0, losses_at = 0;
    if (by_blocks) {
        groups_at = reserve(&arena, groups, (ptrdiff_t)run.kernels->group_bytes);
        blocks_at = reserve(&arena, groups, run.plan.blocks_bytes);
        losses_at = reserve(&arena, groups * run.plan.group_rows, itemsize);
    }
    _Alignas(ALIGNMENT) char small[SMALL_SCRATCH];
    char *allocated = NULL;
    arena.base = small;
    if (arena.size > SMALL_SCRATCH) {
        allocated = malloc((size_t)(arena.size + ALIGNMENT));
        if (!allocated) {
            release_team(team);
            return FSM_NO_MEMORY;
        }
        arena.base = allocated + (ALIGNMENT - (uintptr_t)allocated % ALIGNMENT);
    }
    run.scratch = arena.base + scratch_at;
    run.piece_losses = (double *)(void *)(arena.base + piece_losses_at);
    run.scaled_piece_losses = run.piece_losses + pieces;
    run.groups = arena.base + groups_at;
    run.blocks = arena.base + blocks_at;
    run.losses = arena.base + losses_at;

    if (by_blocks) run_by_blocks(&run, team, groups);
    else share_out(team, run.items, run_items, &run);
    job->loss_sum = sum_losses(1, run.piece_losses, pieces, 1);
    job->scaled_loss_sum = sum_losses(1, run.scaled_piece_losses, pieces, 1);
    release_team(team);
    free(allocated);
    return FSM_DONE;
}
