/* Class labels of any integer type, at any stride. */
#ifndef FASTSOFTMAX_LABELS_H
#define FASTSOFTMAX_LABELS_H

#include "fastsoftmax.h"

/* A uint64_t comes as the int64_t of the same bits: none that this makes negative is a class. */
static inline int64_t read_label(const char *from, enum fsm_label_type type)
{
    switch (type) {
    case FSM_INT8: return *(const int8_t *)(const void *)from;
    case FSM_INT16: return *(const int16_t *)(const void *)from;
    case FSM_INT32: return *(const int32_t *)(const void *)from;
    case FSM_INT64: return *(const int64_t *)(const void *)from;
    case FSM_UINT8: return *(const uint8_t *)(const void *)from;
    case FSM_UINT16: return *(const uint16_t *)(const void *)from;
    case FSM_UINT32: return *(const uint32_t *)(const void *)from;
    case FSM_UINT64: return (int64_t)*(const uint64_t *)(const void *)from;
    }
    return -1;
}

static inline ptrdiff_t label_bytes(enum fsm_label_type type)
{
    switch (type) {
    case FSM_INT8:
    case FSM_UINT8: return 1;
    case FSM_INT16:
    case FSM_UINT16: return 2;
    case FSM_INT32:
    case FSM_UINT32: return 4;
    default: return 8;
    }
}

static inline int is_class(const struct fsm_job *job, int64_t label)
{
    return (uint64_t)label < (uint64_t)job->n;
}

static inline int is_ignored(const struct fsm_job *job, int64_t label)
{
    return job->has_ignore_index && label == job->ignore_index;
}

#endif
