/* Class labels of any integer type: reading one, and checking all of them before any work. */
#include "kernels.h"

#include <string.h>

/* Any value beyond int64_t is out of every range; so is -1, which stands for it. */
int64_t read_label(const char *from, enum fsm_label_type type)
{
    switch (type) {
    case FSM_INT8: return *(const int8_t *)(const void *)from;
    case FSM_INT16: return *(const int16_t *)(const void *)from;
    case FSM_INT32: return *(const int32_t *)(const void *)from;
    case FSM_INT64: return *(const int64_t *)(const void *)from;
    case FSM_UINT8: return *(const uint8_t *)(const void *)from;
    case FSM_UINT16: return *(const uint16_t *)(const void *)from;
    case FSM_UINT32: return *(const uint32_t *)(const void *)from;
    case FSM_UINT64: {
        uint64_t value = *(const uint64_t *)(const void *)from;
        return value > INT64_MAX ? -1 : (int64_t)value;
    }
    }
    return -1;
}

static double class_weight_of(const struct fsm_job *job, int64_t label)
{
    if (!job->class_weight) return 1;
    if (job->is_double) return ((const double *)job->class_weight)[label];
    return (double)((const float *)job->class_weight)[label];
}

struct fsm_label_check fsm_check_labels(const struct fsm_job *job)
{
    const struct fsm_operand *labels = &job->operands[FSM_LABELS];
    const struct fsm_operand *sample_weight = &job->operands[FSM_SAMPLE_WEIGHT];
    int selects = job->operation == FSM_SELECT;
    ptrdiff_t items = selects ? job->n_selected : 1;
    struct fsm_label_check check = {.bad_row = -1, .bad_item = -1};
    for (ptrdiff_t row = 0; row < job->rows; row++) {
        double weight = 1;
        if (sample_weight->data)
            weight = *(const double *)(const void *)(sample_weight->data + row_offset(job, sample_weight, row));
        int ignored = weight == 0;
        if (labels->data) {
            const char *at = labels->data + row_offset(job, labels, row);
            for (ptrdiff_t item = 0; item < items; item++) {
                int64_t label = read_label(at + item * labels->axis_stride, job->label_type);
                if (job->has_ignore_index && label == job->ignore_index) {
                    ignored = 1;
                } else if (label < 0 || label >= job->n) {
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
