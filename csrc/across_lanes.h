/* From the lanes of each horizontal strip to a lane for each row. */
#ifndef FASTSOFTMAX_ACROSS_LANES_H
#define FASTSOFTMAX_ACROSS_LANES_H

#include "pair.h"

/* of_row[0] becomes what the lanes of each row's vectors combine to, row r's in lane r. They
 * are combined in halves, as sum_of_chains of sums.h adds them; at every step two vectors become
 * one, with the first parts of both rows and with the second. `most`, a constant, is the
 * number of rows. */
#define FOLD_LANES(type, of_row, most, first_parts, second_parts, combine)                         \
    for (ptrdiff_t size_ = LANES / 2, left_ = (most); size_ > 0; size_ /= 2, left_ = (left_ + 1) / 2) \
        for (ptrdiff_t i_ = 0; i_ < (left_ + 1) / 2; i_++) {                                       \
            type a_ = (of_row)[2 * i_], b_ = (of_row)[2 * i_ + 1 < left_ ? 2 * i_ + 1 : 2 * i_];   \
            (of_row)[i_] = combine(first_parts(a_, b_, size_), second_parts(a_, b_, size_));       \
        }

/* CALL(rows) with a constant not below count: few rows take fewer shuffles. */
#define WITH_CONSTANT_ROWS(count, CALL)                                                            \
    do {                                                                                           \
        if ((count) == 1) { CALL(1) }                                                              \
        else if ((count) <= 4 && LANES > 4) { CALL(4) }                                            \
        else if ((count) <= 8 && LANES > 8) { CALL(8) }                                            \
        else { CALL(LANES) }                                                                       \
    } while (0)

/* A value of each row as the vectors of a strip need it: a vertical strip has a row in each lane, a horizontal
 * one the row of that number in all of them. */
INLINE vec in_strip(int vertical, const vec *values, ptrdiff_t strip)
{
    return vertical ? *values : splat(((const real *)values)[strip]);
}

INLINE struct pair pair_in_strip(int vertical, const struct pair *values, ptrdiff_t strip)
{
    return (struct pair){in_strip(vertical, &values->high, strip), in_strip(vertical, &values->low, strip)};
}

#endif
