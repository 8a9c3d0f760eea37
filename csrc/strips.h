/* Between memory as it lies and strips: contiguous reals, LANES a step in a vertical group
 * (element i of every lane's row), the row's own order in a horizontal one. */
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
        for (ptrdiff_t lane = 0, end; lane < LANES; lane = end) {
            end = end_of_run(rows, lane, LANES);
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

/* A strip (of a horizontal group, that of row number `strip`) in scratch. */
static void copy_strip(const struct row_pointers *rows, int vertical, ptrdiff_t strip, ptrdiff_t first,
                       ptrdiff_t length, real *scratch)
{
    if (vertical) gather_rows(rows, first, length, scratch);
    else
        for (ptrdiff_t i = 0; i < length; i++) scratch[i] = *element(rows, strip, first + i);
}

/* A readable strip: the memory itself where a row lies in order, else a copy in scratch. */
INLINE const real *read_strip(const struct row_pointers *rows, int vertical, ptrdiff_t strip, ptrdiff_t first,
                              ptrdiff_t length, real *scratch)
{
    if (!vertical && has_unit_stride(rows)) return element(rows, strip, first);
    copy_strip(rows, vertical, strip, first, length, scratch);
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
        for (ptrdiff_t i = 0; i < length; i++) *element(rows, strip, first + i) = from[i];
}

#endif
