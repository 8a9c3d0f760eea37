"""What `cimport fastsoftmax` sees."""

from fastsoftmax._core cimport (
    ROWS_BAD_ARGUMENT, ROWS_DONE, ROWS_NO_MEMORY, log_softmax_rows_f32, log_softmax_rows_f64,
    logsumexp_rows_f32, logsumexp_rows_f64, softmax_rows_f32, softmax_rows_f64,
)
