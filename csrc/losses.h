/* Cross-entropy, its gradient, and the gradient and Hessian of boosting.
 *
 * Each row has targets t over its classes, mass = sum(t):
 *   loss      weight * (mass*L + sum(t * (max - x)) + z * w * (max + L)**2)
 *   gradient  upstream * ((mass + 2 * z * w * (max + L)) * p - t)
 * with p the row's softmax, L = ln(sum(e**(x - max))), w the label's class weight (or 1).
 * Both terms of the loss have one sign: nothing cancels. Targets are one for each label
 * (its own: target, at label) and, with label smoothing or given probabilities, dense. */
#ifndef FASTSOFTMAX_LOSSES_H
#define FASTSOFTMAX_LOSSES_H

#include "group.h"
#include "labels.h"
#include "logsumexp.h"

/* A row's weight, target at its label and upstream gradient. */
static void set_row_factors(const struct plan *plan, struct group *group, ptrdiff_t lane, double label_weight)
{
    const struct fsm_job *job = plan->job;
    double smoothing = job->label_smoothing, weight = row_double(group, plan, FSM_SAMPLE_WEIGHT, lane);
    if (label_weight == 0 && smoothing == 0) weight = 0;
    if (plan->operation == FSM_GRAD_HESS) weight *= label_weight;
    group->weight[lane] = (real)weight;
    group->target[lane] = has(plan, FSM_LABELS) ? (real)((1 - smoothing) * label_weight) : 0;
    double factor = row_double(group, plan, FSM_GRAD_LOSS, lane) * weight;
    double upstream = factor * job->grad_scale;
    double lost = __builtin_fma(factor, job->grad_scale, -upstream) + factor * job->grad_scale_low;
    real high = (real)upstream;
    group->upstream.high[lane] = high;
    group->upstream.low[lane] = high - high == 0 ? (real)((upstream - (double)high) + lost) : 0;
}

typedef int64_t label_vec __attribute__((vector_size(VECTOR_BYTES)));
typedef uint64_t unsigned_label_vec __attribute__((vector_size(VECTOR_BYTES)));
typedef int64_t labels_of_8_bytes __attribute__((vector_size(VECTOR_BYTES), aligned(8), may_alias));
typedef int32_t labels_of_4_bytes __attribute__((vector_size(VECTOR_BYTES / 2), aligned(4), may_alias));
#define LABEL_LANES ((ptrdiff_t)(VECTOR_BYTES / sizeof(int64_t)))

/* -1, all bits set, where a label is `ignored` or no class. */
INLINE label_vec counted_labels(label_vec label, int64_t ignored, int64_t classes)
{
    label_vec is_ignored = (label_vec)(label == ignored);
    return label | is_ignored | (label_vec)((unsigned_label_vec)label >= (uint64_t)classes);
}

/* The rows' labels; -1 for rows that are ignored, and with no labels at all. Labels were checked before; one that has
 * been changed since is ignored. */
static void read_labels(const struct plan *plan, struct group *group)
{
    const struct fsm_job *job = plan->job;
    const struct row_pointers *rows = &group->rows[FSM_LABELS];
    for (ptrdiff_t lane = 0; lane < LANES; lane++) group->label[lane] = -1;
    if (!has(plan, FSM_LABELS)) return;
    int64_t ignored = job->has_ignore_index ? job->ignore_index : -1, classes = job->n; /* -1 is no class */
    enum fsm_label_type type = job->label_type;
    int side_by_side = rows->is_regular && rows->row_stride == label_bytes(type);
    /* One at a time they would be read as vectors soon after they were stored singly, for which the CPU waits. */
#define READ_VECTORS(labels_of_some_bytes)                                                         \
    for (ptrdiff_t v = 0; v < LANES / LABEL_LANES; v++) {                                          \
        labels_of_some_bytes labels = ((const labels_of_some_bytes *)(const void *)rows->first)[v]; \
        label_vec label = counted_labels(__builtin_convertvector(labels, label_vec), ignored, classes); \
        __builtin_memcpy(group->label + v * LABEL_LANES, &label, sizeof label);                    \
    }
    if (side_by_side && type == FSM_INT64) {
        READ_VECTORS(labels_of_8_bytes)
    } else if (side_by_side && type == FSM_INT32) {
        READ_VECTORS(labels_of_4_bytes)
    } else {
        for (ptrdiff_t lane = 0; lane < group->count; lane++) {
            int64_t label = read_label(row_start(rows, lane), type);
            if (!is_ignored(job, label) && is_class(job, label)) group->label[lane] = label;
        }
    }
#undef READ_VECTORS
}

