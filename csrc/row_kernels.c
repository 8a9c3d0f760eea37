/* The kernels of one dtype and instruction set; the file is compiled once for each, with
 * REAL_BITS, VECTOR_BYTES and KERNELS (the one name it exports) from setup.py.
 *
 * For a row x with temperature T, m = max(x), S = sum(e**((x - m)/T)), L = ln S:
 *   softmax        e**((x - m)/T) / S
 *   log_softmax    (x - m)/T - L
 *   logsumexp      m + L
 *   cross entropy  mass*L + sum(t*(m - x)) + z*(m + L)**2, gradient (mass + 2*z*(m + L))*p - t,
 *                  t the targets, mass their sum, p the softmax
 * S is found as count + q, count the number of elements equal to m and q the rest, wherever
 * a logarithm of it is taken. */
#ifndef REAL_BITS /* bare: float32 in 16 bytes, so that editors and -S just work */
#define REAL_BITS 32
#define VECTOR_BYTES 16
#define KERNELS kernels_f32_scalar
#endif

#include "kernels.h"
#include "passes.h"
#include "strips.h"
#include "vector_log.h"

struct group {
    ptrdiff_t first_row, count; /* rows; 1 in a horizontal group */
    struct row_pointers rows[FSM_OPERANDS];
    vec temperature, row_max;
    struct exp_shift shift;
    struct exponential largest; /* of row_max */
    struct row_sums sums;
    struct pair log_sum;
    /* Cross-entropy, one value a lane: the weight of the row, 0 where it is ignored (and then
     * nothing of the row is used), the target at the label, the upstream gradient. */
    ptrdiff_t label[64 / (REAL_BITS / 8)];
    vec weight, target, upstream, label_logit;
    struct pair factor; /* of each exponential in the output */
};

_Static_assert(sizeof(vec) == VECTOR_BYTES, "VECTOR_BYTES fits the instruction set");

INLINE int has(const struct plan *plan, enum fsm_operand_name name)
{
    return plan->job->operands[name].data != NULL;
}

INLINE int is_scaled(const struct plan *plan) { return has(plan, FSM_TEMPERATURE); }

INLINE int is_weighted(const struct plan *plan)
{
    return plan->job->operation == FSM_LOGSUMEXP && has(plan, FSM_SECOND);
}

/* Every class has a target of its own, not the label alone. */
INLINE int has_dense_targets(const struct plan *plan)
{
    const struct fsm_job *job = plan->job;
    return job->operation == FSM_CROSS_ENTROPY && (has(plan, FSM_SECOND) || job->label_smoothing != 0);
}

/* The sum's logarithm is wanted, so the max is kept out of it. */
INLINE int keeps_max_out(const struct plan *plan)
{
    return plan->job->operation != FSM_SOFTMAX && plan->job->operation != FSM_GRAD_HESS;
}

INLINE ptrdiff_t blocks(const struct plan *plan) { return (plan->job->n + BLOCK - 1) / BLOCK; }
INLINE ptrdiff_t block_length(const struct plan *plan, ptrdiff_t block)
{
    ptrdiff_t left = plan->job->n - block * BLOCK;
    return left < BLOCK ? left : BLOCK;
}

/* Reals in the strip of a block. */
INLINE ptrdiff_t strip_size(const struct plan *plan, ptrdiff_t block)
{
    return block_length(plan, block) * (plan->vertical ? LANES : 1);
}

/* Scratch memory holds a few strips: which is for what. */
enum strip_use { STRIP_X, STRIP_SECOND, STRIP_HESSIAN, WHOLE_ROW };
INLINE real *strip_memory(const struct plan *plan, void *scratch, enum strip_use use)
{
    return (real *)(void *)((char *)scratch + use * plan->strip_bytes);
}

/* ---- The rows of a group ---------------------------------------------------------- */

