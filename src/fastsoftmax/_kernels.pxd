"""csrc/fastsoftmax.h, as Cython sees it."""

from libc.stdint cimport int64_t

cdef extern from "fastsoftmax.h" nogil:
    enum: FSM_MAX_DIMENSIONS
    enum: FSM_OPERANDS

    const double FSM_LOSS_SUM_SCALE

    enum fsm_operation:
        FSM_SOFTMAX
        FSM_LOG_SOFTMAX
        FSM_LOGSUMEXP
        FSM_SELECT
        FSM_CROSS_ENTROPY
        FSM_GRAD_HESS
        FSM_SOFTMAX_VJP
        FSM_LOG_SOFTMAX_VJP

    enum fsm_operand_name:
        FSM_X
        FSM_OUT
        FSM_SECOND
        FSM_HESSIAN
        FSM_LABELS
        FSM_SAMPLE_WEIGHT
        FSM_GRAD_LOSS
        FSM_TEMPERATURE
        FSM_ROW_OUT
        FSM_SIGN_OUT

    enum fsm_label_type:
        FSM_INT8
        FSM_INT16
        FSM_INT32
        FSM_INT64
        FSM_UINT8
        FSM_UINT16
        FSM_UINT32
        FSM_UINT64

    struct fsm_operand:
        char *data
        ptrdiff_t axis_stride
        ptrdiff_t *strides

    struct fsm_job:
        fsm_operation operation
        int is_double
        ptrdiff_t n, rows
        int dimensions
        ptrdiff_t *shape
        fsm_operand *operands
        fsm_label_type label_type
        ptrdiff_t n_selected
        int has_ignore_index
        int64_t ignore_index
        const void *class_weight
        double label_smoothing, z_loss, grad_scale, grad_scale_low, factor, min_hess
        int sum_losses
        double loss_sum, scaled_loss_sum

    struct fsm_label_check:
        ptrdiff_t bad_row, bad_item, counted
        double weight_sum

    enum fsm_status:
        FSM_DONE
        FSM_NO_MEMORY

    fsm_label_check fsm_check_labels(const fsm_job *job)
    void fsm_simplify_batch(fsm_job *job, int may_reorder)
    fsm_status fsm_run(fsm_job *job)

    const char *const *fsm_instruction_sets()
    int fsm_cpu_has(const char *instruction_set)
    int fsm_choose_instruction_set(const char *instruction_set)

    int fsm_thread_limit()
    int fsm_processor_count()
    const char *fsm_openmp_runtime()
    void fsm_initialise_threads(int limit, int openmp_limit)
    void fsm_request_threads(int threads)
    int fsm_limit_calling_thread(int threads)
