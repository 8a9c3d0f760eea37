# Included by _core.pyx: the losses whose options are at their defaults, straight to their kernel.

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
    return x.dtype.type(mean_loss(&job, count)) if wants_loss else None, gradient


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
    1.8562979903656263
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
