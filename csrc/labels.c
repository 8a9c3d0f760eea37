/* Checks all labels before any work. */
#include "kernels.h"
#include "labels.h"

static double class_weight_of(const struct fsm_job *job, int64_t label)
{
    if (!job->class_weight) return 1;
    if (job->is_double) return ((const double *)job->class_weight)[label];
    return (double)((const float *)job->class_weight)[label];
}

static inline ptrdiff_t count_labels_of_type(const struct fsm_job *job, enum fsm_label_type type)
{
    const struct fsm_operand *labels = &job->operands[FSM_LABELS];
    ptrdiff_t counted = 0;
    int all_right = 1;
    for (ptrdiff_t row = 0; row < job->rows; row++) {
        int64_t label = read_label(labels->data + row * labels->strides[0], type);
        int ignored = is_ignored(job, label);
        all_right &= ignored | is_class(job, label);
        counted += !ignored;
    }
    return all_right ? counted : -1;
}

/* Rows that are not ignored, where each has one label and no weight; -1 where a label is out of range. */
static ptrdiff_t count_labels(const struct fsm_job *job)
{
#define COUNT(type) return count_labels_of_type(job, type)
    WITH_CONSTANT_TYPE(job->label_type, COUNT);
#undef COUNT
}

struct fsm_label_check fsm_check_labels(const struct fsm_job *job)
{
    const struct fsm_operand *labels = &job->operands[FSM_LABELS];
    const struct fsm_operand *sample_weight = &job->operands[FSM_SAMPLE_WEIGHT];
    int selects = job->operation == FSM_SELECT;
    ptrdiff_t items = selects ? job->n_selected : 1;
    struct fsm_label_check check = {.bad_row = -1, .bad_item = -1};
    if (labels->data && !selects && !sample_weight->data && !job->class_weight && job->dimensions == 1) {
        check.counted = count_labels(job);
        check.weight_sum = (double)check.counted;
        if (check.counted >= 0) return check;
        check = (struct fsm_label_check){.bad_row = -1, .bad_item = -1};
    }
    for (ptrdiff_t row = 0; row < job->rows; row++) {
        double weight = 1;
        if (sample_weight->data)
            weight = *(const double *)(const void *)(sample_weight->data + row_offset(job, sample_weight, row));
        int ignored = weight == 0;
        if (labels->data) {
            const char *at = labels->data + row_offset(job, labels, row);
            for (ptrdiff_t item = 0; item < items; item++) {
                int64_t label = read_label(at + item * labels->axis_stride, job->label_type);
                if (is_ignored(job, label)) {
                    ignored = 1;
                } else if (!is_class(job, label)) {
                    check.bad_row = row;
                    check.bad_item = item;
                    return check;
                } else if (!selects) {
                    double class_weight = class_weight_of(job, label);
                    if (class_weight == 0 && job->label_smoothing == 0) ignored = 1;
                    weight *= class_weight;
                }
            }
        }
        if (ignored) continue;
        check.counted++;
        check.weight_sum += weight;
    }
    return check;
}
