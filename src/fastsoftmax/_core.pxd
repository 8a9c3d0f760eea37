"""The row functions that other extension modules can call; README.md, "From Cython and C"."""

# What they return. Nothing has been written where it is not ROWS_DONE.
cdef enum:
    ROWS_DONE = 0
    ROWS_NO_MEMORY = 1
    ROWS_BAD_ARGUMENT = 2

# Each works on `rows` rows of `n` elements that are neighbours in memory. Strides are in bytes, from
# one row to the next; logsumexp's result is one element a row, so its stride is from element to element.
cdef int softmax_rows_f32(const float *x, ptrdiff_t x_stride, float *out, ptrdiff_t out_stride,
                          ptrdiff_t rows, ptrdiff_t n) noexcept nogil
cdef int softmax_rows_f64(const double *x, ptrdiff_t x_stride, double *out, ptrdiff_t out_stride,
                          ptrdiff_t rows, ptrdiff_t n) noexcept nogil
cdef int log_softmax_rows_f32(const float *x, ptrdiff_t x_stride, float *out, ptrdiff_t out_stride,
                              ptrdiff_t rows, ptrdiff_t n) noexcept nogil
cdef int log_softmax_rows_f64(const double *x, ptrdiff_t x_stride, double *out, ptrdiff_t out_stride,
                              ptrdiff_t rows, ptrdiff_t n) noexcept nogil
cdef int logsumexp_rows_f32(const float *x, ptrdiff_t x_stride, float *out, ptrdiff_t out_stride,
                            ptrdiff_t rows, ptrdiff_t n) noexcept nogil
cdef int logsumexp_rows_f64(const double *x, ptrdiff_t x_stride, double *out, ptrdiff_t out_stride,
                            ptrdiff_t rows, ptrdiff_t n) noexcept nogil