static void point_to_rows(const struct plan *plan, struct group *group, enum fsm_operand_name name)
{
    const struct fsm_job *job = plan->job;
    const struct fsm_operand *operand = &job->operands[name];
    struct row_pointers *rows = &group->rows[name];
    rows->axis_stride = operand->axis_stride;
    if (!plan->vertical) {
        rows->lane[0] = operand->data + row_offset(job, operand, group->first_row);
        return;
    }
    int neighbours = group->count == LANES;
    for (ptrdiff_t lane = 0; lane < LANES; lane++) {
        ptrdiff_t within = lane < group->count ? lane : group->count - 1;
        rows->lane[lane] = operand->data + row_offset(job, operand, group->first_row + within);
        neighbours &= rows->lane[lane] == rows->lane[0] + lane * (ptrdiff_t)sizeof(real);
    }
    rows->neighbours = neighbours;
}

/* A double of each row, 1 where the operand is absent. */
static double row_double(const struct group *group, const struct plan *plan, enum fsm_operand_name name,
                         ptrdiff_t lane)
{
    if (!has(plan, name)) return 1;
    return *(const double *)(const void *)group->rows[name].lane[lane];
}

/* The range in which a temperature and its inverse are both normal. */
static real temperature_of(double given)
{
    const double largest = REAL_BITS == 32 ? 0x1p100 : 0x1p1000;
    if (given > largest) return (real)largest;
    if (given < 1 / largest) return (real)(1 / largest);
    return (real)given;
}

/* What the row's label, weights and upstream gradient come to. */
static void read_targets(const struct plan *plan, struct group *group)
{
    const struct fsm_job *job = plan->job;
    const real *class_weight = job->class_weight;
    double smoothing = job->label_smoothing;
    ptrdiff_t lanes = plan->vertical ? LANES : 1;
    group->weight = group->target = group->upstream = splat(0);
    group->label_logit = splat(0);
    for (ptrdiff_t lane = 0; lane < lanes; lane++) {
        double weight = row_double(group, plan, FSM_SAMPLE_WEIGHT, lane);
        double target = 0;
        ptrdiff_t label = -1;
        if (has(plan, FSM_LABELS)) {
            int64_t read = read_label(group->rows[FSM_LABELS].lane[lane], job->label_type);
            double label_weight = 1;
            /* Labels were checked before; one that has been changed since is ignored. */
            if (read >= 0 && read < job->n && !(job->has_ignore_index && read == job->ignore_index)) {
                label = (ptrdiff_t)read;
                if (class_weight) label_weight = (double)class_weight[label];
                if (label_weight == 0 && smoothing == 0) weight = 0;
            } else {
                weight = 0;
            }
            target = (1 - smoothing) * label_weight;
            if (job->operation == FSM_GRAD_HESS) weight *= label_weight;
            group->label_logit[lane] = label >= 0 ? *element(&group->rows[FSM_X], lane, label) : 0;
        }
        group->label[lane] = label;
        group->weight[lane] = (real)weight;
        group->target[lane] = (real)target;
        group->upstream[lane] = (real)(row_double(group, plan, FSM_GRAD_LOSS, lane) * job->grad_scale * weight);
    }
    if (!plan->vertical) {
        group->label_logit = splat(group->label_logit[0]);
        group->weight = splat(group->weight[0]);
        group->target = splat(group->target[0]);
        group->upstream = splat(group->upstream[0]);
    }
}

static void begin(const struct plan *plan, struct group *group, ptrdiff_t first, ptrdiff_t last)
{
    group->first_row = first;
    group->count = last - first;
    for (int name = 0; name < FSM_OPERANDS; name++)
        if (has(plan, name)) point_to_rows(plan, group, name);
    group->temperature = splat(1);
    if (is_scaled(plan))
        EACH_LANE(lane) group->temperature[lane] =
            temperature_of(row_double(group, plan, FSM_TEMPERATURE, plan->vertical ? lane : 0));
    if (plan->job->operation == FSM_CROSS_ENTROPY || plan->job->operation == FSM_GRAD_HESS)
        read_targets(plan, group);
}

/* ---- The operands of a block ------------------------------------------------------- */

