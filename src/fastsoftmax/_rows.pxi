# Included by _core.pyx: the row functions that _core.pxd declares for other extension modules.

cdef inline bint is_usable(const char *data, ptrdiff_t stride, ptrdiff_t itemsize) noexcept nogil:
    return data != NULL and <size_t>data % itemsize == 0 and stride % itemsize == 0


cdef inline void set_rows(fsm_job *job, int name, char *data, ptrdiff_t stride, ptrdiff_t itemsize) noexcept nogil:
    job.operands[name].data = data
    job.operands[name].axis_stride = itemsize
    job.operands[name].strides[0] = stride


cdef int run_rows(fsm_operation operation, int is_double, const char *x, ptrdiff_t x_stride, char *out,
                  ptrdiff_t out_stride, ptrdiff_t rows, ptrdiff_t n) noexcept nogil:
    cdef fsm_job job
    cdef ptrdiff_t row, itemsize = sizeof(double) if is_double else sizeof(float)
    cdef bint one_a_row = operation == FSM_LOGSUMEXP
    if rows < 0 or n < 0:
        return ROWS_BAD_ARGUMENT
    if rows == 0 or (n == 0 and not one_a_row):
        return ROWS_DONE
    if not is_usable(out, out_stride, itemsize) or (n > 0 and not is_usable(x, x_stride, itemsize)):
        return ROWS_BAD_ARGUMENT
    if n == 0:
        for row in range(rows):
            if is_double:
                (<double *>(out + row * out_stride))[0] = -INFINITY
            else:
                (<float *>(out + row * out_stride))[0] = -INFINITY
        return ROWS_DONE
    clear(&job, operation, is_double)
    job.rows = rows
    job.n = n
    job.dimensions = 1
    job.shape[0] = rows
    set_rows(&job, FSM_X, <char *>x, x_stride, itemsize)
    set_rows(&job, FSM_ROW_OUT if one_a_row else FSM_OUT, out, out_stride, itemsize)
    return ROWS_NO_MEMORY if fsm_run(&job) == FSM_NO_MEMORY else ROWS_DONE


cdef int softmax_rows_f32(const float *x, ptrdiff_t x_stride, float *out, ptrdiff_t out_stride,
                          ptrdiff_t rows, ptrdiff_t n) noexcept nogil:
    return run_rows(FSM_SOFTMAX, False, <const char *>x, x_stride, <char *>out, out_stride, rows, n)


cdef int softmax_rows_f64(const double *x, ptrdiff_t x_stride, double *out, ptrdiff_t out_stride,
                          ptrdiff_t rows, ptrdiff_t n) noexcept nogil:
    return run_rows(FSM_SOFTMAX, True, <const char *>x, x_stride, <char *>out, out_stride, rows, n)


cdef int log_softmax_rows_f32(const float *x, ptrdiff_t x_stride, float *out, ptrdiff_t out_stride,
                              ptrdiff_t rows, ptrdiff_t n) noexcept nogil:
    return run_rows(FSM_LOG_SOFTMAX, False, <const char *>x, x_stride, <char *>out, out_stride, rows, n)


cdef int log_softmax_rows_f64(const double *x, ptrdiff_t x_stride, double *out, ptrdiff_t out_stride,
                              ptrdiff_t rows, ptrdiff_t n) noexcept nogil:
    return run_rows(FSM_LOG_SOFTMAX, True, <const char *>x, x_stride, <char *>out, out_stride, rows, n)


cdef int logsumexp_rows_f32(const float *x, ptrdiff_t x_stride, float *out, ptrdiff_t out_stride,
                            ptrdiff_t rows, ptrdiff_t n) noexcept nogil:
    return run_rows(FSM_LOGSUMEXP, False, <const char *>x, x_stride, <char *>out, out_stride, rows, n)


cdef int logsumexp_rows_f64(const double *x, ptrdiff_t x_stride, double *out, ptrdiff_t out_stride,
                            ptrdiff_t rows, ptrdiff_t n) noexcept nogil:
    return run_rows(FSM_LOGSUMEXP, True, <const char *>x, x_stride, <char *>out, out_stride, rows, n)
