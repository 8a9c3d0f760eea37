/* Rows whose elements lie side by side in memory, to and from vertical strips, whose vectors hold an element of each.
 * What has to be done once with every element is done on the way: the max, and the last step. */
#ifndef FASTSOFTMAX_TRANSPOSE_H
#define FASTSOFTMAX_TRANSPOSE_H

#include "extremes.h"
#include "last_step.h"
#include "row_pointers.h"

/* CALL(number) with a constant, for any number from 1 to `most` (a constant below 16). The cases above it have 1 there:
 * the compiler need not make copies for them. */
#define WITH_CONSTANT(number, most, CALL)                                                          \
    switch (number) {                                                                              \
    case 1: CALL(1); break;                                                                        \
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

/* Dense rows of `n` elements, a constant not above MOST_DEALT, of which several fit in a vector as a rule: with
 * gaps between them, so that each takes a power of two of lanes, the rows only have to be dealt out. */
#define MOST_DEALT (LANES / 2 < PART - 1 ? PART - 1 : LANES / 2)
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

INLINE void scatter_dense(real *to, const real *strip, int n, enum last_step last, const struct last_values *values)
{
    int row_lanes = LANES_OF_ROW(n), rows = (int)LANES / row_lanes;
    vec v[LANES];
    ivec place;
    EACH_LANE(i) place[i] = i < rows * n ? i / n * row_lanes + i % n : 0;
    for (int i = 0; i < n; i++) v[i] = after_last_step(load(strip + i * LANES), last, values);
    for (int i = n; i < row_lanes; i++) v[i] = v[0];
    zip(v, row_lanes);
    for (int i = 0; i < row_lanes; i++) {
        if (n < row_lanes) v[i] = permute(v[i], place);
        store_lanes(to + i * rows * n, rows * n, v[i]);
    }
}

/* As element(), where `regular` is a constant: then no pointers are kept, for which there are too few registers. */
INLINE real *element_of(const struct row_pointers *rows, int lane, ptrdiff_t i, int regular)
{
    char *start = regular ? rows->first + lane * rows->row_stride : rows->lane[lane];
    return (real *)(void *)start + i;
}

/* v[step] is element i + step of every lane's row, for PART steps: each row's 16 bytes go where a transposition
 * within every 16 bytes of the vectors leaves them in the row's lane. */
INLINE void gather_part(const struct row_pointers *rows, ptrdiff_t i, vec v[], int regular)
{
    for (int step = 0; step < PART; step++) {
        const real *from[PARTS];
        for (int part = 0; part < PARTS; part++) from[part] = element_of(rows, part * PART + step, i, regular);
        v[step] = load_parts(from);
    }
    transpose_parts(v);
}

/* The way back, for the first `count` lanes. */
INLINE void scatter_part(const struct row_pointers *rows, ptrdiff_t count, ptrdiff_t i, vec v[], int regular)
{
    transpose_parts(v);
    for (int step = 0; step < PART; step++)
        for (int part = 0; part < PARTS && part * PART + step < count; part++)
            store_part(element_of(rows, part * PART + step, i, regular), v[step], part);
}

/* Twice as many elements, of regular rows: fewer stores, which would take longer than one more shuffle. */
#if VECTOR_BYTES > 16
#define SCATTERED (2 * PART)
INLINE void scatter_piece(const struct row_pointers *rows, ptrdiff_t i, vec v[])
{
    transpose_parts(v);
    transpose_parts(v + PART);
    for (int step = 0; step < PART; step++) {
        real *to[PARTS];
        for (int part = 0; part < PARTS; part++) to[part] = element_of(rows, part * PART + step, i, 1);
        store_two_parts(to, interleave_parts_low(v[step], v[step + PART]));
        store_two_parts(to + PARTS / 2, interleave_parts_high(v[step], v[step + PART]));
    }
}
#else
#define SCATTERED PART
INLINE void scatter_piece(const struct row_pointers *rows, ptrdiff_t i, vec v[]) { scatter_part(rows, LANES, i, v, 1); }
#endif

/* Pieces of `size` elements cover a row that is no shorter; the last one may begin within the one before it. */
INLINE ptrdiff_t next_piece(ptrdiff_t i, ptrdiff_t size, ptrdiff_t length)
{
    ptrdiff_t next = i + size;
    return next < length && next + size > length ? length - size : next;
}

/* Rows whose elements are neighbours, and which fill 16 bytes or lie one after the other. */
INLINE int can_transpose(const struct row_pointers *rows, ptrdiff_t length)
{
    return has_unit_stride(rows) && (length >= PART || are_dense(rows, length));
}

/* A copy of what is needed, where the compiler sees that no store changes it. */
INLINE struct row_pointers copy_of_regular(const struct row_pointers *rows)
{
    struct row_pointers copy;
    copy.first = rows->first;
    copy.row_stride = rows->row_stride;
    return copy;
}

INLINE struct extremes gather_pieces(const struct row_pointers *rows, ptrdiff_t first, ptrdiff_t length, real *strip,
                                     int regular)
{
    struct extremes found = no_extremes();
    for (ptrdiff_t i = 0; i < length; i = next_piece(i, PART, length)) {
        vec v[PART];
        gather_part(rows, first + i, v, regular);
        for (int step = 0; step < PART; step++) {
            store(strip + (i + step) * LANES, v[step]);
            found = with_elements(found, v[step]);
        }
    }
    return found;
}

/* Elements [first, first + length) of rows that can be transposed to steps of a vertical strip; returns the extremes
 * of each row. */
INLINE struct extremes gather_transposed(const struct row_pointers *rows, ptrdiff_t first, ptrdiff_t length,
                                         real *strip)
{
    if (length < PART) {
        struct extremes found = no_extremes();
#define GATHER(n) gather_dense(element(rows, 0, first), strip, n)
        WITH_CONSTANT(length, PART - 1, GATHER)
#undef GATHER
        for (ptrdiff_t i = 0; i < length; i++) found = with_elements(found, load(strip + i * LANES));
        return found;
    }
    if (!rows->is_regular) return gather_pieces(rows, first, length, strip, 0);
    struct row_pointers regular = copy_of_regular(rows);
    return gather_pieces(&regular, first, length, strip, 1);
}

/* Elements [i, i + size) of the strip to each row; `size` and `regular` are constants. */
INLINE void scatter_elements(const struct row_pointers *rows, ptrdiff_t count, ptrdiff_t first, ptrdiff_t i,
                             const real *strip, enum last_step last, const struct last_values *values, int size,
                             int regular)
{
    vec v[SCATTERED];
    for (int step = 0; step < size; step++) v[step] = after_last_step(load(strip + (i + step) * LANES), last, values);
    if (regular && size == SCATTERED) scatter_piece(rows, first + i, v);
    else scatter_part(rows, count, first + i, v, regular);
}

INLINE void scatter_pieces(const struct row_pointers *rows, ptrdiff_t count, ptrdiff_t first, ptrdiff_t length,
                           const real *strip, enum last_step last, const struct last_values *values, int size,
                           int regular)
{
    /* What is left of the last one fits in a smaller one: that takes less. */
    int is_small = size > PART && length % size > 0 && length % size <= PART;
    ptrdiff_t end = is_small ? length - length % size : length;
    for (ptrdiff_t i = 0; i < end; i = next_piece(i, size, end))
        scatter_elements(rows, count, first, i, strip, last, values, size, regular);
    if (is_small) scatter_elements(rows, count, first, length - PART, strip, last, values, PART, regular);
}

/* The way back, after the last step, for the first `count` lanes. */
INLINE void scatter_transposed(const struct row_pointers *rows, ptrdiff_t count, ptrdiff_t first, ptrdiff_t length,
                               const real *strip, enum last_step last, const struct last_values *values)
{
    if (length <= MOST_DEALT && are_dense(rows, length)) {
#define SCATTER(n) scatter_dense(element(rows, 0, first), strip, n, last, values)
        WITH_CONSTANT(length, MOST_DEALT, SCATTER)
#undef SCATTER
    } else if (!rows->is_regular) {
        scatter_pieces(rows, count, first, length, strip, last, values, PART, 0);
    } else {
        struct row_pointers regular = copy_of_regular(rows);
        if (length < SCATTERED) scatter_pieces(&regular, LANES, first, length, strip, last, values, PART, 1);
        else scatter_pieces(&regular, LANES, first, length, strip, last, values, SCATTERED, 1);
    }
}

#endif
