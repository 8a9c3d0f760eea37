/* What is done alongside the sum of a row, or a block of it: the max of the row that lies a group further on, or of the
 * block after the next one, and the writing of the row that lies a group back. The sum waits for arithmetic, these two
 * for memory: in one loop they take hardly longer than the sum alone. */
#ifndef FASTSOFTMAX_ALONGSIDE_H
#define FASTSOFTMAX_ALONGSIDE_H

#include "extremes.h"
#include "last_step.h"

/* Reals to what is fetched while the max of a row is found: in most arrays the next rows. Measured with 64 MB: half or
 * twice of it takes 0.92 to 1.1 times as long, into the first-level cache instead of the second 1.05 to 1.4; in a model
 * of this loop an eighth takes 1.2 times as long and nothing at all 1.6. */
#define READ_AHEAD ((ptrdiff_t)(16384 / sizeof(real)))

/* How a row is written: `last` as in last_step.h, but COPY where nothing is written alongside. Constants, as a rule. */
struct writing {
    enum last_step last;
    int streamed; /* past the caches */
};

static const struct writing no_writing = {COPY, 0};

/* Of each row of a horizontal group. */
struct strips_alongside {
    int streamed; /* as in struct writing */
    ptrdiff_t next_length;   /* the others are as long as the one that is summed */
    const real *next[LANES]; /* what the extremes are found of */
    struct extremes *extremes;
    const real *from[LANES];
    real *to[LANES];
    struct last_values values;
    /* For SCALE_BUT_LABEL: the element of this number, if the strip has it, is that instead. */
    ptrdiff_t label[LANES];
    vec at_label;
};

/* Of one of them. */
struct strip_alongside {
    ptrdiff_t next_length, read, length, written; /* reals: in all, and done */
    const real *next, *from;
    real *to;
    struct last_values values;
    struct extremes extremes;
    vec first, last; /* values of the row that is written: its whole vectors are aligned but for these */
    ptrdiff_t label; /* for SCALE_BUT_LABEL, as at_label */
    real at_label;
};

INLINE vec value_alongside(const struct strip_alongside *strip, ptrdiff_t at, struct writing writing)
{
    vec value = after_last_step(load(strip->from + at), writing.last, &strip->values);
    if (writing.last != SCALE_BUT_LABEL) return value;
    ptrdiff_t lane = strip->label - at;
    if (lane >= 0 && lane < LANES) value[lane] = strip->at_label;
    return value;
}

INLINE void write_alongside(struct strip_alongside *strip, struct writing writing)
{
    vec value = value_alongside(strip, strip->written, writing);
    if (writing.streamed) stream(strip->to + strip->written, value);
    else store(strip->to + strip->written, value);
    strip->written += LANES;
}

INLINE void read_alongside(struct strip_alongside *strip)
{
    strip->extremes = with_elements(strip->extremes, load(strip->next + strip->read));
    strip->read += LANES;
}

/* The strips have a vector or more of elements. */
INLINE struct strip_alongside begin_alongside(const struct strips_alongside *strips, ptrdiff_t s, ptrdiff_t length,
                                              struct writing writing)
{
    struct strip_alongside strip;
    const real *last = strips->next[s] + strips->next_length - LANES;
    strip.length = length;
    strip.next_length = strips->next_length;
    strip.next = strips->next[s];
    strip.read = until_aligned(strip.next, strip.next_length);
    strip.extremes = with_elements(with_elements(no_extremes(), load(strip.next)), load(last));
    /* The lines at both ends, where the loop does not ask for all. */
    prefetch(strip.next + READ_AHEAD);
    prefetch(last + READ_AHEAD);
    if (writing.last == COPY) return strip;
    strip.from = strips->from[s];
    strip.to = strips->to[s];
    strip.values = last_values_in_strip(&strips->values, s, writing.last);
    if (writing.last == SCALE_BUT_LABEL) {
        strip.label = strips->label[s];
        strip.at_label = strips->at_label[s];
    }
    strip.written = until_aligned(strip.to, length);
    strip.first = value_alongside(&strip, 0, writing);
    strip.last = value_alongside(&strip, length - LANES, writing);
    /* At once: it is in the cache line where the row before ends. */
    if (writing.streamed && strip.written) stream_first(strip.to, strip.written, strip.first);
    return strip;
}

/* How many vectors are left of both, at least. */
INLINE ptrdiff_t vectors_alongside(const struct strip_alongside *strip, struct writing writing)
{
    ptrdiff_t to_read = strip->next_length - strip->read, to_write = strip->length - strip->written;
    return (writing.last != COPY && to_write < to_read ? to_write : to_read) / LANES;
}

INLINE void end_alongside(struct strip_alongside *strip, struct writing writing)
{
    while (strip->read + LANES <= strip->next_length) read_alongside(strip);
    if (writing.last == COPY) return;
    while (strip->written + LANES <= strip->length) write_alongside(strip, writing);
    ptrdiff_t left = strip->length - strip->written;
    if (writing.streamed) {
        /* The last lanes of the last vector, from lane 0 on. */
        if (left) stream_first(strip->to + strip->written, left, rotate(strip->last, LANES - left));
    } else {
        if (until_aligned(strip->to, strip->length)) store(strip->to, strip->first);
        if (left) store(strip->to + strip->length - LANES, strip->last);
    }
}

#endif