/* x; with factors b, -inf where b is 0, so that those elements are absent. */
static const real *read_x(const struct plan *plan, const struct group *group, ptrdiff_t block, void *scratch)
{
    ptrdiff_t first = block * BLOCK, length = block_length(plan, block);
    real *copy = strip_memory(plan, scratch, STRIP_X);
    const real *x = read_strip(&group->rows[FSM_X], plan->vertical, first, length, copy);
    if (!is_weighted(plan)) return x;
    const real *b = read_strip(&group->rows[FSM_SECOND], plan->vertical, first, length,
                               strip_memory(plan, scratch, STRIP_SECOND));
    EACH_VECTOR(strip_size(plan, block), drop_zeros_step, x, b, copy);
    return copy;
}

static const real *read_second(const struct plan *plan, const struct group *group, ptrdiff_t block, void *scratch)
{
    return read_strip(&group->rows[FSM_SECOND], plan->vertical, block * BLOCK, block_length(plan, block),
                      strip_memory(plan, scratch, STRIP_SECOND));
}

/* Dense targets t = (q*(1 - smoothing) + smoothing/n) * class_weight, q the probabilities
 * given; where labels are given, without the label's own (read_targets has that). */
static const real *read_dense_targets(const struct plan *plan, const struct group *group, ptrdiff_t block,
                                      void *scratch)
{
    const struct fsm_job *job = plan->job;
    ptrdiff_t first = block * BLOCK, size = strip_size(plan, block);
    real *targets = strip_memory(plan, scratch, STRIP_SECOND);
    vec keep = splat((real)(1 - job->label_smoothing));
    vec spread = splat((real)(job->label_smoothing / (double)job->n));
    const real *given = has(plan, FSM_SECOND) ? read_second(plan, group, block, scratch) : NULL;
    const real *class_weight = job->class_weight;
    for (ptrdiff_t i = 0; i < size; i += LANES) {
        ptrdiff_t lanes = size - i < LANES ? size - i : LANES;
        vec t = given ? fma_(load_lanes(given + i, lanes), keep, spread) : spread;
        if (class_weight && plan->vertical) t *= splat(class_weight[first + i / LANES]);
        else if (class_weight) t *= load_lanes(class_weight + first + i, lanes);
        store_lanes(targets + i, lanes, t);
    }
    return targets;
}

/* ---- Phase 1: the max -------------------------------------------------------------- */

static void max_phase(const struct plan *plan, const struct group *group, ptrdiff_t block, void *max_out,
                      void *scratch)
{
    const real *x = read_x(plan, group, block, scratch);
    *(vec *)max_out = max_of_strip(x, strip_size(plan, block), plan->vertical);
}

static void end_max(const struct plan *plan, struct group *group, const void *maxima, ptrdiff_t count)
{
    const vec *of_block = maxima;
    vec row_max = of_block[0];
    for (ptrdiff_t block = 1; block < count; block++) row_max = max(of_block[block], row_max);
    if (plan->job->operation == FSM_LOG_SOFTMAX_VJP) row_max = max(splat(-EXP_LIMIT), min(splat(EXP_LIMIT), row_max));
    group->row_max = row_max;
    group->shift = shift_for(row_max, group->temperature, is_scaled(plan));
    if (keeps_max_out(plan)) group->largest = shifted_exp(row_max, &group->shift, is_scaled(plan), NULL);
}

/* ---- Phase 2: the sums -------------------------------------------------------------- */

INLINE struct row_sums sums_of(const struct plan *plan, const struct group *group, const real *x, const real *second,
                               real *e, ptrdiff_t length, int mode)
{
    struct row_max row_max = {group->row_max, rounded(group->largest)};
    if (plan->vertical)
        return vertical_sums(x, second, e, length, plan->job->n < SHORT_ROW, &group->shift, &row_max, mode);
    return horizontal_sums(x, second, e, length, &group->shift, &row_max, mode);
}

/* Each combination in use is a function, and so a loop, of its own. */
#define SUMS_FUNCTION(name, mode)                                                                  \
    static struct row_sums name(const struct plan *plan, const struct group *group, const real *x, \
                                const real *second, real *e, ptrdiff_t length)                     \
    {                                                                                              \
        return sums_of(plan, group, x, second, e, length, mode);                                   \
    }
