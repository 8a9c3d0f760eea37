# cython: language_level=3, boundscheck=False, wraparound=False, cdivision=True, freethreading_compatible=True
"""From arrays to kernels: fills a job, drops the interpreter lock, runs it.

The public functions here take a plain float32 or float64 ndarray with default options
straight to its kernel; everything else goes the general way through `_functions` and
`_losses`, which ends in `run` below.
"""
# Why it is declared free-threading compatible: a call keeps its state on its own stack (the
# job) and in memory of its own (the scratch). What calls share is written at import alone (the
# chosen kernels, the environment's limits, the general ways below), atomic (parallel.c: the
# threads asked for, the teams at work) or each thread's own (parallel.c: num_threads' limit,
# the largest team it has led). An array that another thread writes during a call gives values
# that nobody can foretell, as in NumPy; a label is compared with its range again where it is
# used, so that it never leads out of memory. It has been run under ThreadSanitizer from C
# (tests/native/long.py), not yet by an interpreter without the lock.

cimport numpy as np
from libc.math cimport INFINITY, fma
from numpy cimport (
    NPY_BYTE, NPY_DOUBLE, NPY_FLOAT, NPY_INT, NPY_LONG, NPY_LONGLONG, NPY_SHORT, NPY_UBYTE, NPY_UINT,
    NPY_ULONG, NPY_ULONGLONG, NPY_USHORT, PyArray_CheckExact, PyArray_DATA, PyArray_DIMS,
    PyArray_ISBEHAVED, PyArray_ISBEHAVED_RO, PyArray_IS_C_CONTIGUOUS, PyArray_NBYTES, PyArray_NDIM,
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
    job.operation = operation
    job.is_double = is_double
    job.has_ignore_index = 0
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
    cdef long long value = axis if -64 <= axis < 64 else 64
    if value < 0:
        value += ndim
    return <int>value if 0 <= value < ndim else -1


cdef inline bint are_apart(ndarray a, ndarray b) noexcept:
    """Two whole blocks of memory without a common byte; False for any other layout."""
    cdef npy_intp a_at = <npy_intp>PyArray_DATA(a), b_at = <npy_intp>PyArray_DATA(b)
    return PyArray_IS_C_CONTIGUOUS(a) and PyArray_IS_C_CONTIGUOUS(b) and (
        b_at >= a_at + PyArray_NBYTES(a) or a_at >= b_at + PyArray_NBYTES(b)
    )


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
    if y is x:
        return True
    return are_apart(x, y) or (
        PyArray_DATA(x) == PyArray_DATA(y) and PyArray_IS_C_CONTIGUOUS(x) and PyArray_IS_C_CONTIGUOUS(y)
    )


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
    cdef npy_intp shape[64]
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


cdef fsm_label_type label_type_of(int kind) noexcept:
    """The kernels' name of an integer dtype; FSM_UINT64 + 1 for any other dtype."""
    cdef int size, signed
    if kind == NPY_BYTE or kind == NPY_UBYTE:
        size = 1
    elif kind == NPY_SHORT or kind == NPY_USHORT:
        size = 2
    elif kind == NPY_INT or kind == NPY_UINT:
        size = sizeof(int)
    elif kind == NPY_LONG or kind == NPY_ULONG:
        size = sizeof(long)
    elif kind == NPY_LONGLONG or kind == NPY_ULONGLONG:
        size = sizeof(long long)
    else:
        return <fsm_label_type>(FSM_UINT64 + 1)
    signed = kind in (NPY_BYTE, NPY_SHORT, NPY_INT, NPY_LONG, NPY_LONGLONG)
    if size == 1:
        return FSM_INT8 if signed else FSM_UINT8
    if size == 2:
        return FSM_INT16 if signed else FSM_UINT16
    if size == 4:
        return FSM_INT32 if signed else FSM_UINT32
    return FSM_INT64 if signed else FSM_UINT64


cdef plain_cross_entropy(logits, labels, axis, out, bint wants_loss, bint wants_gradient):
    """Mean loss and gradient of class indices without options; None where the general way must go."""
    cdef fsm_job job
    cdef fsm_label_check check
    cdef ndarray x, y, gradient = None
    cdef int at, kept = 0
    cdef double count
    if not (is_plain(logits) and PyArray_CheckExact(labels) and PyArray_ISBEHAVED_RO(<ndarray>labels)):
        return None
    x, y = <ndarray>logits, <ndarray>labels
    at = plain_axis(axis, PyArray_NDIM(x))
    job.label_type = label_type_of(PyArray_TYPE(y))
    if at < 0 or job.label_type > FSM_UINT64 or PyArray_NDIM(y) != PyArray_NDIM(x) - 1 or PyArray_DIMS(x)[at] == 0:
        return None
    for d in range(PyArray_NDIM(x)):
        if d != at:
            if PyArray_DIMS(y)[kept] != PyArray_DIMS(x)[d]:
                return None
            kept += 1
    if out is not None and not (fits_as_out(out, x) and are_apart(y, <ndarray>out)):
        return None
    clear(&job, FSM_CROSS_ENTROPY, PyArray_TYPE(x) == NPY_DOUBLE)
    set_shape(&job, x, at)
    set_operand(&job, FSM_X, x, at)
    set_operand(&job, FSM_LABELS, y, -1)
    if wants_gradient:
        gradient = <ndarray>out if out is not None else new_like(x)
        set_operand(&job, FSM_OUT, gradient, at)
    fsm_simplify_batch(&job, 0)
    with nogil:
        check = fsm_check_labels(&job)
    if check.bad_row >= 0 or check.counted == 0:
        return None  # the general way says what is wrong
    count = <double>check.counted
    divide_gradient(&job, count)
    job.sum_losses = wants_loss
    run_job(&job)
    return x.dtype.type(job.loss_sum / count) if wants_loss else None, gradient


def softmax_cross_entropy(logits, labels, /, axis=-1, **loss_options):
    """Cross-entropy between labels and the softmax of logits.

    Parameters
    ----------
    logits : array_like
        Real logits of at least one dimension.
    labels : array_like
        Class indices, of any integer dtype and the shape of `logits` without `axis`; or
        class probabilities (one-hot rows, too), of the shape of `logits`.
    axis : int, default -1
        The axis of the classes.
    weight : array_like, optional
        A factor for each class, of shape ``(n,)``.
    sample_weight : array_like, optional
        A factor for each row's loss, of the loss's shape. A row whose weight is 0 is as if
        it were not there.
    ignore_index : int, optional
        Rows with this class index are as if they were not there.
    label_smoothing : float, default 0.0
        Share of each label, from 0 to 1, that is spread evenly over all classes.
    z_loss : float, default 0.0
        Factor of ``logsumexp(logits)**2``, added to each row that counts, times its weight.
    reduction : {"mean", "sum", "none"}, default "mean"
        The mean divides by the summed weight of the rows that count (with class
        probabilities `weight` has no part in that).

    Returns
    -------
    scalar or ndarray
        The loss, in the floating dtype of `logits`; with ``reduction="none"`` one a row.
        The mean over no row at all is NaN.

    Raises
    ------
    IndexError
        A class index is outside ``[0, n)`` and is not `ignore_index`.
    TypeError
        An argument is of a wrong kind, such as class indices of a floating dtype.
    ValueError
        An argument has a wrong shape or value.
    numpy.exceptions.AxisError
        `axis` is not an axis of `logits`.

    Notes
    -----
    ``-sum(t * log_softmax(logits))``, t the targets that labels, weights and smoothing
    give. The options mean, alone and together, what they mean in
    ``torch.nn.functional.cross_entropy``. Rows are summed in double precision in an order
    that depends on the shape alone.

    Arrays of other libraries are taken as in `softmax`. Labels and weights with pandas' or
    xarray's labels must have those of `logits`. The loss of a Dask array is lazy; its sum
    and mean over rows follow the chunks.

    Examples
    --------
    >>> import numpy as np
    >>> import fastsoftmax as fsm
    >>> logits = np.log([[1.0, 2.0, 5.0], [2.0, 2.0, 4.0]])
    >>> float(fsm.softmax_cross_entropy(logits, [2, 0], reduction="sum"))
    1.856297990365626
    """
    if not loss_options:
        plain = plain_cross_entropy(logits, labels, axis, None, True, False)
        if plain is not None:
            return plain[0]
    return general_softmax_cross_entropy(logits, labels, axis, **loss_options)


def softmax_cross_entropy_grad(logits, labels, /, axis=-1, *, grad_loss=None, out=None, **loss_options):
    """Gradient of `softmax_cross_entropy` with respect to the logits.

    Parameters
    ----------
    logits, labels, axis, **loss_options
        As in `softmax_cross_entropy`.
    grad_loss : array_like, optional
        Gradient with respect to the loss: a scalar, or for ``reduction="none"`` an array of
        the loss's shape.
    out : ndarray, optional
        A floating array of the shape of `logits` that takes the result; it may be `logits`.

    Returns
    -------
    ndarray
        Of the shape and floating dtype of `logits`; 0 in rows that do not count.

    Raises
    ------
    IndexError, TypeError, ValueError, numpy.exceptions.AxisError
        As `softmax_cross_entropy` does; nothing has been written then.

    Examples
    --------
    >>> import numpy as np
    >>> import fastsoftmax as fsm
    >>> fsm.softmax_cross_entropy_grad(np.log([[1.0, 2.0, 5.0]]), [2])
    array([[ 0.125,  0.25 , -0.375]])
    """
    if grad_loss is None and not loss_options:
        plain = plain_cross_entropy(logits, labels, axis, out, False, True)
        if plain is not None:
            return plain[1]
    return general_softmax_cross_entropy_grad(logits, labels, axis, grad_loss, out, **loss_options)


def softmax_cross_entropy_value_and_grad(logits, labels, /, axis=-1, *, grad_loss=None, out=None, **loss_options):
    """`softmax_cross_entropy` and its gradient, in one pass over the logits.

    Parameters
    ----------
    logits, labels, axis, **loss_options
        As in `softmax_cross_entropy`.
    grad_loss, out
        As in `softmax_cross_entropy_grad`.

    Returns
    -------
    loss : scalar or ndarray
        As from `softmax_cross_entropy`.
    gradient : ndarray
        As from `softmax_cross_entropy_grad`.

    Raises
    ------
    IndexError, TypeError, ValueError, numpy.exceptions.AxisError
        As `softmax_cross_entropy` does; nothing has been written then.

    Examples
    --------
    >>> import numpy as np
    >>> import fastsoftmax as fsm
    >>> loss, gradient = fsm.softmax_cross_entropy_value_and_grad(np.log([[1.0, 3.0]]), [1])
    >>> gradient
    array([[ 0.25, -0.25]])
    """
    if grad_loss is None and not loss_options:
        plain = plain_cross_entropy(logits, labels, axis, out, True, True)
        if plain is not None:
            return plain
    return general_softmax_cross_entropy_value_and_grad(logits, labels, axis, grad_loss, out, **loss_options)


def run(int operation, ndarray x, int axis, *, out=None, second=None, hessian=None, labels=None,
        sample_weight=None, grad_loss=None, temperature=None, row_out=None, sign_out=None,
        class_weight=None, ignore_index=None, double label_smoothing=0.0, double z_loss=0.0,
        mean=None, bint sum_losses=False, double grad_scale=1.0, double factor=1.0, double min_hess=0.0):
    """Run one operation; every array prepared, every argument checked but the labels' values.

    Elements (`out`, `second`, `hessian`) are of the dtype and shape of `x`, labels of an
    integer dtype; `sample_weight`, `grad_loss` and `temperature` are float64 with one value
    a row. All are aligned and in native byte order.

    Returns
    -------
    float
        With `sum_losses` the sum of the rows' losses; with `mean`, divided by the summed
        weight of the rows that count (``mean="weights"``) or by their number.

    Raises
    ------
    IndexError
        A label outside ``[0, n)``; its arguments are the row's number, the item's and the
        label's value. Nothing has been written then.
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
    if labels is not None or mean is not None:
        with nogil:
            check = fsm_check_labels(&job)
        if check.bad_row >= 0:
            raise IndexError(check.bad_row, check.bad_item)
        if mean is not None:
            denominator = check.weight_sum if check.counted else numpy.nan
            # Where nothing counts the mean is NaN; the gradient is 0 all the same.
            if check.counted:
                divide_gradient(&job, denominator)
    run_job(&job)
    return job.loss_sum / denominator


# ---- For other extension modules ---------------------------------------------------------


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


def compiled_instruction_sets():
    """Names, best first."""
    cdef const char *const *names = fsm_instruction_sets()
    found = []
    while names[len(found)] != NULL:
        found.append(names[len(found)].decode())
    return found


def cpu_has(str instruction_set):
    return bool(fsm_cpu_has(instruction_set.encode()))


def choose_instruction_set(str instruction_set):
    return bool(fsm_choose_instruction_set(instruction_set.encode()))


def openmp_runtime():
    cdef const char *name = fsm_openmp_runtime()
    return name.decode() if name != NULL else None


def processor_count():
    return fsm_processor_count()


def initialise_threads(int limit, int openmp_limit):
    fsm_initialise_threads(limit, openmp_limit)


def thread_limit():
    return fsm_thread_limit()


def request_threads(int threads):
    fsm_request_threads(threads)


def limit_block(int threads):
    return fsm_limit_block(threads)
