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

/* `steps` elements, a constant, of the rows from element i on, to steps of a vertical strip. */
INLINE void gather_square(const struct row_pointers *rows, ptrdiff_t i, real *strip, int steps)
{
    vec square[LANES];
    EACH_LANE(lane) square[lane] = load_lanes(element(rows, lane, i), steps);
    transpose(square);
    for (int step = 0; step < steps; step++) store(strip + step * LANES, square[step]);
}

INLINE void scatter_square(const struct row_pointers *rows, ptrdiff_t count, ptrdiff_t i, const real *strip, int steps)
{
    vec square[LANES];
    for (int step = 0; step < steps; step++) square[step] = load(strip + step * LANES);
    for (int step = steps; step < LANES; step++) square[step] = square[0];
    transpose_first(square, steps);
    if (count == LANES) EACH_LANE(lane) store_lanes(element(rows, lane, i), steps, square[lane]);
    else
        for (ptrdiff_t lane = 0; lane < count; lane++) store_lanes(element(rows, lane, i), steps, square[lane]);
}

/* CALL(steps) with a constant for any number of steps below LANES. */
#define WITH_CONSTANT_STEPS(steps, CALL)                                                           \
    switch (steps) {                                                                               \
    case 1: CALL(1); break;                                                                        \
    case 2: CALL(2 < LANES ? 2 : 1); break;                                                        \
    case 3: CALL(3 < LANES ? 3 : 1); break;                                                        \
    case 4: CALL(4 < LANES ? 4 : 1); break;                                                        \
    case 5: CALL(5 < LANES ? 5 : 1); break;                                                        \
    case 6: CALL(6 < LANES ? 6 : 1); break;                                                        \
    case 7: CALL(7 < LANES ? 7 : 1); break;                                                        \
    case 8: CALL(8 < LANES ? 8 : 1); break;                                                        \
    case 9: CALL(9 < LANES ? 9 : 1); break;                                                        \
    case 10: CALL(10 < LANES ? 10 : 1); break;                                                     \
    case 11: CALL(11 < LANES ? 11 : 1); break;                                                     \
    case 12: CALL(12 < LANES ? 12 : 1); break;                                                     \
    case 13: CALL(13 < LANES ? 13 : 1); break;                                                     \
    case 14: CALL(14 < LANES ? 14 : 1); break;                                                     \
    case 15: CALL(15 < LANES ? 15 : 1); break;                                                     \
    }

/* Elements [first, first + length) of each row to steps of a vertical strip. */
static void gather_rows(const struct row_pointers *rows, ptrdiff_t first, ptrdiff_t length, real *strip)
{
    if (rows->neighbours) {
        for (ptrdiff_t i = 0; i < length; i++)
            store(strip + i * LANES, load(element(rows, 0, first + i)));
    } else if (has_unit_stride(rows)) {
        ptrdiff_t i = 0;
        for (; i + LANES <= length; i += LANES) gather_square(rows, first + i, strip + i * LANES, LANES);
#define GATHER(steps) gather_square(rows, first + i, strip + i * LANES, steps)
        WITH_CONSTANT_STEPS(length - i, GATHER)
#undef GATHER
    } else {
        for (ptrdiff_t i = 0; i < length; i++)
            EACH_LANE(lane) strip[i * LANES + lane] = *element(rows, lane, first + i);
    }
}

/* The way back, for the first `count` lanes. */
static void scatter_rows(const struct row_pointers *rows, ptrdiff_t count, ptrdiff_t first, ptrdiff_t length,
                         const real *strip)
{
    if (rows->neighbours) {
        for (ptrdiff_t i = 0; i < length; i++)
            store(element(rows, 0, first + i), load(strip + i * LANES));
    } else if (has_unit_stride(rows)) {
        ptrdiff_t i = 0;
        for (; i + LANES <= length; i += LANES) scatter_square(rows, count, first + i, strip + i * LANES, LANES);
#define SCATTER(steps) scatter_square(rows, count, first + i, strip + i * LANES, steps)
        WITH_CONSTANT_STEPS(length - i, SCATTER)
#undef SCATTER
    } else {
        for (ptrdiff_t i = 0; i < length; i++)
            for (ptrdiff_t lane = 0; lane < count; lane++) *element(rows, lane, first + i) = strip[i * LANES + lane];
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