SUMS_FUNCTION(sums_store, STORE)
SUMS_FUNCTION(sums_store_scaled, STORE | SCALED)
SUMS_FUNCTION(sums_log, KEEP_MAX_OUT)
SUMS_FUNCTION(sums_log_scaled, KEEP_MAX_OUT | SCALED)
SUMS_FUNCTION(sums_log_store, KEEP_MAX_OUT | STORE)
SUMS_FUNCTION(sums_targets, KEEP_MAX_OUT | TARGETS)
SUMS_FUNCTION(sums_targets_store, KEEP_MAX_OUT | TARGETS | STORE)
SUMS_FUNCTION(sums_weighted, KEEP_MAX_OUT | WEIGHTED)

static int stores_exponentials(const struct plan *plan)
{
    switch (plan->job->operation) {
    case FSM_SOFTMAX:
    case FSM_GRAD_HESS: return 1;
    case FSM_CROSS_ENTROPY: return has(plan, FSM_OUT);
    default: return 0;
    }
}

/* Where the exponentials of a block wait for the third phase. */
static real *exponentials(const struct plan *plan, const struct group *group, ptrdiff_t block, void *scratch)
{
    if (plan->streamed) return strip_memory(plan, scratch, WHOLE_ROW) + block * BLOCK;
    return strip_to_write(&group->rows[FSM_OUT], plan->vertical, block * BLOCK, strip_memory(plan, scratch, STRIP_X));
}

static void sum_phase(const struct plan *plan, const struct group *group, ptrdiff_t block, void *sums_out,
                      void *scratch)
{
    struct row_sums *sums = sums_out;
    ptrdiff_t length = block_length(plan, block);
    if (plan->job->operation == FSM_SOFTMAX_VJP || plan->job->operation == FSM_LOG_SOFTMAX_VJP) {
        const real *x = plan->job->operation == FSM_SOFTMAX_VJP ? read_x(plan, group, block, scratch) : NULL;
        const real *g = read_second(plan, group, block, scratch);
        *sums = plan->vertical ? vertical_products(x, g, length, plan->job->n < SHORT_ROW)
                               : horizontal_products(x, g, length);
        return;
    }
    /* A vertical strip of a row of one block is still there from the first phase. */
    const real *x = plan->vertical && blocks(plan) == 1 ? strip_memory(plan, scratch, STRIP_X)
                                                        : read_x(plan, group, block, scratch);
    int scaled = is_scaled(plan);
    switch (plan->job->operation) {
    case FSM_SOFTMAX:
    case FSM_GRAD_HESS: {
        real *e = exponentials(plan, group, block, scratch);
        *sums = scaled ? sums_store_scaled(plan, group, x, NULL, e, length)
                       : sums_store(plan, group, x, NULL, e, length);
        break;
    }
    case FSM_CROSS_ENTROPY: {
        const real *targets = has_dense_targets(plan) ? read_dense_targets(plan, group, block, scratch) : NULL;
        if (has(plan, FSM_OUT)) {
            real *e = exponentials(plan, group, block, scratch);
            *sums = targets ? sums_targets_store(plan, group, x, targets, e, length)
                            : sums_log_store(plan, group, x, NULL, e, length);
        } else {
            *sums = targets ? sums_targets(plan, group, x, targets, NULL, length)
                            : sums_log(plan, group, x, NULL, NULL, length);
        }
        break;
    }
    default:
        if (is_weighted(plan))
            *sums = sums_weighted(plan, group, x, read_second(plan, group, block, scratch), NULL, length);
        else
            *sums = scaled ? sums_log_scaled(plan, group, x, NULL, NULL, length)
                           : sums_log(plan, group, x, NULL, NULL, length);
    }
    if (stores_exponentials(plan) && !plan->streamed && !(plan->vertical && blocks(plan) == 1))
        write_strip(&group->rows[FSM_OUT], plan->vertical, group->count, block * BLOCK, length,
                    strip_memory(plan, scratch, STRIP_X));
}

