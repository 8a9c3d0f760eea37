/* Between memory as it lies and strips: contiguous reals, LANES a step in a vertical group
 * (element i of every lane's row), the row's own order in a horizontal one. */
#ifndef FASTSOFTMAX_STRIPS_H
#define FASTSOFTMAX_STRIPS_H

#include "simd.h"

/* Where one operand's rows of a group begin. */
struct row_pointers {
    char *first;
    ptrdiff_t row_stride, axis_stride;
    int is_regular; /* LANES rows, each row_stride bytes after the one before it */
    char *lane[64 / (REAL_BITS / 8)]; /* otherwise; past the last row a vertical group repeats it */
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
    transpose(square);
    if (count == LANES) EACH_LANE(lane) store_lanes(element(rows, lane, i), steps, square[lane]);
    else
        for (ptrdiff_t lane = 0; lane < count; lane++) store_lanes(element(rows, lane, i), steps, square[lane]);
}

/* CALL(number) with a constant, for any number from 1 to `most` (a constant below 16). */
#define WITH_CONSTANT(number, most, CALL)                                                          \
    switch (number) {                                                                              \
    case 1: CALL(1 <= (most) ? 1 : 1); break;                                                      \
    case 2: CALL(2 <= (most) ? 2 : 1); break;                                                      \
    case 3: CALL(3 <= (most) ? 3 : 1); break;                                                      \
    case 4: CALL(4 <= (most) ? 4 : 1); break;                                                      \
    case 5: CALL(5 <= (most) ? 5 : 1); break;                                                      \
    case 6: CALL(6 <= (most) ? 6 : 1); break;                                                      \
    case 7: CALL(7 <= (most) ? 7 : 1); break;                                                      \
    case 8: CALL(8 <= (most) ? 8 : 1); break;                                                      \
    case 9: CALL(9 <= (most) ? 9 : 1); break;                                                      \
    case 10: CALL(10 <= (most) ? 10 : 1); break;                                                   \
    case 11: CALL(11 <= (most) ? 11 : 1); break;                                                   \
    case 12: CALL(12 <= (most) ? 12 : 1); break;                                                   \
    case 13: CALL(13 <= (most) ? 13 : 1); break;                                                   \
    case 14: CALL(14 <= (most) ? 14 : 1); break;                                                   \
    case 15: CALL(15 <= (most) ? 15 : 1); break;                                                   \
    }

/* Dense rows of `n` elements, a constant not above LANES / 2, of which several fit in a vector:
 * far fewer shuffles than the square transposition takes. With gaps between them, so that each
 * takes a power of two of lanes, the rows only have to be dealt out. */
#define LANES_OF_ROW(n) ((n) > 4 ? 8 : (n) > 2 ? 4 : (n))

INLINE void gather_dense(const real *from, real *strip, int n)
{
    int row_lanes = LANES_OF_ROW(n), rows = (int)LANES / row_lanes;
    vec v[LANES];
    ivec place;
    EACH_LANE(i) place[i] = i / row_lanes * n + (i % row_lanes < n ? i % row_lanes : 0);
    for (int i = 0; i < row_lanes; i++) {
        v[i] = load_lanes(from + i * rows * n, rows * n);
        if (n < row_lanes) v[i] = permute(v[i], place);
    }
    unzip(v, row_lanes);
    for (int i = 0; i < n; i++) store(strip + i * LANES, v[i]);
}

INLINE void scatter_dense(real *to, const real *strip, int n)
{
    int row_lanes = LANES_OF_ROW(n), rows = (int)LANES / row_lanes;
    vec v[LANES];
    ivec place;
    EACH_LANE(i) place[i] = i < rows * n ? i / n * row_lanes + i % n : 0;
    for (int i = 0; i < row_lanes; i++) v[i] = load(strip + (i < n ? i : 0) * LANES);
    zip(v, row_lanes);
    for (int i = 0; i < row_lanes; i++) {
        if (n < row_lanes) v[i] = permute(v[i], place);
        store_lanes(to + i * rows * n, rows * n, v[i]);
    }
}

/* The lanes from `lane` on whose rows are neighbours in memory end before this one. */
INLINE ptrdiff_t end_of_run(const struct row_pointers *rows, ptrdiff_t lane, ptrdiff_t count)
{
    ptrdiff_t end = lane + 1;
    while (end < count && row_start(rows, end) == row_start(rows, end - 1) + sizeof(real)) end++;
    return end;
}

/* At most LANES reals. */
INLINE void copy_few(real *to, const real *from, ptrdiff_t count)
{
    if (count == 1) *to = *from;
    else store_lanes(to, count, load_lanes(from, count));
}

/* Elements [first, first + length) of each row to steps of a vertical strip. */
NOT_INLINE void gather_rows(const struct row_pointers *rows, ptrdiff_t first, ptrdiff_t length, real *strip)
{
    if (are_neighbours(rows)) {
        for (ptrdiff_t i = 0; i < length; i++)
            store(strip + i * LANES, load(element(rows, 0, first + i)));
    } else if (length <= LANES / 2 && are_dense(rows, length)) {
#define GATHER(n) gather_dense(element(rows, 0, first), strip, n)
        WITH_CONSTANT(length, LANES / 2, GATHER)
#undef GATHER
    } else if (has_unit_stride(rows)) {
        ptrdiff_t i = 0;
        for (; i + LANES <= length; i += LANES) gather_square(rows, first + i, strip + i * LANES, LANES);
#define GATHER(steps) gather_square(rows, first + i, strip + i * LANES, steps)
        WITH_CONSTANT(length - i, LANES - 1, GATHER)
#undef GATHER
    } else {
        for (ptrdiff_t lane = 0, end; lane < LANES; lane = end) {
            end = end_of_run(rows, lane, LANES);
            for (ptrdiff_t i = 0; i < length; i++)
                copy_few(strip + i * LANES + lane, element(rows, lane, first + i), end - lane);
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
    } else if (length <= LANES / 2 && are_dense(rows, length)) {
#define SCATTER(n) scatter_dense(element(rows, 0, first), strip, n)
        WITH_CONSTANT(length, LANES / 2, SCATTER)
#undef SCATTER
    } else if (has_unit_stride(rows)) {
        ptrdiff_t i = 0;
        for (; i + LANES <= length; i += LANES) scatter_square(rows, count, first + i, strip + i * LANES, LANES);
#define SCATTER(steps) scatter_square(rows, count, first + i, strip + i * LANES, steps)
        WITH_CONSTANT(length - i, LANES - 1, SCATTER)
#undef SCATTER
    } else {
        for (ptrdiff_t lane = 0, end; lane < count; lane = end) {
            end = end_of_run(rows, lane, count);
            for (ptrdiff_t i = 0; i < length; i++)
                copy_few(element(rows, lane, first + i), strip + i * LANES + lane, end - lane);
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