/* The logits there, once the max has been found: the rows are in the caches then. */
static void read_label_logits(struct group *group)
{
    group->label_logit = splat(0);
    for (ptrdiff_t lane = 0; lane < group->count; lane++)
        if (group->label[lane] >= 0)
            group->label_logit[lane] = *element(&group->rows[FSM_X], lane, group->label[lane]);
}

/* What the rows' labels, weights and upstream gradients come to: a weight of 0 where the
 * row is ignored, and then nothing of the row is used; the target at the label. */
static void read_targets(const struct plan *plan, struct group *group)
{
    const real *class_weight = plan->job->class_weight;
    read_labels(plan, group);
    int alike = !class_weight && !has(plan, FSM_SAMPLE_WEIGHT) && !has(plan, FSM_GRAD_LOSS);
    if (alike) {
        set_row_factors(plan, group, 0, 1);
        group->weight = splat(group->weight[0]);
        group->target = splat(group->target[0]);
        group->upstream = (struct pair){splat(group->upstream.high[0]), splat(group->upstream.low[0])};
    } else {
        group->weight = group->target = group->upstream.high = group->upstream.low = splat(0);
        for (ptrdiff_t lane = 0; lane < group->count; lane++) {
            ptrdiff_t label = group->label[lane];
            set_row_factors(plan, group, lane, class_weight && label >= 0 ? (double)class_weight[label] : 1);
        }
    }
    if (!has(plan, FSM_LABELS)) return;
    for (ptrdiff_t lane = 0; lane < group->count; lane++) {
        if (group->label[lane] >= 0) continue;
        group->weight[lane] = group->target[lane] = 0;
        group->upstream.high[lane] = group->upstream.low[lane] = 0;
    }
}

/* max - x is multiplied by it before it is summed: both may be infinite where the loss is not. A power of two, at most
 * 1 / (2 n). */
INLINE real distance_scale(const struct fsm_job *job)
{
    int bits = 64 - __builtin_clzll((unsigned long long)job->n);
    return (real)0.5 / (real)((uint64_t)1 << bits);
}

/* The target of each class by label smoothing alone, and their sum. */
INLINE real uniform_target(const struct fsm_job *job) { return (real)(job->label_smoothing / (double)job->n); }

INLINE struct pair uniform_mass(const struct fsm_job *job)
{
    double target = (double)uniform_target(job), n = (double)job->n, mass = target * n;
    double lost = __builtin_fma(target, n, -mass) + (mass - (double)(real)mass);
    return (struct pair){splat((real)mass), splat((real)lost)};
}

/* Dense targets t = (q*(1 - smoothing) + smoothing/n) * class_weight, q the probabilities
 * given; where labels are given, without the label's own. */