/* ln S as a pair; NaN where the row holds a NaN, an infinite max or nothing. */
static struct pair log_sum_of(const struct group *group)
{
    return log_of_sum(group->sums.ties, divide_pairs(group->sums.total, as_pair(group->largest)));
}

static void write_row_values(const struct group *group, enum fsm_operand_name name, vec values)
{
    for (ptrdiff_t lane = 0; lane < group->count; lane++)
        *(real *)(void *)group->rows[name].lane[lane] = values[lane];
}

/* max + log_sum; the max itself where it is infinite, unless there is a NaN. */
static vec logsumexp_of(const struct group *group, struct pair log_sum)
{
    struct pair sum = two_sum(group->row_max, log_sum.high);
    vec finite = sum.high + (sum.low + log_sum.low);
    vec nan_or_zero = group->sums.total.high * splat(0);
    return select(less(splat(REAL_MAX), absolute(group->row_max)), group->row_max + nan_or_zero, finite);
}

/* With factors: sum(b * e**x) = e**max * (ties + q), of either sign; a + inf stands for
 * what an infinite element or factor gives. */
static void end_weighted(const struct plan *plan, struct group *group)
{
    const vec infinity = splat((real)__builtin_inf()), zero = splat(0), nan = splat((real)__builtin_nan(""));
    vec ties = group->sums.ties;
    struct pair q = divide_pairs(group->sums.total, as_pair(group->largest));
    struct pair sum = two_sum(ties, q.high);
    vec value = sum.high + (sum.low + q.low);
    /* Infinite terms decide alone; their pairs have no low part. */
    value = select(equal(absolute(q.high), infinity), q.high + ties, value);
    value = select(equal(absolute(ties), infinity), ties, value);
    value = select(equal(group->row_max, -infinity), zero, value);
    /* A NaN of x or b is in the total, whatever became of it on the way here. */
    vec total = group->sums.total.high;
    value = select(equal(total, total) & equal(ties, ties), value, nan);

    lane_mask negative = less(value, zero);
    struct pair magnitude = {select(negative, -q.high, q.high), select(negative, -q.low, q.low)};
    vec result = logsumexp_of(group, log_of_sum(select(negative, -ties, ties), magnitude));
    result = select(equal(value, zero), -infinity, result);
    result = select(equal(absolute(value), infinity), infinity, result);
    result = select(equal(value, value), result, nan);
    vec sign = select(negative, splat(-1), select(equal(value, zero), zero, splat(1)));
    sign = select(equal(value, value), sign, nan);
    if (has(plan, FSM_SIGN_OUT)) write_row_values(group, FSM_SIGN_OUT, sign);
    else result = select(negative, nan, result);
    write_row_values(group, FSM_ROW_OUT, result);
}

