/* Between memory as it lies and strips in scratch memory: LANES reals a step in a vertical group (element i of every
 * lane's row), the row's own order in a horizontal one. */
#ifndef FASTSOFTMAX_STRIPS_H
#define FASTSOFTMAX_STRIPS_H

#include "transpose.h"

/* The lanes from `lane` on whose rows are neighbours in memory end before this one. */
INLINE ptrdiff_t end_of_run(const struct row_pointers *rows, ptrdiff_t lane, ptrdiff_t count)
{
    ptrdiff_t end = lane + 1;
    while (end < count && row_start(rows, end) == row_start(rows, end - 1) + sizeof(real)) end++;
    return end;
}

/* Elements [first, first + length) of each row to steps of a vertical strip. */
NOT_INLINE void gather_rows(const struct row_pointers *rows, ptrdiff_t first, ptrdiff_t length, real *strip)
{
    if (are_neighbours(rows)) {
        for (ptrdiff_t i = 0; i < length; i++)
            store(strip + i * LANES, load(element(rows, 0, first + i)));
    } else if (can_transpose(rows, length)) {
        gather_transposed(rows, first, length, strip);
    } else {
        /* Whole vectors first, then the other runs over them. Lanes that hold no row are 0. */
        ptrdiff_t count = rows->count < LANES ? rows->count : LANES; /* never more: for GCC, which warns */
        ptrdiff_t end = end_of_run(rows, 0, count);
        for (ptrdiff_t i = 0; i < length; i++)
            store(strip + i * LANES, load_first(element(rows, 0, first + i), end, 0));
        for (ptrdiff_t lane = end; lane < count; lane = end) {
            end = end_of_run(rows, lane, count);
            for (ptrdiff_t i = 0; i < length; i++)
                copy_lanes(strip + i * LANES + lane, element(rows, lane, first + i), end - lane);
        }
    }
}

/* The way back, for the first `count` lanes. */
NOT_INLINE void scatter_rows(const struct row_pointers *rows, ptrdiff_t count, ptrdiff_t first, ptrdiff_t length,
                         const real *strip)
{
    if (are_neighbours(rows)) {
        for (ptrdiff_t i = 0; i < length; i++)
            store(element(rows, 0, first + i), load(strip + i * LANES));
    } else if (can_transpose(rows, length)) {
        scatter_transposed(rows, count, first, length, strip, COPY, NULL);
    } else {
        for (ptrdiff_t lane = 0, end; lane < count; lane = end) {
            end = end_of_run(rows, lane, count);
            for (ptrdiff_t i = 0; i < length; i++)
                copy_lanes(element(rows, lane, first + i), strip + i * LANES + lane, end - lane);
        }
    }
}

/* Elements of one row, `stride` bytes apart, to a strip. */
NOT_INLINE void gather_row(const char *from, ptrdiff_t stride, ptrdiff_t length, real *strip)
{
    ptrdiff_t i = 0;
    /* One of two columns, or of the parts of complex numbers. What is read of the other one is not used. */
    for (; stride == 2 * (ptrdiff_t)sizeof(real) && i + LANES < length; i += LANES) {
        const real *pairs = (const real *)(const void *)(from + i * stride);
        vec both[2] = {load(pairs), load(pairs + LANES)};
        unzip(both, 2);
        store(strip + i, both[0]);
    }
    /* A loop of two instructions runs at half of its speed where it lies badly. */
#pragma GCC unroll 8
    for (; i < length; i++) strip[i] = *(const real *)(const void *)(from + i * stride);
}

/* The way back. */
NOT_INLINE void scatter_row(char *to, ptrdiff_t stride, ptrdiff_t length, const real *strip)
{
#pragma GCC unroll 8
    for (ptrdiff_t i = 0; i < length; i++) *(real *)(void *)(to + i * stride) = strip[i];
}

/* A strip (of a horizontal group, that of row number `strip`) to read: the memory itself where a row lies in order,
 * else a copy in scratch. */
INLINE const real *read_strip(const struct row_pointers *rows, int vertical, ptrdiff_t strip, ptrdiff_t first,
                              ptrdiff_t length, real *scratch)
{
    if (vertical) {
        gather_rows(rows, first, length, scratch);
        return scratch;
    }
    real *start = element(rows, strip, first);
    if (has_unit_stride(rows)) return start;
    gather_row((const char *)start, rows->axis_stride, length, scratch);
    return scratch;
}

/* Where to write a strip that write_strip will then bring home. */
INLINE real *strip_to_write(const struct row_pointers *rows, int vertical, ptrdiff_t strip, ptrdiff_t first,
                            real *scratch)
{
    return !vertical && has_unit_stride(rows) ? element(rows, strip, first) : scratch;
}

INLINE void write_strip(const struct row_pointers *rows, int vertical, ptrdiff_t strip, ptrdiff_t count,
                        ptrdiff_t first, ptrdiff_t length, const real *from)
{
    if (vertical) scatter_rows(rows, count, first, length, from);
    else if (!has_unit_stride(rows))
        scatter_row((char *)element(rows, strip, first), rows->axis_stride, length, from);
}

#endif
