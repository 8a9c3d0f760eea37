# cython: language_level=3, boundscheck=False, wraparound=False, cdivision=True, freethreading_compatible=True
"""From arrays to kernels: fills a job, drops the interpreter lock, runs it.

The public functions here take a plain float32 or float64 ndarray with default options
straight to its kernel; everything else goes the general way through `_functions` and
`_losses`, which ends in `run` below. The losses, the functions for other extension modules
and the settings are files of their own, included at the end: one module, since all of them
share one copy of the kernels and their state.
"""
# Why it is declared free-threading compatible: a call keeps its state on its own stack (the
# job) and in memory of its own (the scratch). What calls share is written at import (the
# environment's limits, the general ways below, and the chosen kernels, which only _check.py and
# the tests change later, while no other thread calculates), atomic (parallel.c: the threads asked
# for, the teams at work) or each thread's own (parallel.c: num_threads' limit, the largest team
# it has led). An array that another thread writes during a call gives values
# that nobody can foretell, as in NumPy; a label is compared with its range again where it is
# used, so that it never leads out of memory. It was run under ThreadSanitizer from C
# (tests/native/long.py), and four test files by CPython 3.13 without the lock.

cimport numpy as np
from libc.math cimport INFINITY, fma, isfinite
from numpy cimport (
    NPY_BYTE, NPY_DOUBLE, NPY_FLOAT, NPY_INT, NPY_LONG, NPY_LONGLONG, NPY_SHORT, NPY_UBYTE, NPY_UINT,
    NPY_ULONG, NPY_ULONGLONG, NPY_USHORT, PyArray_CheckExact, PyArray_DATA, PyArray_DIMS,
    PyArray_ISBEHAVED, PyArray_ISBEHAVED_RO, PyArray_IS_C_CONTIGUOUS, PyArray_ITEMSIZE, PyArray_NDIM,
    PyArray_SimpleNew, PyArray_STRIDES, PyArray_TYPE, ndarray, npy_intp,
)

from fastsoftmax._kernels cimport *

import numpy

np.import_array()

# Below this many elements a call is over before another thread could use the lock.
cdef enum:
    SMALL_JOB = 8192

SOFTMAX = FSM_SOFTMAX
LOG_SOFTMAX = FSM_LOG_SOFTMAX
LOGSUMEXP = FSM_LOGSUMEXP
SELECT = FSM_SELECT
CROSS_ENTROPY = FSM_CROSS_ENTROPY
GRAD_HESS = FSM_GRAD_HESS
SOFTMAX_VJP = FSM_SOFTMAX_VJP
LOG_SOFTMAX_VJP = FSM_LOG_SOFTMAX_VJP

# The general way of each public function; set by fastsoftmax/__init__.py.
general_softmax = general_log_softmax = general_logsumexp = None
general_softmax_cross_entropy = general_softmax_cross_entropy_grad = None
general_softmax_cross_entropy_value_and_grad = None


cdef inline void clear(fsm_job *job, fsm_operation operation, int is_double) noexcept nogil:
    """A job of this kind without operands and with every option at its default.

    The caller sets the shape (n, rows, dimensions, shape), the operands and, where labels are
    one of them, label_type and n_selected; for FSM_GRAD_HESS factor and min_hess.
    """
    job.operation = operation
    job.is_double = is_double
    job.has_ignore_index = 0
    job.ignore_index = 0
    job.class_weight = NULL
    job.label_smoothing = 0
    job.z_loss = 0
    job.grad_scale = 1
    job.grad_scale_low = 0
    job.sum_losses = 0
    for name in range(FSM_OPERANDS):
        job.operands[name].data = NULL


cdef inline void set_shape(fsm_job *job, ndarray x, int axis) noexcept:
    """The batch axes and the row length, from the operand that has them all."""
    cdef npy_intp *dims = PyArray_DIMS(x)
    cdef int kept = 0
    job.rows = 1
    for d in range(PyArray_NDIM(x)):
        if d == axis:
            continue
        job.shape[kept] = dims[d]
        job.rows *= dims[d]
        kept += 1
    job.dimensions = kept
    job.n = dims[axis]


cdef inline void set_operand(fsm_job *job, int name, ndarray array, int axis) noexcept:
    """An operand with the axis at `axis`, or without it (axis -1)."""
    cdef npy_intp *strides = PyArray_STRIDES(array)
    cdef int kept = 0
    cdef fsm_operand *operand = &job.operands[name]
    operand.data = <char *>PyArray_DATA(array)
    operand.axis_stride = 0
    for d in range(PyArray_NDIM(array)):
        if d == axis:
            operand.axis_stride = strides[d]
        else:
            operand.strides[kept] = strides[d]
            kept += 1