static void end_cross_entropy(const struct plan *plan, struct group *group, real *losses)
{
    const struct fsm_job *job = plan->job;
    struct pair log_sum = log_sum_of(group);
    vec distance = group->row_max - group->label_logit;
    struct pair cost = two_product(distance, group->target);
    struct pair mass = {group->target, splat(0)};
    /* A target of 0 costs nothing, even at an infinite distance. */
    lane_mask no_target = equal(group->target, splat(0));
    cost.high = select(no_target, splat(0), cost.high);
    cost.low = select(equal(cost.low, cost.low) & ~no_target, cost.low, splat(0));
    if (has_dense_targets(plan)) {
        cost = add_pairs(cost, group->sums.cost);
        mass = add_pairs(mass, group->sums.mass);
    }
    vec z_slope = splat(0), z_cost = splat(0);
    if (job->z_loss != 0) {
        vec logsumexp = logsumexp_of(group, log_sum), z_weight = splat((real)job->z_loss);
        if (has(plan, FSM_LABELS) && job->class_weight) {
            EACH_LANE(lane) if (group->label[plan->vertical ? lane : 0] >= 0) z_weight[lane] *=
                ((const real *)job->class_weight)[group->label[plan->vertical ? lane : 0]];
        }
        z_cost = z_weight * logsumexp * logsumexp;
        z_slope = splat(2) * z_weight * logsumexp;
    }
    struct pair product = multiply_pairs(mass, log_sum);
    struct pair loss = add_pairs(product, cost);
    vec total = loss.high + loss.low;
    /* An infinite cost has no low part. */
    total = select(equal(cost.high - cost.high, splat(0)), total, cost.high + log_sum.high);
    total = select(equal(group->weight, splat(0)), splat(0), (total + z_cost) * group->weight);
    if (losses) {
        for (ptrdiff_t lane = 0; lane < group->count; lane++) losses[lane] = total[lane];
    } else if (has(plan, FSM_ROW_OUT)) {
        write_row_values(group, FSM_ROW_OUT, total);
    }
    if (!has(plan, FSM_OUT)) return;
    struct pair ties = multiply_pairs(as_pair(group->largest), (struct pair){group->sums.ties, splat(0)});
    struct pair sum = add_pairs(group->sums.total, ties);
    struct pair slope = two_sum(mass.high, z_slope);
    slope.low += mass.low;
    slope = multiply_pairs(slope, (struct pair){group->upstream, splat(0)});
    group->factor = multiply_pairs(slope, reciprocal(fast_two_sum(sum.high, sum.low)));
}

static void end_sum(const struct plan *plan, struct group *group, const void *sums, ptrdiff_t count, void *losses)
{
    const struct row_sums *of_block = sums;
    group->sums = of_block[0];
    for (ptrdiff_t block = 1; block < count; block++) group->sums = add_sums(group->sums, of_block[block]);
    switch (plan->job->operation) {
    case FSM_SOFTMAX:
    case FSM_GRAD_HESS:
        group->factor = reciprocal(fast_two_sum(group->sums.total.high, group->sums.total.low));
        break;
    case FSM_LOGSUMEXP:
        if (is_weighted(plan)) end_weighted(plan, group);
        else write_row_values(group, FSM_ROW_OUT, logsumexp_of(group, log_sum_of(group)));
        break;
    case FSM_LOG_SOFTMAX:
    case FSM_SELECT: group->log_sum = log_sum_of(group); break;
    case FSM_CROSS_ENTROPY: end_cross_entropy(plan, group, losses); break;
    case FSM_SOFTMAX_VJP:
    case FSM_LOG_SOFTMAX_VJP: break;
    }
}

/* ---- Phase 3: the output -------------------------------------------------------------- */

INLINE int label_in_block(const struct group *group, ptrdiff_t lane, ptrdiff_t first, ptrdiff_t length)
{
    return group->label[lane] >= first && group->label[lane] < first + length;
}

/* Where a lane's label lies in the strip of the block that begins at `first`. */
INLINE ptrdiff_t strip_index(const struct plan *plan, const struct group *group, ptrdiff_t lane, ptrdiff_t first)
{
    ptrdiff_t i = group->label[lane] - first;
    return plan->vertical ? i * LANES + lane : i;
}

static void write_grad_hess(const struct plan *plan, const struct group *group, ptrdiff_t block, const real *e,
                            void *scratch)
{
    const struct fsm_job *job = plan->job;
    ptrdiff_t first = block * BLOCK, length = block_length(plan, block), size = strip_size(plan, block);
    const real *targets = has(plan, FSM_SECOND) ? read_second(plan, group, block, scratch) : NULL;
    real *gradient = strip_to_write(&group->rows[FSM_OUT], plan->vertical, first, strip_memory(plan, scratch, STRIP_X));
    real *hessian = strip_to_write(&group->rows[FSM_HESSIAN], plan->vertical, first,
                                   strip_memory(plan, scratch, STRIP_HESSIAN));
    /* The label's own element, before the loop writes over its exponential. */
    vec at_label = splat(0);
    for (ptrdiff_t lane = 0; lane < (plan->vertical ? LANES : 1); lane++)
        if (label_in_block(group, lane, first, length)) at_label[lane] = e[strip_index(plan, group, lane, first)];
    at_label = fma_(at_label, group->factor.high, at_label * group->factor.low);
    at_label = (at_label - splat(1)) * group->weight;

    EACH_VECTOR(size, grad_hess_step, e, targets, gradient, hessian, group->factor, group->weight,
                splat((real)job->factor), splat((real)job->min_hess));
    for (ptrdiff_t lane = 0; lane < (plan->vertical ? LANES : 1); lane++)
        if (group->weight[lane] != 0 && label_in_block(group, lane, first, length))
            gradient[strip_index(plan, group, lane, first)] = at_label[lane];
    write_strip(&group->rows[FSM_OUT], plan->vertical, group->count, first, length, gradient);
    write_strip(&group->rows[FSM_HESSIAN], plan->vertical, group->count, first, length, hessian);
}

