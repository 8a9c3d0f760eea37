/* Where the rows of a group lie in memory. */
#ifndef FASTSOFTMAX_ROW_POINTERS_H
#define FASTSOFTMAX_ROW_POINTERS_H

#include "simd.h"

/* Where one operand's rows of a group begin. */
struct row_pointers {
    char *first;
    ptrdiff_t row_stride, axis_stride;
    int count;         /* of rows */
    int is_regular;    /* LANES rows, each row_stride bytes after the one before it */
    char *lane[LANES]; /* otherwise; past the last row a vertical group repeats it */
};

INLINE char *row_start(const struct row_pointers *rows, ptrdiff_t lane)
{
    return rows->is_regular ? rows->first + lane * rows->row_stride : rows->lane[lane];
}

INLINE real *element(const struct row_pointers *rows, ptrdiff_t lane, ptrdiff_t i)
{
    return (real *)(void *)(row_start(rows, lane) + i * rows->axis_stride);
}

INLINE int has_unit_stride(const struct row_pointers *rows)
{
    return rows->axis_stride == (ptrdiff_t)sizeof(real);
}

/* Columns: lane l lies l elements after lane 0. */
INLINE int are_neighbours(const struct row_pointers *rows)
{
    return rows->is_regular && rows->row_stride == (ptrdiff_t)sizeof(real);
}

/* Each row of `length` elements begins where the one before it ends. */
INLINE int are_dense(const struct row_pointers *rows, ptrdiff_t length)
{
    return rows->is_regular && has_unit_stride(rows) && rows->row_stride == length * (ptrdiff_t)sizeof(real);
}

#endif