cdef inline void divide_gradient(fsm_job *job, double denominator) noexcept nogil:
    """job.grad_scale /= denominator, to twice the precision."""
    cdef double scale = job.grad_scale, quotient = scale / denominator
    cdef double low = fma(-quotient, denominator, scale) / denominator
    job.grad_scale = quotient
    job.grad_scale_low = low if low == low else 0.0


cdef inline double mean_loss(const fsm_job *job, double denominator) noexcept:
    """job.loss_sum / denominator, also where the sum alone is beyond the largest finite number."""
    if isfinite(job.loss_sum):
        return job.loss_sum / denominator
    return job.scaled_loss_sum / denominator / FSM_LOSS_SUM_SCALE


cdef inline int run_job(fsm_job *job) except -1:
    cdef fsm_status status
    if job.rows * job.n < SMALL_JOB:
        status = fsm_run(job)
    else:
        with nogil:
            status = fsm_run(job)
    if status == FSM_NO_MEMORY:
        raise MemoryError("no memory for the scratch space of fastsoftmax's kernels")
    return 0


cdef inline bint is_plain(x) noexcept:
    """An array that a kernel can read as it is."""
    if not PyArray_CheckExact(x):
        return False
    cdef int kind = PyArray_TYPE(<ndarray>x)
    return (kind == NPY_FLOAT or kind == NPY_DOUBLE) and PyArray_ISBEHAVED_RO(<ndarray>x) \
        and PyArray_NDIM(<ndarray>x) > 0


cdef inline int plain_axis(axis, int ndim) noexcept:
    """The axis counted from the front, or -1 where the general way must decide."""
    if type(axis) is not int:
        return -1
    cdef long long value = axis if -FSM_MAX_DIMENSIONS <= axis < FSM_MAX_DIMENSIONS else FSM_MAX_DIMENSIONS
    if value < 0:
        value += ndim
    return <int>value if 0 <= value < ndim else -1


cdef inline void set_extent(ndarray array, npy_intp *first, npy_intp *end) noexcept:
    """The addresses from the first byte on and behind the last one, whatever the strides."""
    cdef npy_intp reach
    first[0] = <npy_intp>PyArray_DATA(array)
    end[0] = first[0] + PyArray_ITEMSIZE(array)
    for d in range(PyArray_NDIM(array)):
        if PyArray_DIMS(array)[d] == 0:
            end[0] = first[0]
            return
        reach = (PyArray_DIMS(array)[d] - 1) * PyArray_STRIDES(array)[d]
        if reach < 0:
            first[0] += reach
        else:
            end[0] += reach


cdef inline bint are_apart(ndarray a, ndarray b) noexcept:
    """No byte between the first and the last one of either belongs to the other."""
    cdef npy_intp a_first, a_end, b_first, b_end
    set_extent(a, &a_first, &a_end)
    set_extent(b, &b_first, &b_end)
    return b_first >= a_end or a_first >= b_end


cdef inline bint are_the_same(ndarray a, ndarray b) noexcept:
    """Of the same shape and dtype, every element of one lies where it lies in the other."""
    for d in range(PyArray_NDIM(a)):
        if PyArray_STRIDES(a)[d] != PyArray_STRIDES(b)[d] and PyArray_DIMS(a)[d] > 1:
            return False
    return PyArray_DATA(a) == PyArray_DATA(b)


cdef inline npy_intp magnitude(npy_intp stride) noexcept:
    return stride if stride >= 0 else -stride


cpdef bint overlaps_itself(ndarray a) noexcept:
    """Whether two elements may lie in one place: along some axis a step is shorter than all that lies within it."""
    cdef npy_intp step, shorter, reach
    for d in range(PyArray_NDIM(a)):
        step, reach = magnitude(PyArray_STRIDES(a)[d]), PyArray_ITEMSIZE(a)
        for other in range(PyArray_NDIM(a)):
            shorter = magnitude(PyArray_STRIDES(a)[other])
            if PyArray_DIMS(a)[other] > 1 and (shorter < step or (shorter == step and other < d)):
                reach += shorter * (PyArray_DIMS(a)[other] - 1)
        if PyArray_DIMS(a)[d] > 1 and step < reach:
            return True
    return False


