/* Cache lines that are asked for one by one while something else is done: a request for many at once would wait for the
 * memory. They are runs of neighbours: dense rows are one run, others one each, a panel of columns one for each index
 * along the axis. */
#ifndef FASTSOFTMAX_LINES_AHEAD_H
#define FASTSOFTMAX_LINES_AHEAD_H

#include "simd.h"

struct lines_ahead {
    const char *next, *end; /* in a run, and its end */
    ptrdiff_t run_bytes, jump; /* from the end of a run to the next one */
    ptrdiff_t runs_left;       /* with this one; after them the last line is asked for again and again */
    /* Bytes from a line to those of the output and the second operand that belong to it; 0: they are not asked for. */
    ptrdiff_t to_output, to_second;
    ptrdiff_t output_jump; /* how much further the output's next run lies than x's */
};

INLINE struct lines_ahead runs_of_lines(const char *start, ptrdiff_t run_bytes, ptrdiff_t stride, ptrdiff_t runs)
{
    return (struct lines_ahead){start, start + run_bytes, run_bytes, stride - run_bytes, runs, 0, 0, 0};
}

/* Where nothing is ahead: a line that is there already. */
INLINE struct lines_ahead no_lines(const char *known) { return runs_of_lines(known, CACHE_LINE_BYTES, 0, 1); }

INLINE void prefetch_line(struct lines_ahead *lines)
{
    prefetch(lines->next);
    if (lines->to_output) prefetch_to_write(lines->next + lines->to_output);
    if (lines->to_second) prefetch(lines->next + lines->to_second);
    lines->next += CACHE_LINE_BYTES;
    if (lines->next < lines->end) return;
    if (lines->runs_left <= 1) {
        lines->next -= CACHE_LINE_BYTES;
        return;
    }
    lines->runs_left--;
    lines->next = lines->end + lines->jump;
    lines->end = lines->next + lines->run_bytes;
    if (lines->to_output) lines->to_output += lines->output_jump;
}

#endif