/* Rows that do not count have a gradient of 0, whatever their logits are. */
static void clear_ignored(const struct group *group, real *out, ptrdiff_t size)
{
    lane_mask ignored = equal(group->weight, splat(0));
    int any = 0;
    EACH_LANE(lane) any |= is_set(ignored, lane);
    if (any) EACH_VECTOR(size, clear_step, out, ignored);
}

static void write_gradient(const struct plan *plan, const struct group *group, ptrdiff_t block, const real *e,
                           real *out, void *scratch)
{
    ptrdiff_t first = block * BLOCK, length = block_length(plan, block), size = strip_size(plan, block);
    const real *targets = has_dense_targets(plan) ? read_dense_targets(plan, group, block, scratch) : NULL;
    if (targets) EACH_VECTOR(size, gradient_step, e, targets, out, group->factor, group->upstream);
    else if (plan->streamed) stream_scaled(e, out, size, group->factor);
    else write_scaled(e, out, size, group->factor);
    vec step = group->upstream * group->target;
    for (ptrdiff_t lane = 0; lane < (plan->vertical ? LANES : 1); lane++)
        if (label_in_block(group, lane, first, length)) out[strip_index(plan, group, lane, first)] -= step[lane];
    clear_ignored(group, out, size);
}

static void write_selected(const struct plan *plan, const struct group *group)
{
    const struct fsm_job *job = plan->job;
    const struct row_pointers *labels = &group->rows[FSM_LABELS];
    for (ptrdiff_t lane = 0; lane < group->count; lane++) {
        for (ptrdiff_t k = 0; k < job->n_selected; k++) {
            int64_t label = read_label(labels->lane[lane] + k * labels->axis_stride, job->label_type);
            if (label < 0 || label >= job->n) continue; /* changed since it was checked */
            real distance = *element(&group->rows[FSM_X], lane, (ptrdiff_t)label) - group->row_max[lane];
            if (is_scaled(plan)) distance /= group->temperature[lane];
            *element(&group->rows[FSM_OUT], lane, k) = distance - group->log_sum.high[lane];
        }
    }
}

/* 2**exponent of each lane, exponents within the normal range. */
INLINE vec power_of_two(vec exponent)
{
    ivec bits;
    EACH_LANE(lane) bits[lane] = ((integer)exponent[lane] + EXPONENT_BIAS) << MANTISSA_BITS;
    return (vec)bits;
}

static void write_log_softmax_vjp(const struct group *group, ptrdiff_t size, const real *x, const real *g, real *out)
{
    vec n = (splat(ROUND_MAGIC) - group->shift.magic) / splat(TABLE_SIZE);
    vec half = (n * splat((real)0.5) + splat(ROUND_MAGIC)) - splat(ROUND_MAGIC);
    vec total = group->sums.cost.high + group->sums.cost.low;
    vec half_power = power_of_two(half), other_half = power_of_two(n - half);
    EACH_VECTOR(size, log_vjp_step, x, g, out, &group->shift, half_power, other_half, total);
}