cdef inline bint fits_as_out(out, ndarray x) noexcept:
    """An out that the kernel can write at once: like x, and apart from it or x itself."""
    if not PyArray_CheckExact(out):
        return False
    cdef ndarray y = <ndarray>out
    if PyArray_TYPE(y) != PyArray_TYPE(x) or not PyArray_ISBEHAVED(y) or PyArray_NDIM(y) != PyArray_NDIM(x):
        return False
    for d in range(PyArray_NDIM(x)):
        if PyArray_DIMS(y)[d] != PyArray_DIMS(x)[d]:
            return False
    if not PyArray_IS_C_CONTIGUOUS(y) and overlaps_itself(y):
        return False
    return are_the_same(x, y) or are_apart(x, y)


cdef inline ndarray new_like(ndarray x):
    if PyArray_IS_C_CONTIGUOUS(x):
        return PyArray_SimpleNew(PyArray_NDIM(x), PyArray_DIMS(x), PyArray_TYPE(x))
    return numpy.empty_like(x)


cdef plain_elementwise(fsm_operation operation, ndarray x, int axis, out):
    cdef ndarray result
    cdef fsm_job job
    result = <ndarray>out if out is not None else new_like(x)
    clear(&job, operation, PyArray_TYPE(x) == NPY_DOUBLE)
    set_shape(&job, x, axis)
    set_operand(&job, FSM_X, x, axis)
    set_operand(&job, FSM_OUT, result, axis)
    fsm_simplify_batch(&job, 1)
    run_job(&job)
    return result


def softmax(x, /, axis=-1, *, temperature=1.0, where=None, out=None):
    """Softmax of each row of `x` along `axis`.

    Parameters
    ----------
    x : array_like
        Real logits of any shape and layout. Integers and booleans are taken as float64.
    axis : int, tuple of ints or None, default -1
        The axis or axes a row lies along; None for all elements together.
    temperature : float or array_like, default 1.0
        Positive and finite; an array broadcasts against `x` with `axis` kept as 1. The
        result is that of ``x / temperature`` at full accuracy, whatever offset `x` has.
    where : array_like of bool, optional
        Broadcasts to `x`. Elements where it is False take no part and come out as 0.
    out : ndarray, optional
        A floating array of the shape of `x` that takes the result; it may be `x` itself.
        A large result's first touch of fresh memory takes longer than computing it: an
        `out` that is used again saves that.

    Returns
    -------
    ndarray
        Probabilities, of the shape and floating dtype of `x`. A row with a NaN or +inf,
        and one of -inf alone, is NaN; -inf among finite values gives 0.

    Raises
    ------
    TypeError
        `x`, `where` or `out` is of a kind that has no softmax (complex, object, masked).
    ValueError
        Shapes do not fit, or the temperature is not positive and finite.
    numpy.exceptions.AxisError
        `axis` is not an axis of `x`.

    See Also
    --------
    log_softmax, logsumexp, softmax_vjp

    Notes
    -----
    ``p[i] = exp(x[i] - m) / sum(exp(x - m))`` with ``m = max(x)``; see P. Blanchard,
    D. J. Higham, N. J. Higham, "Accurately computing the log-sum-exp and softmax
    functions", IMA J. Numer. Anal. 41 (2021). Results are within 2 ULP of the exact ones
    and the same, bit for bit, on every machine.

    pandas' DataFrame and Series and xarray's DataArray and Dataset keep their labels in the
    result; `axis` may name xarray's dimensions. A Dask array gives a lazy one. Where its
    chunks split `axis` the result is within 1 ULP for float32 and within a relative
    ``4 * eps * (1 + abs(log(result)))`` for float64, the same for any number of workers.
    Tensors and arrays of other libraries are read without a copy where they lie in the
    CPU's memory, and raise TypeError where they do not or require grad.

    Examples
    --------
    >>> import numpy as np
    >>> import fastsoftmax as fsm
    >>> fsm.softmax(np.log([1.0, 2.0, 5.0]))
    array([0.125, 0.25 , 0.625])
    """
    cdef int at
    if is_plain(x) and where is None and type(temperature) is float and <double>temperature == 1.0:
        at = plain_axis(axis, PyArray_NDIM(<ndarray>x))
        if at >= 0 and (out is None or fits_as_out(out, <ndarray>x)):
            return plain_elementwise(FSM_SOFTMAX, <ndarray>x, at, out)
    return general_softmax(x, axis, temperature, where, out)