static const real *read_dense_targets(const struct plan *plan, const struct group *group, ptrdiff_t block,
                                      ptrdiff_t strip, void *scratch)
{
    const struct fsm_job *job = plan->job;
    ptrdiff_t first = block_start(plan, block), size = strip_size(plan, block);
    real *targets = strip_memory(plan, scratch, STRIP_SECOND);
    vec keep = splat((real)(1 - job->label_smoothing));
    vec spread = splat(uniform_target(job));
    const real *given = has(plan, FSM_SECOND) ? read_second(plan, group, block, strip, scratch) : NULL;
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

/* e * factor - step at each row's label */
static void set_at_label(const struct plan *plan, struct group *group, struct pair step)
{
    vec value = rounded(shifted_exp(group->label_logit, &group->frame.shift, plan->is_scaled, 0));
    group->at_label = less_step(value, group->factor, step);
}

/* The probability at each row's label less 1, times the row's weight. */
static void end_grad_hess(const struct plan *plan, struct group *group)
{
    set_at_label(plan, group, (struct pair){splat(1), splat(0)});
    group->at_label = choose(equal(group->weight, splat(0)), splat(0), group->at_label * group->weight);
}

static void end_cross_entropy(const struct plan *plan, struct group *group, real *losses)
{
    const struct fsm_job *job = plan->job;
    struct pair log_sum = group->log_sum;
    vec distance = group->frame.max - group->label_logit;
    struct pair cost = two_product(distance, group->target);
    struct pair mass = {group->target, splat(0)};
    /* A target of 0 costs nothing, even at an infinite distance. */
    lane_mask no_target = equal(group->target, splat(0));
    cost.high = choose(no_target, splat(0), cost.high);
    cost.low = choose(equal(cost.low, cost.low) & ~no_target, cost.low, splat(0));
    if (plan->has_uniform_targets) {
        vec target = splat(uniform_target(job) / distance_scale(job));
        struct pair sum = group->sums.cost, product = two_product(sum.high, target);
        cost = add_pairs(cost, (struct pair){product.high, fma_(sum.low, target, product.low)});
        mass = add_pairs(mass, uniform_mass(job));
    } else if (plan->has_dense_targets) {
        cost = add_pairs(cost, group->sums.cost);
        mass = add_pairs(mass, group->sums.mass);
    }
    vec z_slope = splat(0), z_cost = splat(0);
    if (job->z_loss != 0) {
        vec logsumexp = logsumexp_of(group, log_sum), z_weight = splat((real)job->z_loss);
        if (has(plan, FSM_LABELS) && job->class_weight)
            for (ptrdiff_t lane = 0; lane < group->count; lane++)
                if (group->label[lane] >= 0) z_weight[lane] *= ((const real *)job->class_weight)[group->label[lane]];
        z_cost = z_weight * logsumexp * logsumexp;
        z_slope = splat(2) * z_weight * logsumexp;
    }
    struct pair product = multiply_pairs(mass, log_sum);
    struct pair loss = add_pairs(product, cost);
    vec total = loss.high + loss.low;
    /* An infinite cost has no low part. */
    total = choose(is_finite(cost.high), total, cost.high + log_sum.high);
    total = choose(equal(group->weight, splat(0)), splat(0), (total + z_cost) * group->weight);
    if (losses) {
        store_lanes(losses, group->count, total);
    } else if (has(plan, FSM_ROW_OUT)) {
        write_row_values(group, FSM_ROW_OUT, total);
    }
    struct pair slope = two_sum(mass.high, z_slope);
    slope.low += mass.low;
    group->slope = multiply_or_overflow(infinite_alone(slope), group->upstream);
}

/* What every exponential is multiplied by in the gradient. */
static void set_gradient_factor(struct group *group)
{
    struct pair ties = multiply_pairs(as_pair(group->largest), (struct pair){group->sums.ties, splat(0)});
    struct pair sum = add_pairs(group->sums.total, ties);
    group->factor = multiply_or_overflow(group->slope, reciprocal(fast_two_sum(sum.high, sum.low)));
}

static void set_gradient_at_label(const struct plan *plan, struct group *group)
{
    set_at_label(plan, group, multiply_or_overflow(group->upstream, (struct pair){group->target, splat(0)}));
}

/* ---- The output ------------------------------------------------------------------------- */

/* The lanes whose rows lie in this strip. */
#define EACH_LANE_OF_STRIP(plan, group, strip, lane)                                               \
    for (ptrdiff_t lane = (strip); lane < ((plan)->vertical ? (group)->count : (strip) + 1); lane++)

INLINE int label_in_block(const struct group *group, ptrdiff_t lane, ptrdiff_t first, ptrdiff_t length)
{
    return group->label[lane] >= first && group->label[lane] < first + length;
}

/* Rows that do not count have a gradient of 0, whatever their logits are. */
static void clear_ignored(const struct plan *plan, const struct group *group, ptrdiff_t strip, real *out,
                          ptrdiff_t size)
{
    lane_mask ignored = equal(in_strip(plan->vertical, &group->weight, strip), splat(0));
    if (any_lane(ignored)) EACH_VECTOR(size, clear_step, out, ignored);
}

static void write_at_labels(const struct plan *plan, const struct group *group, ptrdiff_t block, ptrdiff_t strip,
                            real *out)
{
    ptrdiff_t first = block_start(plan, block), length = block_length(plan, block);
    EACH_LANE_OF_STRIP(plan, group, strip, lane)
    {
        if (label_in_block(group, lane, first, length))
            out[index_in_strip(plan, lane, group->label[lane] - first)] = group->at_label[lane];
    }
}

/* The same for vertical groups in their place. */
static void write_at_labels_in_place(const struct plan *plan, const struct group *group, ptrdiff_t block)
{
    ptrdiff_t first = block_start(plan, block), length = block_length(plan, block);
    for (ptrdiff_t lane = 0; lane < group->count; lane++)
        if (label_in_block(group, lane, first, length))
            *element(&group->rows[FSM_OUT], lane, group->label[lane]) = group->at_label[lane];
}

/* The same for whole rows of a group in their place, none of which is ignored. */
static void write_at_label_of_rows(const struct group *group)
{
    for (ptrdiff_t lane = 0; lane < group->count; lane++)
        *element(&group->rows[FSM_OUT], lane, group->label[lane]) = group->at_label[lane];
}

/* `factors` are those of the exponentials e. */
static void write_gradient(const struct plan *plan, const struct group *group, ptrdiff_t block, ptrdiff_t strip,
                           const struct pair *factors, const real *e, real *out, void *scratch)
{
    struct pair factor = pair_in_strip(plan->vertical, factors, strip);
    ptrdiff_t first = block_start(plan, block), length = block_length(plan, block), size = strip_size(plan, block);
    struct pair upstream = pair_in_strip(plan->vertical, &group->upstream, strip);
    if (plan->has_dense_targets) {
        if (plan->has_uniform_targets) {
            vec target = splat(uniform_target(plan->job));
            struct pair step = two_product(upstream.high, target);
            step.low = fma_(upstream.low, target, step.low);
            EACH_VECTOR(size, uniform_gradient_step, e, out, factor, step);
        } else {
            const real *targets = read_dense_targets(plan, group, block, strip, scratch);
            EACH_VECTOR(size, gradient_step, e, targets, out, factor, upstream);
        }
        vec step = group->upstream.high * group->target;
        EACH_LANE_OF_STRIP(plan, group, strip, lane)
        {
            if (label_in_block(group, lane, first, length))
                out[index_in_strip(plan, lane, group->label[lane] - first)] -= step[lane];
        }
    } else {
        write_scaled_strip(plan, group, strip, factors, e, out, size);
        write_at_labels(plan, group, block, strip, out);
    }
    clear_ignored(plan, group, strip, out, size);
}

static void write_grad_hess(const struct plan *plan, const struct group *group, ptrdiff_t block, ptrdiff_t strip,
                            const real *e, void *scratch)
{
    const struct fsm_job *job = plan->job;
    ptrdiff_t first = block_start(plan, block), length = block_length(plan, block), size = strip_size(plan, block);
    const real *given = has(plan, FSM_SECOND) ? read_second(plan, group, block, strip, scratch) : NULL;
    const struct row_pointers *gradient_rows = &group->rows[FSM_OUT], *hessian_rows = &group->rows[FSM_HESSIAN];
    real *gradient = strip_to_write(gradient_rows, plan->vertical, strip, first, strip_memory(plan, scratch, STRIP_X));
    real *hessian =
        strip_to_write(hessian_rows, plan->vertical, strip, first, strip_memory(plan, scratch, STRIP_HESSIAN));

    struct pair factor = pair_in_strip(plan->vertical, &group->factor, strip);
    vec weight = in_strip(plan->vertical, &group->weight, strip);
    struct pair scale = two_product(weight, splat((real)job->factor));
    scale.low = fma_(weight, splat((real)(job->factor - (double)(real)job->factor)), scale.low);
    scale = infinite_alone(scale);
    EACH_VECTOR(size, grad_hess_step, e, given, gradient, hessian, factor, weight, scale,
                splat((real)job->min_hess));
    write_at_labels(plan, group, block, strip, gradient);
    if (!stays_in_scratch(plan))
        write_strip(gradient_rows, plan->vertical, strip, group->count, first, length, gradient);
    write_strip(hessian_rows, plan->vertical, strip, group->count, first, length, hessian);
}

#endif
