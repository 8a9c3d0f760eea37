/* Checks all labels before any work. */
#include "kernels.h"
#include "labels.h"

static double class_weight_of(const struct fsm_job *job, int64_t label)
{
    if (!job->class_weight) return 1;
    if (job->is_double) return ((const double *)job->class_weight)[label];
    return (double)((const float *)job->class_weight)[label];
}

/* Rows whose labels and weights lie at one distance from each other. */
static ptrdiff_t run_length(const struct fsm_job *job) { return job->shape[job->dimensions - 1]; }

static ptrdiff_t run_stride(const struct fsm_job *job, const struct fsm_operand *operand)
{
    return operand->strides[job->dimensions - 1];
}

/* Of a run's labels, `stride` bytes apart: how many are not ignored; *outside becomes negative if one of those is
 * no class. In operations that the oldest vectors have too: labels side by side are looked at two at a time. */
static inline ptrdiff_t count_run(const struct fsm_job *job, const char *labels, ptrdiff_t stride,
                                  enum fsm_label_type type, int64_t *outside)
{
    uint64_t last = (uint64_t)job->n - 1, ignored = (uint64_t)job->ignore_index, found = 0, counted = 0;
    uint64_t none_ignored = !job->has_ignore_index;
    for (ptrdiff_t i = 0; i < run_length(job); i++) {
        uint64_t label = (uint64_t)read_label(labels + i * stride, type), other = label ^ ignored;
        uint64_t counts = ((other | -other) >> 63) | none_ignored; /* 1 or 0 */
        /* One of the two is negative, unless 0 <= label <= last. */
        found |= (label | (last - label)) & -counts;
        counted += counts;
    }
    *outside |= (int64_t)found;
    return (ptrdiff_t)counted;
}

/* Rows that are not ignored, where each has one label and no weight; -1 where a label is out of range. */
static inline ptrdiff_t count_labels_of_type(const struct fsm_job *job, enum fsm_label_type type)
{
    const struct fsm_operand *labels = &job->operands[FSM_LABELS];
    ptrdiff_t counted = 0, stride = run_stride(job, labels), dense = label_bytes(type);
    int64_t outside = 0;
    for (ptrdiff_t row = 0; row < job->rows; row += run_length(job)) {
        const char *run = labels->data + row_offset(job, labels, row);
        counted += stride == dense ? count_run(job, run, dense, type, &outside)
                                   : count_run(job, run, stride, type, &outside);
    }
    return outside < 0 ? -1 : counted;
}

static ptrdiff_t count_labels(const struct fsm_job *job)
{
    /* A constant for the commonest types: the loop over labels then asks but once. */
    switch (job->label_type) {
    case FSM_INT64: return count_labels_of_type(job, FSM_INT64);
    case FSM_INT32: return count_labels_of_type(job, FSM_INT32);
    default: return count_labels_of_type(job, job->label_type);
    }
}

/* One row more: its labels, where there are any, and its weight. Returns whether all is right. */
static int check_row(const struct fsm_job *job, struct fsm_label_check *check, ptrdiff_t row, const char *labels,
                     double weight)
{
    int selects = job->operation == FSM_SELECT, ignored = weight == 0;
    ptrdiff_t items = !labels ? 0 : selects ? job->n_selected : 1;
    for (ptrdiff_t item = 0; item < items; item++) {
        int64_t label = read_label(labels + item * job->operands[FSM_LABELS].axis_stride, job->label_type);
        if (is_ignored(job, label)) {
            ignored = 1;
        } else if (!is_class(job, label)) {
            check->bad_row = row;
            check->bad_item = item;
            return 0;
        } else if (!selects) {
            double class_weight = class_weight_of(job, label);
            if (class_weight == 0 && job->label_smoothing == 0) ignored = 1;
            weight *= class_weight;
        }
    }
    if (ignored) return 1;
    check->counted++;
    check->weight_sum += weight;
    return 1;
}

struct fsm_label_check fsm_check_labels(const struct fsm_job *job)
{
    const struct fsm_operand *labels = &job->operands[FSM_LABELS];
    const struct fsm_operand *sample_weight = &job->operands[FSM_SAMPLE_WEIGHT];
    struct fsm_label_check check = {.bad_row = -1, .bad_item = -1};
    if (labels->data && job->operation != FSM_SELECT && !sample_weight->data && !job->class_weight) {
        check.counted = count_labels(job);
        check.weight_sum = (double)check.counted;
        if (check.counted >= 0) return check;
        check = (struct fsm_label_check){.bad_row = -1, .bad_item = -1};
    }
    for (ptrdiff_t row = 0; row < job->rows; row += run_length(job)) {
        const char *labels_of_run = labels->data ? labels->data + row_offset(job, labels, row) : NULL;
        const char *weights = sample_weight->data ? sample_weight->data + row_offset(job, sample_weight, row) : NULL;
        for (ptrdiff_t i = 0; i < run_length(job); i++) {
            const char *label = labels_of_run ? labels_of_run + i * run_stride(job, labels) : NULL;
            double weight = 1;
            if (weights)
                weight = *(const double *)(const void *)(weights + i * run_stride(job, sample_weight));
            if (!check_row(job, &check, row + i, label, weight)) return check;
        }
    }
    return check;
}