def log_softmax(x, /, axis=-1, *, temperature=1.0, where=None, out=None):
    """Logarithm of the softmax of each row of `x` along `axis`.

    Parameters
    ----------
    x : array_like
        Real logits of any shape and layout. Integers and booleans are taken as float64.
    axis : int, tuple of ints or None, default -1
        The axis or axes a row lies along; None for all elements together.
    temperature : float or array_like, default 1.0
        Positive and finite; an array broadcasts against `x` with `axis` kept as 1. The
        result is that of ``x / temperature`` at full accuracy, whatever offset `x` has.
    where : array_like of bool, optional
        Broadcasts to `x`. Elements where it is False take no part and come out as -inf.
    out : ndarray, optional
        A floating array of the shape of `x` that takes the result; it may be `x` itself.

    Returns
    -------
    ndarray
        Log-probabilities, of the shape and floating dtype of `x`. A row with a NaN or
        +inf, and one of -inf alone, is NaN; -inf among finite values gives -inf.

    Raises
    ------
    TypeError
        `x`, `where` or `out` is of a kind that has no softmax (complex, object, masked).
    ValueError
        Shapes do not fit, or the temperature is not positive and finite.
    numpy.exceptions.AxisError
        `axis` is not an axis of `x`.

    See Also
    --------
    softmax, logsumexp, selected_log_softmax

    Notes
    -----
    ``(x[i] - m) - log1p(rest)``, ``m = max(x)`` and `rest` the sum of ``exp(x - m)``
    without the maximum's own 1: a log-probability close to 0 keeps all its digits. Arrays
    of other libraries are taken as in `softmax`.

    Examples
    --------
    >>> import numpy as np
    >>> import fastsoftmax as fsm
    >>> fsm.log_softmax(np.array([0.0, -50.0]))
    array([-1.92874985e-22, -5.00000000e+01])
    """
    cdef int at
    if is_plain(x) and where is None and type(temperature) is float and <double>temperature == 1.0:
        at = plain_axis(axis, PyArray_NDIM(<ndarray>x))
        if at >= 0 and (out is None or fits_as_out(out, <ndarray>x)):
            return plain_elementwise(FSM_LOG_SOFTMAX, <ndarray>x, at, out)
    return general_log_softmax(x, axis, temperature, where, out)


def logsumexp(x, /, axis=-1, *, b=None, keepdims=False, return_sign=False, where=None, out=None):
    """Logarithm of the sum of exponentials of each row of `x` along `axis`.

    Parameters
    ----------
    x : array_like
        Real values of any shape and layout. Integers and booleans are taken as float64.
    axis : int, tuple of ints or None, default -1
        The axis or axes a row lies along; None for all elements together.
    b : array_like, optional
        Real factors of the exponentials; `x` and `b` broadcast against each other. An
        element whose factor is 0 takes no part, whatever it holds.
    keepdims : bool, default False
        Keep `axis` in the result, with length 1.
    return_sign : bool, default False
        Return the sign of the sum as well, and the logarithm of its magnitude.
    where : array_like of bool, optional
        Broadcasts to `x`. Elements where it is False take no part.
    out : ndarray, optional
        A floating array of the result's shape that takes the result (never the sign).

    Returns
    -------
    ndarray or scalar
        ``log(sum(b * exp(x)))``, of the shape of `x` without `axis`, in the floating dtype
        of `x` and `b`. -inf for a row without elements; +inf for one with +inf; NaN for one
        with NaN, and for a negative sum where its sign is not asked for.
    sign : ndarray or scalar
        With `return_sign`: -1, 0 or 1 (NaN where the sum is), in the result's dtype.

    Raises
    ------
    TypeError
        An argument is of a kind that has no logarithm of a sum (complex, object, masked).
    ValueError
        Shapes do not fit.
    numpy.exceptions.AxisError
        `axis` is not an axis of `x`.

    See Also
    --------
    softmax, log_softmax

    Notes
    -----
    ``m + log1p(rest)`` as in `log_softmax`; P. Blanchard, D. J. Higham, N. J. Higham,
    "Accurately computing the log-sum-exp and softmax functions", IMA J. Numer. Anal. 41
    (2021). Arrays of other libraries are taken as in `softmax`; pandas has no labels for
    `keepdims`, which gives a plain array there.

    Examples
    --------
    >>> import numpy as np
    >>> import fastsoftmax as fsm
    >>> float(fsm.logsumexp(np.array([1000.0, 1000.0])))
    1000.6931471805599
    """
    cdef int at, kept = 0
    cdef ndarray values, result
    cdef npy_intp shape[FSM_MAX_DIMENSIONS]
    cdef fsm_job job
    if not (is_plain(x) and b is None and keepdims is False and return_sign is False
            and where is None and out is None):
        return general_logsumexp(x, axis, b, keepdims, return_sign, where, out)
    values = <ndarray>x
    at = plain_axis(axis, PyArray_NDIM(values))
    if at < 0:
        return general_logsumexp(x, axis, b, keepdims, return_sign, where, out)
    for d in range(PyArray_NDIM(values)):
        if d != at:
            shape[kept] = PyArray_DIMS(values)[d]
            kept += 1
    result = PyArray_SimpleNew(kept, shape, PyArray_TYPE(values))
    if PyArray_DIMS(values)[at] == 0:
        result[...] = -numpy.inf
    else:
        clear(&job, FSM_LOGSUMEXP, PyArray_TYPE(values) == NPY_DOUBLE)
        set_shape(&job, values, at)
        set_operand(&job, FSM_X, values, at)
        set_operand(&job, FSM_ROW_OUT, result, -1)
        fsm_simplify_batch(&job, 1)
        run_job(&job)
    return result if kept else result[()]


