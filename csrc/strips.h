/* Between memory as it lies and strips: contiguous reals, LANES a step in a vertical group
 * (element i of every lane's row), the row's own order in a horizontal one. */
#ifndef FASTSOFTMAX_STRIPS_H
#define FASTSOFTMAX_STRIPS_H

#include "simd.h"

/* Where one operand's rows of a group begin. Lanes past the group's last row repeat it. */
struct row_pointers {
    char *lane[64 / (REAL_BITS / 8)];
    ptrdiff_t axis_stride;
    int neighbours; /* lane l lies l elements after lane 0 */
};

INLINE real *element(const struct row_pointers *rows, ptrdiff_t lane, ptrdiff_t i)
{
    return (real *)(void *)(rows->lane[lane] + i * rows->axis_stride);
}

INLINE int has_unit_stride(const struct row_pointers *rows)
{
    return rows->axis_stride == (ptrdiff_t)sizeof(real);
}

/* Elements [first, first + length) of each row to steps of a vertical strip. */
static void gather_rows(const struct row_pointers *rows, ptrdiff_t first, ptrdiff_t length, real *strip)
{
    if (rows->neighbours) {
        for (ptrdiff_t i = 0; i < length; i++)
            store(strip + i * LANES, load(element(rows, 0, first + i)));
        return;
    }
    if (has_unit_stride(rows)) {
        ptrdiff_t i = 0;
        vec square[LANES];
        for (; i + LANES <= length; i += LANES) {
            EACH_LANE(lane) square[lane] = load(element(rows, lane, first + i));
            transpose(square);
            EACH_LANE(step) store(strip + (i + step) * LANES, square[step]);
        }
        if (i < length) {
            EACH_LANE(lane) square[lane] = load_first(element(rows, lane, first + i), length - i, 0);
            transpose(square);
            for (ptrdiff_t step = 0; i + step < length; step++) store(strip + (i + step) * LANES, square[step]);
        }
        return;
    }
    for (ptrdiff_t i = 0; i < length; i++)
        EACH_LANE(lane) strip[i * LANES + lane] = *element(rows, lane, first + i);
}

/* The way back, for the first `count` lanes. */
static void scatter_rows(const struct row_pointers *rows, ptrdiff_t count, ptrdiff_t first, ptrdiff_t length,
                         const real *strip)
{
    if (rows->neighbours) {
        for (ptrdiff_t i = 0; i < length; i++)
            store(element(rows, 0, first + i), load(strip + i * LANES));
        return;
    }
    if (has_unit_stride(rows)) {
        for (ptrdiff_t i = 0; i < length; i += LANES) {
            ptrdiff_t steps = length - i < LANES ? length - i : LANES;
            vec square[LANES];
            EACH_LANE(step) square[step] = step < steps ? load(strip + (i + step) * LANES) : splat(0);
            transpose(square);
            if (steps == LANES)
                for (ptrdiff_t lane = 0; lane < count; lane++) store(element(rows, lane, first + i), square[lane]);
            else
                for (ptrdiff_t lane = 0; lane < count; lane++)
                    store_first(element(rows, lane, first + i), steps, square[lane]);
        }
        return;
    }
    for (ptrdiff_t i = 0; i < length; i++)
        for (ptrdiff_t lane = 0; lane < count; lane++) *element(rows, lane, first + i) = strip[i * LANES + lane];
}

/* A readable strip (of a horizontal group, that of row number `strip`): the memory itself where a row lies in order, else a copy in scratch. */
INLINE const real *read_strip(const struct row_pointers *rows, int vertical, ptrdiff_t strip, ptrdiff_t first,
                              ptrdiff_t length, real *scratch)
{
    if (vertical) {
        gather_rows(rows, first, length, scratch);
        return scratch;
    }
    if (has_unit_stride(rows)) return element(rows, strip, first);
    for (ptrdiff_t i = 0; i < length; i++) scratch[i] = *element(rows, strip, first + i);
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