static void write_phase(const struct plan *plan, const struct group *group, ptrdiff_t block, void *scratch)
{
    ptrdiff_t first = block * BLOCK, length = block_length(plan, block), size = strip_size(plan, block);
    const struct row_pointers *out_rows = &group->rows[FSM_OUT];
    int in_scratch = plan->vertical && blocks(plan) == 1; /* the strip of the earlier phases is still there */
    real *strip = strip_memory(plan, scratch, STRIP_X);
    real *out = strip_to_write(out_rows, plan->vertical, first, strip);
    const real *from = strip;
    if (stores_exponentials(plan)) {
        if (plan->streamed) from = strip_memory(plan, scratch, WHOLE_ROW) + first;
        else if (!in_scratch) from = read_strip(out_rows, plan->vertical, first, length, strip);
    } else if (!in_scratch) {
        from = read_x(plan, group, block, scratch);
    }
    const real *second = NULL;
    if (plan->job->operation == FSM_SOFTMAX_VJP || plan->job->operation == FSM_LOG_SOFTMAX_VJP)
        second = read_second(plan, group, block, scratch);
    switch (plan->job->operation) {
    case FSM_SOFTMAX:
        if (plan->streamed) stream_scaled(from, out, size, group->factor);
        else write_scaled(from, out, size, group->factor);
        break;
    case FSM_LOG_SOFTMAX:
        if (is_scaled(plan))
            EACH_VECTOR(size, scaled_log_step, from, out, group->row_max, group->log_sum.high, group->temperature);
        else EACH_VECTOR(size, log_step, from, out, group->row_max, group->log_sum.high);
        break;
    case FSM_CROSS_ENTROPY: write_gradient(plan, group, block, from, out, scratch); break;
    case FSM_GRAD_HESS: write_grad_hess(plan, group, block, from, scratch); return;
    case FSM_SOFTMAX_VJP:
        EACH_VECTOR(size, vjp_step, from, second, out, group->sums.cost.high + group->sums.cost.low);
        break;
    case FSM_LOG_SOFTMAX_VJP:
        write_log_softmax_vjp(group, size, from, second, out);
        break;
    case FSM_SELECT:
    case FSM_LOGSUMEXP: return;
    }
    write_strip(out_rows, plan->vertical, group->count, first, length, out);
}

/* ---- A range of rows ------------------------------------------------------------------ */

static int writes_elements(const struct plan *plan)
{
    return has(plan, FSM_OUT) && plan->job->operation != FSM_SELECT;
}

static void rows(const struct plan *plan, ptrdiff_t first, ptrdiff_t last, void *losses, void *scratch)
{
    struct group group;
    for (ptrdiff_t row = first; row < last; row += plan->group_rows) {
        ptrdiff_t end = row + plan->group_rows < last ? row + plan->group_rows : last;
        begin(plan, &group, row, end);
        vec maxima[2];
        struct row_sums sums[2];
        for (ptrdiff_t block = 0; block < blocks(plan); block++) {
            max_phase(plan, &group, block, &maxima[block != 0], scratch);
            if (block) maxima[0] = max(maxima[1], maxima[0]);
        }
        end_max(plan, &group, maxima, 1);
        for (ptrdiff_t block = 0; block < blocks(plan); block++) {
            sum_phase(plan, &group, block, &sums[block != 0], scratch);
            if (block) sums[0] = add_sums(sums[0], sums[1]);
        }
        end_sum(plan, &group, sums, 1, losses ? (real *)losses + (row - first) : NULL);
        if (plan->job->operation == FSM_SELECT) write_selected(plan, &group);
        if (writes_elements(plan))
            for (ptrdiff_t block = 0; block < blocks(plan); block++) write_phase(plan, &group, block, scratch);
    }
    if (plan->streamed) stream_fence();
}

const struct kernels KERNELS = {
    .lanes = LANES,
    .short_row = SHORT_ROW,
    .group_bytes = sizeof(struct group),
    .max_bytes = sizeof(vec),
    .sums_bytes = sizeof(struct row_sums),
    .rows = rows,
    .begin = begin,
    .max_phase = max_phase,
    .end_max = end_max,
    .sum_phase = sum_phase,
    .end_sum = end_sum,
    .write_phase = write_phase,
};