def run(int operation, ndarray x, int axis, *, out=None, second=None, hessian=None, labels=None,
        sample_weight=None, grad_loss=None, temperature=None, row_out=None, sign_out=None,
        class_weight=None, ignore_index=None, double label_smoothing=0.0, double z_loss=0.0,
        bint mean=False, bint sum_losses=False, double grad_scale=1.0, double factor=1.0, double min_hess=0.0):
    """Run one operation; every array prepared, every argument checked but the labels' values.

    Elements (`out`, `second`, `hessian`) are of the dtype and shape of `x`, labels of an
    integer dtype; `sample_weight`, `grad_loss` and `temperature` are float64 with one value
    a row. All are aligned and in native byte order.

    Returns
    -------
    float
        With `sum_losses` the sum of the rows' losses; with `mean`, divided by the summed
        weight of the rows that count.

    Raises
    ------
    IndexError
        A label outside ``[0, n)``; its arguments are the row's number and the item's. Nothing
        has been written then.
    """
    cdef fsm_job job
    cdef fsm_label_check check
    cdef double denominator = 1.0
    clear(&job, <fsm_operation>operation, PyArray_TYPE(x) == NPY_DOUBLE)
    set_shape(&job, x, axis)
    set_operand(&job, FSM_X, x, axis)
    if out is not None:
        set_operand(&job, FSM_OUT, out, axis)
    if second is not None:
        set_operand(&job, FSM_SECOND, second, axis)
    if hessian is not None:
        set_operand(&job, FSM_HESSIAN, hessian, axis)
    if labels is not None:
        job.label_type = label_type_of(PyArray_TYPE(<ndarray>labels))
        set_operand(&job, FSM_LABELS, labels, axis if operation == FSM_SELECT else -1)
        job.n_selected = PyArray_DIMS(labels)[axis] if operation == FSM_SELECT else 1
    if sample_weight is not None:
        set_operand(&job, FSM_SAMPLE_WEIGHT, sample_weight, -1)
    if grad_loss is not None:
        set_operand(&job, FSM_GRAD_LOSS, grad_loss, -1)
    if temperature is not None:
        set_operand(&job, FSM_TEMPERATURE, temperature, -1)
    if row_out is not None:
        set_operand(&job, FSM_ROW_OUT, row_out, -1)
    if sign_out is not None:
        set_operand(&job, FSM_SIGN_OUT, sign_out, -1)
    if class_weight is not None:
        job.class_weight = PyArray_DATA(class_weight)
    if ignore_index is not None:
        job.has_ignore_index = 1
        job.ignore_index = ignore_index
    job.label_smoothing = label_smoothing
    job.z_loss = z_loss
    job.factor = factor
    job.min_hess = min_hess
    job.sum_losses = sum_losses
    job.grad_scale = grad_scale
    fsm_simplify_batch(&job, labels is None and not sum_losses)
    if labels is not None or mean:
        with nogil:
            check = fsm_check_labels(&job)
        if check.bad_row >= 0:
            raise IndexError(check.bad_row, check.bad_item)
        if mean:
            denominator = check.weight_sum if check.counted else numpy.nan
            # Where nothing counts the mean is NaN; the gradient is 0 all the same.
            if check.counted:
                divide_gradient(&job, denominator)
    run_job(&job)
    return mean_loss(&job, denominator)


include "_cross_entropy.pxi"
include "_rows.pxi"
include "_settings.pxi"
