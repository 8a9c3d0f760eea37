/* The contract between the Cython core and the kernels.
 *
 * A job is one operation over `rows` rows of `n` elements. A row is a line of the
 * operands along the reduced axis; the other axes are the batch axes, in the logical
 * (C) order of the result, so that the row number means the same for every operand.
 *
 * Every operand is described by its address and byte strides and may lie in memory in
 * any way, aligned to its own element. `out` or `hessian` may be `x` itself, and `out` of
 * the vector-Jacobian products `second`; any other overlap of an operand that is written,
 * with one that is read or with itself, is the caller's to prevent.
 *
 * Values: a row with a NaN or a +inf gives NaN (logsumexp of a +inf: +inf), -inf counts
 * as absent, a row of -inf alone gives NaN (logsumexp: -inf). No kernel allocates, takes
 * locks, reads the floating-point environment or changes it. */
#ifndef FASTSOFTMAX_H
#define FASTSOFTMAX_H

#include <stddef.h>
#include <stdint.h>

#define FSM_MAX_DIMENSIONS 64
#define FSM_LOSS_SUM_SCALE 0x1p-64

enum fsm_operation {
    FSM_SOFTMAX,          /* out = e**(x/T) / sum(e**(x/T)) */
    FSM_LOG_SOFTMAX,      /* out = x/T - ln(sum(e**(x/T))) */
    /* row_out = ln(|sum(second * e**x)|), with a second operand sign_out its sign. Each row's
     * largest |second| is 0, infinite or from 2**-32 to 2**32 (float64: 2**-256 to 2**256). */
    FSM_LOGSUMEXP,
    FSM_SELECT,           /* out[k] = log_softmax(x)[labels[k]] for n_selected k */
    FSM_CROSS_ENTROPY,    /* row_out = loss, out = gradient, either may be absent */
    FSM_GRAD_HESS,        /* out = (p - y) * w, hessian = max(factor * p * (1 - p) * w, min_hess) */
    FSM_SOFTMAX_VJP,      /* out = x * (second - sum(second * x)) */
    FSM_LOG_SOFTMAX_VJP,  /* out = second - e**x * sum(second) */
};

/* An operand is absent where its data is NULL. Strides are in bytes. */
struct fsm_operand {
    char *data;
    ptrdiff_t axis_stride;
    ptrdiff_t strides[FSM_MAX_DIMENSIONS];
};

enum fsm_operand_name {
    FSM_X,             /* real */
    FSM_OUT,           /* real */
    FSM_SECOND,        /* real: b, g, or the label probabilities */
    FSM_HESSIAN,       /* real */
    FSM_LABELS,        /* label_type, one a row (FSM_SELECT: n_selected a row) */
    FSM_SAMPLE_WEIGHT, /* double, one a row */
    FSM_GRAD_LOSS,     /* double, one a row */
    FSM_TEMPERATURE,   /* double, one a row */
    FSM_ROW_OUT,       /* real, one a row */
    FSM_SIGN_OUT,      /* real, one a row */
    FSM_OPERANDS,
};

enum fsm_label_type {
    FSM_INT8, FSM_INT16, FSM_INT32, FSM_INT64,
    FSM_UINT8, FSM_UINT16, FSM_UINT32, FSM_UINT64,
};

struct fsm_job {
    enum fsm_operation operation;
    int is_double;
    ptrdiff_t n, rows;
    int dimensions; /* of the batch */
    ptrdiff_t shape[FSM_MAX_DIMENSIONS];
    struct fsm_operand operands[FSM_OPERANDS];

    enum fsm_label_type label_type;
    ptrdiff_t n_selected;
    int has_ignore_index;
    int64_t ignore_index;
    const void *class_weight; /* n reals, or NULL */
    double label_smoothing, z_loss;
    /* The mean's 1/denominator times a scalar upstream gradient, and what rounding it lost. */
    double grad_scale, grad_scale_low;
    double factor, min_hess;
    int sum_losses;        /* add the rows' losses into loss_sum, in an order fixed by n and rows */
    double loss_sum;
    double scaled_loss_sum; /* times FSM_LOSS_SUM_SCALE: finite where losses are, though their sum may not be */
};

/* The labels as one pass before any work sees them. */
struct fsm_label_check {
    ptrdiff_t bad_row;     /* the first row with a label outside [0, n), or -1 */
    ptrdiff_t bad_item;    /* FSM_SELECT: which of the row's n_selected */
    ptrdiff_t counted;     /* rows that are not ignored */
    double weight_sum;     /* of the rows that are not ignored */
};

enum fsm_status { FSM_DONE, FSM_NO_MEMORY };

/* Checks every label and sums the rows' weights; reads nothing else. */
struct fsm_label_check fsm_check_labels(const struct fsm_job *job);

/* Puts the batch axes in the simplest equivalent form; where may_reorder, neighbours in
 * memory become neighbouring rows. For a job whose operands and shape are all set. */
void fsm_simplify_batch(struct fsm_job *job, int may_reorder);

/* Runs the job. Nothing has been written where it fails. */
enum fsm_status fsm_run(struct fsm_job *job);

/* Instruction sets: the compiled ones best first (NULL ends the list), whether this CPU
 * has one, and the choice, which is made before the first fsm_run and changed only while none runs. */
const char *const *fsm_instruction_sets(void);
int fsm_cpu_has(const char *instruction_set);
int fsm_choose_instruction_set(const char *instruction_set);

/* Threads: how many a large call made here and now would use. */
int fsm_thread_limit(void);
int fsm_processor_count(void);
const char *fsm_openmp_runtime(void); /* NULL: built without */
/* Once, at import: the limit the environment sets (0: none), and what OpenMP's own is by default. */
void fsm_initialise_threads(int limit, int openmp_limit);
void fsm_request_threads(int threads);
/* For the calling thread; returns the limit before (0: none). */
int fsm_limit_calling_thread(int threads);

#endif
