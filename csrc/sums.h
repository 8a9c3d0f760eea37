/* The second phase: sums over a strip. In a horizontal group that is a row's reals, any number of them; in a vertical
 * one vectors, of which number i holds element i of every lane's row: one after the other in scratch memory, a line
 * apart where columns stay in their place.
 *
 * The order of a row's sum. It depends on the operation and n alone, so that every group, instruction set,
 * layout and thread count gives the same bits:
 *   n < SHORT_ROW: one chain, elements 0, 1, 2, ...
 *   otherwise, in each block (kernels.h): CHAINS chains, chain c taking elements c, c + CHAINS, ...;
 *   their totals are added in halves (c with c + CHAINS/2, and so on), then block by block,
 *   of long rows after each has been related to the row's max (blocks.h).
 * A horizontal group keeps CHAINS chains in CHAINS / LANES vectors; a vertical one runs
 * them one after the other, in all of the strip or in each part of it. */
#ifndef FASTSOFTMAX_SUMS_H
#define FASTSOFTMAX_SUMS_H

#include "alongside.h"
#include "lines_ahead.h"
#include "vector_exp.h"

#define CHAINS ((ptrdiff_t)(512 / REAL_BITS))
#define CHAIN_VECTORS (CHAINS / LANES)
#define SHORT_ROW ((ptrdiff_t)(REAL_BITS == 32 ? 128 : 64))
/* Rows below this length are transposed where there are enough of them, so that one vector holds one element of many:
 * the work across lanes would cost more; twice as long where nothing is written and so transposed back. Measured,
 * softmax transposed against not: 0.94 of the time with 130 float32, 1.06 with 160, 1.07 with 200; with float64 0.99 at
 * 100, 1.05 at 130, 1.09 at 160. With vectors of 32 bytes 0.96 with 200 float32. logsumexp: 0.87 with 200, 0.97 with
 * 300, 1.01 with 350; float64 0.9 at 145, 1.0 at 176, 1.02 at 216; 32 bytes 0.95 to 0.97 with 350 to 500. */
#if VECTOR_BYTES == 64
#define TRANSPOSED_ROW ((ptrdiff_t)(REAL_BITS == 32 ? 160 : 112))
#else
#define TRANSPOSED_ROW ((ptrdiff_t)(REAL_BITS == 32 ? 256 : 192))
#endif
/* Reals of a row from which it pays to begin with less than a vector of them, which takes a step more, and have the
 * others aligned (measured with 200 to 1000). */
#define ALIGNED_SUMS (32 * LANES)

static const vec no_elements = {0};

INLINE struct exp_shift shift_in_strip(int vertical, const struct exp_shift *shift, ptrdiff_t strip, int scaled)
{
    struct exp_shift result;
    result.subtract = in_strip(vertical, &shift->subtract, strip);
    result.magic = in_strip(vertical, &shift->magic, strip);
    if (scaled) {
        result.prescale = in_strip(vertical, &shift->prescale, strip);
        result.steps_per_unit = in_strip(vertical, &shift->steps_per_unit, strip);
        result.step_high = in_strip(vertical, &shift->step_high, strip);
        result.step_low = in_strip(vertical, &shift->step_low, strip);
        result.inverse = in_strip(vertical, &shift->inverse, strip);
    }
    return result;
}

/* What goes through the sum phase in one call: a vertical group's strip, or those of the rows
 * [first, end) of a horizontal one. */
struct sum_strips {
    int vertical, is_short;
    ptrdiff_t length; /* elements of a row */
    ptrdiff_t ahead;  /* reals from x to the row of the next group, for horizontal strips that are no copies */
    struct lines_ahead *lines; /* for vertical strips; NULL for none */
    /* Of a vertical strip: reals from an element of x, and of e, to the next one: LANES in scratch memory. */
    ptrdiff_t x_step, e_step;
    /* Where the chains of a vertical strip wait that comes in parts, and which part of it this is; NULL: all of it. */
    struct chain *chains;
    int is_first, is_last;
    ptrdiff_t first, end;
    real distance_scale; /* of DISTANCES: a power of two that keeps their sum finite */
    const real *x[LANES], *second; /* second: where there is one strip */
    real *e[LANES];
    const struct exp_shift *shift; /* of the group's frame, or its block's, as row_max */
    const vec *row_max;
};

/* One of them. */
struct sum_strip {
    ptrdiff_t length, ahead, x_step, e_step;
    const real *x, *second;
    real *e;
    struct exp_shift shift;
    vec row_max, distance_scale;
};

/* What the sum phase finds, for each lane's row. */
struct row_sums {
    struct pair total; /* of exponentials; without the largest ones where those are kept out */
    vec ties;          /* how many elements equal the max (their b, where weighted) */
    struct pair cost;  /* sum(t * (max - x)) over dense targets t, distance_scale in place of uniform ones;
                        * or sum(second * x) */
    struct pair mass;  /* sum(t) */
};

/* Field by field: of zeros in one initialiser GCC makes `rep stos`, which takes longer than all else between groups. */
INLINE void clear_sums(struct row_sums *sums)
{
    struct pair none = {splat(0), splat(0)};
    sums->total = sums->cost = sums->mass = none;
    sums->ties = none.high;
}

INLINE struct row_sums add_sums(struct row_sums a, struct row_sums b)
{
    return (struct row_sums){
        add_pairs(a.total, b.total),
        a.ties + b.ties,
        add_pairs(a.cost, b.cost),
        add_pairs(a.mass, b.mass),
    };
}

/* What becomes of each exponential; constants, so that each combination is its own loop. */
enum sum_mode {
    STORE = 1,         /* it is written, rounded, to `e` */
    KEEP_MAX_OUT = 2,  /* those of elements equal to the max are counted instead of added */
    SCALED = 4,        /* there is a temperature */
    TARGETS = 8,       /* `second` holds dense targets: their cost and mass are summed as well */
    WEIGHTED = 16,     /* `second` holds factors, 0 only where x is -inf */
    PRODUCTS = 32,     /* no exponentials: second * x is summed as `cost`, or second where x is NULL */
    DISTANCES = 64,    /* beside PRODUCTS: (max - x) * distance_scale instead */
    UNCLAMPED = 128,   /* see shifted_exp */
};

struct chain {
    vec sum, compensation;
    ptrdiff_t steps; /* and how many of them have been kept in each lane */
    ivec kept;
    vec weighted_ties;
    struct pair cost, mass;
};

INLINE void add_term(struct pair *sum, struct pair term)
{
    struct pair next = two_sum(sum->high, term.high);
    sum->high = next.high;
    sum->low += next.low + term.low;
}

/* sum += the exponential, not its rounded value: what rounding it and adding it lose is
 * collected in `compensation`, and not one rounding of an exponential reaches the total.
 *
 * `sum` starts at 2 * SUM_SCALE, at least as large as any exponential of the frame, so that
 * sum - next is exact (Fast2Sum): two additions more than a plain sum. */
INLINE vec add_exponential(struct chain *chain, struct exponential e)
{
    vec value = rounded(e);
    vec next = chain->sum + value;
    vec lost = (chain->sum - next) + e.scale;
    chain->compensation += fma_(e.scale, e.tail, lost);
    chain->sum = next;
    return value;
}

/* The same where the max is kept out: `kept` has the elements that differ from it. What is left may be
 * smaller than the max by any factor and is wanted to full relative precision, so the sum starts
 * at 0. Then sum - next is exact unless the term is larger than the sum; where it is, the sum's bits
 * below the term's last one are lost. As the sum doubles each time, that is less than an ulp of the
 * total even if it happens at every term (worst found: log_softmax 1.64 ulp, with TwoSum 1.27). */
INLINE void add_small_exponential(struct chain *chain, struct exponential e, lane_mask kept)
{
    /* The tail of an infinite max is NaN. */
    struct exponential kept_e = {(vec)only_integers(kept, (ivec)e.scale), only(kept, e.tail)};
    add_exponential(chain, kept_e);
}

/* The same, returning the exponential whether it is kept or not. */
INLINE vec add_and_return_small_exponential(struct chain *chain, struct exponential e, lane_mask kept)
{
    vec value = rounded(e);
    vec next = choose(kept, chain->sum + value, chain->sum);
    vec lost = (chain->sum - next) + e.scale;
    vec sum_of_lost = chain->compensation + fma_(e.scale, e.tail, lost);
    chain->compensation = choose(kept, sum_of_lost, chain->compensation);
    chain->sum = next;
    return value;
}

INLINE void product_step(struct chain *chain, const struct sum_strip *strip, ptrdiff_t at, lane_mask lanes, int whole,
                         int mode)
{
    if (mode & DISTANCES) {
        vec x = whole ? load(strip->x + at) : load_where(strip->x + at, lanes, 0);
        vec distance = fma_(-x, strip->distance_scale, strip->row_max * strip->distance_scale);
        add_term(&chain->cost, (struct pair){whole ? distance : only(lanes, distance), splat(0)});
        return;
    }
    vec second = whole ? load(strip->second + at) : load_where(strip->second + at, lanes, 0), other = splat(1);
    if (strip->x) other = whole ? load(strip->x + at) : load_where(strip->x + at, lanes, 0);
    add_term(&chain->cost, two_product(second, other));
}

/* A vector of elements, and what is left of them as arguments of the exponential. */
struct step {
    vec x;
    struct reduced argument;
};

/* The lanes are those that hold elements; `whole` is a constant: all of them do. */
INLINE struct step read_step(const struct sum_strip *strip, ptrdiff_t at, lane_mask lanes, int whole, int mode)
{
    const real absent = -(real)__builtin_inf();
    vec x = whole ? load(strip->x + at) : load_where(strip->x + at, lanes, absent);
    /* What is absent is to come out as 0. */
    return (struct step){x, reduce(x, &strip->shift, mode & SCALED, mode & UNCLAMPED && whole)};
}

INLINE void add_step(struct chain *chain, const struct sum_strip *strip, struct step step, ptrdiff_t at,
                     lane_mask lanes, int whole, int mode)
{
    vec second = no_elements;
    if (mode & (TARGETS | WEIGHTED))
        second = whole ? load(strip->second + at) : load_where(strip->second + at, lanes, 0);
    lane_mask kept = differ(step.x, strip->row_max);
    /* In a row of -inf alone what is absent equals the max. */
    if (!whole) kept |= ~lanes;
    struct exponential e = exp_of_reduced(step.argument, mode & UNCLAMPED && whole);
    vec value = no_elements;
    if (mode & WEIGHTED) {
        struct pair exact = as_pair(e);
        struct pair term = two_product(exact.high, second);
        term.low = fma_(exact.low, second, term.low);
        term.high = only(kept, term.high);
        term.low = only(kept, term.low);
        add_term(&chain->cost, term);
        value = exact.high;
    } else if (!(mode & KEEP_MAX_OUT)) {
        value = add_exponential(chain, e);
    } else if (mode & STORE) {
        value = add_and_return_small_exponential(chain, e, kept);
    } else {
        add_small_exponential(chain, e, kept);
    }
    if (mode & WEIGHTED) {
        const vec infinity = splat((real)__builtin_inf());
        /* b * inf keeps the signs of infinite terms apart. */
        vec unit = choose(equal(strip->row_max, infinity), second * infinity, second);
        chain->weighted_ties = choose(kept, chain->weighted_ties, chain->weighted_ties + unit);
    } else if (mode & KEEP_MAX_OUT) {
        chain->steps++;
        chain->kept = count_lanes(chain->kept, kept);
    }
    if (mode & TARGETS) {
        /* A target of 0 costs nothing, even where the distance is infinite. */
        vec distance = choose(equal(second, splat(0)), splat(0), strip->row_max - step.x);
        struct pair term = two_product(distance, second);
        /* An infinite product has no low part. */
        term.low = choose(equal(term.low, term.low), term.low, splat(0));
        add_term(&chain->cost, term);
        add_term(&chain->mass, (struct pair){second, splat(0)});
    }
    if (mode & STORE) {
        if (whole) store(strip->e + at, value);
        else store_where(strip->e + at, lanes, value);
    }
}

/* Of some of a vector's elements. */
INLINE void partial_step(struct chain *chain, const struct sum_strip *strip, ptrdiff_t at, lane_mask lanes, int mode)
{
    if (mode & PRODUCTS) product_step(chain, strip, at, lanes, 0, mode);
    else add_step(chain, strip, read_step(strip, at, lanes, 0, mode), at, lanes, 0, mode);
}

INLINE void whole_step(struct chain *chain, const struct sum_strip *strip, ptrdiff_t at, int mode)
{
    lane_mask all = first_lanes(LANES);
    if (mode & PRODUCTS) product_step(chain, strip, at, all, 1, mode);
    else add_step(chain, strip, read_step(strip, at, all, 1, mode), at, all, 1, mode);
}

INLINE struct chain new_chain(int mode)
{
    struct pair none = {splat(0), splat(0)};
    return (struct chain){splat(mode & KEEP_MAX_OUT ? 0 : 2 * SUM_SCALE), splat(0), 0, (ivec){0}, splat(0), none, none};
}

/* What the mode sums of it. */
INLINE void copy_chain(struct chain *to, const struct chain *from, int mode)
{
    to->sum = from->sum;
    to->compensation = from->compensation;
    if (mode & KEEP_MAX_OUT) {
        to->steps = from->steps;
        to->kept = from->kept;
    }
    if (mode & WEIGHTED) to->weighted_ties = from->weighted_ties;
    if (mode & (WEIGHTED | TARGETS | PRODUCTS)) to->cost = from->cost;
    if (mode & (TARGETS | PRODUCTS)) to->mass = from->mass;
}

INLINE struct pair sum_of_chain(vec sum, vec compensation, int mode)
{
    return two_sum(mode & KEEP_MAX_OUT ? sum : sum - splat(2 * SUM_SCALE), compensation);
}

INLINE vec ties_of_chain(struct chain chain, int mode)
{
    return mode & WEIGHTED ? chain.weighted_ties : __builtin_convertvector((integer)chain.steps - chain.kept, vec);
}

INLINE struct row_sums chain_total(struct chain chain, int mode)
{
    struct pair total = mode & WEIGHTED ? chain.cost : sum_of_chain(chain.sum, chain.compensation, mode);
    return (struct row_sums){total, ties_of_chain(chain, mode), chain.cost, chain.mass};
}

/* In the loops below a step is begun while the one before it is summed: together they are a longer chain of operations
 * than a processor looks ahead. The last step is followed by itself, unused. */

/* To the chain of a vertical strip what it takes from step `first` on, each `stride`-th. With each step the next of the
 * lines ahead is asked for, if there are any. */
INLINE struct chain with_vertical_steps(struct chain chain, const struct sum_strip *strip, ptrdiff_t first,
                                        ptrdiff_t stride, int mode, struct lines_ahead *lines)
{
    lane_mask all = first_lanes(LANES);
    if (mode & PRODUCTS) {
        for (ptrdiff_t i = first; i < strip->length; i += stride) {
            if (lines) prefetch_line(lines);
            whole_step(&chain, strip, i * LANES, mode);
        }
    } else if (first < strip->length) {
        struct step step = read_step(strip, first * strip->x_step, all, 1, mode);
        for (ptrdiff_t i = first; i < strip->length; i += stride) {
            ptrdiff_t following = i + stride < strip->length ? i + stride : i;
            struct step next = read_step(strip, following * strip->x_step, all, 1, mode);
            if (lines) prefetch_line(lines);
            add_step(&chain, strip, step, i * strip->e_step, all, 1, mode);
            step = next;
        }
    }
    return chain;
}

/* The chains of a horizontal strip over whole vectors from number i on, up to `end` at most, together with what is done
 * alongside, if anything; returns the number of the first real that is left. */
INLINE ptrdiff_t horizontal_chains(struct chain chains[], const struct sum_strip *strip, ptrdiff_t i, ptrdiff_t end,
                                   int mode, struct strip_alongside *alongside, struct writing writing)
{
    end = i + (end - i) / CHAINS * CHAINS;
    lane_mask all = first_lanes(LANES);
    if (mode & PRODUCTS) {
        for (; i < end; i += CHAINS)
            for (int c = 0; c < CHAIN_VECTORS; c++) whole_step(&chains[c], strip, i + c * LANES, mode);
        return i;
    }
    if (i == end) return i;
    struct step step = read_step(strip, i, all, 1, mode);
    for (; i < end; i += CHAINS) {
        /* CHAINS reals are a cache line. The sums leave the memory idle, the max would wait for it. */
        if (alongside) prefetch(alongside->next + alongside->read + READ_AHEAD);
        else prefetch(strip->x + i + strip->ahead);
        for (int c = 0; c < CHAIN_VECTORS; c++) {
            ptrdiff_t at = i + c * LANES, following = at + LANES < end ? at + LANES : at;
            struct step next = read_step(strip, following, all, 1, mode);
            if (alongside) read_alongside(alongside);
            /* Before this row's exponentials are stored: where rows lie a multiple of 4096 bytes apart, a load waits
             * for a store to the same place in another page (measured: 1.1 times as long). */
            if (alongside && writing.last != COPY) write_alongside(alongside, writing);
            add_step(&chains[c], strip, step, at, all, 1, mode);
            step = next;
        }
    }
    return i;
}

/* The totals of the CHAINS chains of a vertical strip. */
INLINE struct row_sums sum_of_chains(const struct chain chains[], int mode)
{
    int has_costs = mode & (TARGETS | PRODUCTS);
    struct pair totals[CHAINS], costs[CHAINS], masses[CHAINS];
    vec ties[CHAINS]; /* of weighted sums alone: others are whole numbers, whose order changes no bit */
    struct row_sums sums = {.ties = splat(0)};
    /* Once for a whole strip, in many functions: unrolled it would only make the library larger. */
#pragma GCC unroll 1
    for (ptrdiff_t c = 0; c < CHAINS; c++) {
        struct row_sums of_chain = chain_total(chains[c], mode);
        totals[c] = of_chain.total;
        if (mode & WEIGHTED) ties[c] = of_chain.ties;
        else sums.ties += of_chain.ties;
        if (has_costs) {
            costs[c] = of_chain.cost;
            masses[c] = of_chain.mass;
        }
    }
    for (ptrdiff_t half = CHAINS / 2; half > 0; half /= 2) {
#pragma GCC unroll 1
        for (ptrdiff_t c = 0; c < half; c++) {
            totals[c] = add_pairs(totals[c], totals[c + half]);
            if (mode & WEIGHTED) ties[c] += ties[c + half];
            if (has_costs) {
                costs[c] = add_pairs(costs[c], costs[c + half]);
                masses[c] = add_pairs(masses[c], masses[c + half]);
            }
        }
    }
    sums.total = totals[0];
    if (mode & WEIGHTED) sums.ties = ties[0];
    if (has_costs) {
        sums.cost = costs[0];
        sums.mass = masses[0];
    }
    return sums;
}

/* The one chain of a vertical strip in scratch memory. */
INLINE struct chain vertical_chain(struct sum_strip strip, int mode, struct lines_ahead *lines)
{
    strip.x_step = strip.e_step = LANES;
    return with_vertical_steps(new_chain(mode), &strip, 0, 1, mode, lines);
}

/* Of all its parts when this is the last one. */
INLINE struct row_sums vertical_sums(const struct sum_strips *strips, const struct sum_strip *strip, int mode)
{
    if (strips->is_short) return chain_total(vertical_chain(*strip, mode, strips->lines), mode);
    struct chain of_whole_strip[CHAINS], *chains = strips->chains ? strips->chains : of_whole_strip;
    int is_first = !strips->chains || strips->is_first, is_last = !strips->chains || strips->is_last;
    struct lines_ahead lines, *lines_or_none = strips->lines ? &lines : NULL;
    if (strips->lines) lines = *strips->lines;
    for (ptrdiff_t c = 0; c < CHAINS; c++) {
        struct chain chain = new_chain(mode);
        if (!is_first) copy_chain(&chain, &chains[c], mode);
        chain = with_vertical_steps(chain, strip, c, CHAINS, mode, lines_or_none);
        copy_chain(&chains[c], &chain, mode);
    }
    if (strips->lines) *strips->lines = lines;
    return is_last ? sum_of_chains(chains, mode) : (struct row_sums){0};
}

/* A single short row's one chain, of which a vertical group would use one lane: its exponentials a
 * vector at a time, and their sum element by element, in every lane. For the modes of SINGLE_ROW_MODES. */
#define SINGLE_ROW_MODES (STORE | KEEP_MAX_OUT | SCALED | UNCLAMPED)
INLINE struct row_sums short_horizontal_sums(const struct sum_strip *strip, int mode)
{
    real logits[SHORT_ROW], scales[SHORT_ROW], tails[SHORT_ROW]; /* where e is x, x is gone after the first loop */
    for (ptrdiff_t i = 0; i < strip->length; i += LANES) {
        ptrdiff_t lanes = strip->length - i < LANES ? strip->length - i : LANES;
        vec x = load_first(strip->x + i, lanes, -(real)__builtin_inf());
        struct exponential e = shifted_exp(x, &strip->shift, mode & SCALED, mode & UNCLAMPED && lanes == LANES);
        store(logits + i, x);
        store(scales + i, e.scale);
        store(tails + i, e.tail);
        if (mode & STORE) store_lanes(strip->e + i, lanes, rounded(e));
    }
    struct chain chain = new_chain(mode);
    for (ptrdiff_t i = 0; i < strip->length; i++) {
        struct exponential e = {splat(scales[i]), splat(tails[i])};
        if (mode & KEEP_MAX_OUT) {
            lane_mask kept = differ(splat(logits[i]), strip->row_max);
            add_small_exponential(&chain, e, kept);
            chain.steps++;
            chain.kept = count_lanes(chain.kept, kept);
        } else {
            add_exponential(&chain, e);
        }
    }
    return chain_total(chain, mode);
}

INLINE struct pair rotated(struct pair pair, ptrdiff_t count)
{
    return (struct pair){rotate(pair.high, count), rotate(pair.low, count)};
}

/* The totals of a horizontal strip's chains, CHAIN_VECTORS of them added up in each lane.
 *
 * What is absent before the first element and after the last one has an exponential of 0 and changes no bit of a
 * chain. So the vectors may begin before the row does, where they fill cache lines: the chains then lie in
 * other lanes until their end. */
INLINE struct row_sums horizontal_sums(const struct sum_strip *strip, int mode, struct strip_alongside *alongside,
                                       struct writing writing)
{
    struct chain chains[CHAIN_VECTORS];
    for (int c = 0; c < CHAIN_VECTORS; c++) chains[c] = new_chain(mode);
    int begins_early = CHAIN_VECTORS == 1 && strip->length >= ALIGNED_SUMS && !(mode & (TARGETS | WEIGHTED | PRODUCTS));
    ptrdiff_t head = begins_early ? until_aligned(mode & STORE ? strip->e : strip->x, strip->length) : 0;
    ptrdiff_t before = head ? LANES - head : 0;
    if (head) partial_step(&chains[0], strip, -before, ~first_lanes(before), mode);
    ptrdiff_t i = head;
    if (alongside) {
        ptrdiff_t whole = (strip->length - i) / LANES, shared = vectors_alongside(alongside, writing);
        ptrdiff_t end = i + (whole < shared ? whole : shared) * LANES;
        i = horizontal_chains(chains, strip, i, end, mode, alongside, writing);
        end_alongside(alongside, writing);
        for (; i + CHAINS <= strip->length; i += CHAINS)
            for (int c = 0; c < CHAIN_VECTORS; c++) whole_step(&chains[c], strip, i + c * LANES, mode);
    } else {
        i = horizontal_chains(chains, strip, i, strip->length, mode, NULL, writing);
    }
    for (int c = 0; c < CHAIN_VECTORS; c++) {
        ptrdiff_t left = strip->length - i - c * LANES;
        if (left >= LANES) whole_step(&chains[c], strip, i + c * LANES, mode);
        else if (left > 0) partial_step(&chains[c], strip, i + c * LANES, first_lanes(left), mode);
    }
    struct row_sums totals[CHAIN_VECTORS];
    for (int c = 0; c < CHAIN_VECTORS; c++) totals[c] = chain_total(chains[c], mode);
    for (int half = CHAIN_VECTORS / 2; half > 0; half /= 2)
        for (int c = 0; c < half; c++) totals[c] = add_sums(totals[c], totals[c + half]);
    if (before) {
        totals[0].total = rotated(totals[0].total, before);
        totals[0].ties = rotate(totals[0].ties, before);
    }
    return totals[0];
}

/* A copy of what concerns one strip, where the compiler sees that no store changes it. */
INLINE struct sum_strip strip_of(const struct sum_strips *strips, ptrdiff_t s, int mode)
{
    struct sum_strip strip;
    strip.length = strips->length;
    strip.ahead = strips->ahead;
    strip.x_step = strips->x_step;
    strip.e_step = strips->e_step;
    strip.x = strips->x[s];
    if (mode & STORE) strip.e = strips->e[s];
    if (mode & DISTANCES) strip.distance_scale = splat(strips->distance_scale);
    else if (mode & (TARGETS | WEIGHTED | PRODUCTS)) strip.second = strips->second;
    if (!(mode & PRODUCTS)) strip.shift = shift_in_strip(strips->vertical, strips->shift, s, mode & SCALED);
    strip.row_max = mode & (KEEP_MAX_OUT | DISTANCES) ? in_strip(strips->vertical, strips->row_max, s) : no_elements;
    return strip;
}

/* Of every strip, each row's in its place; what the mode does not sum is left alone. */
INLINE void sums_of_strips(const struct sum_strips *strips, struct row_sums sums[], int mode)
{
    for (ptrdiff_t s = strips->first; s < strips->end; s++) {
        struct sum_strip strip = strip_of(strips, s, mode);
        struct row_sums found;
        if (strips->vertical) found = vertical_sums(strips, &strip, mode);
        else if (strips->is_short && !(mode & ~SINGLE_ROW_MODES)) found = short_horizontal_sums(&strip, mode);
        else found = horizontal_sums(&strip, mode, NULL, no_writing);
        sums[s].total = found.total;
        if (mode & KEEP_MAX_OUT) sums[s].ties = found.ties;
        if (mode & (TARGETS | PRODUCTS)) {
            sums[s].cost = found.cost;
            sums[s].mass = found.mass;
        }
    }
}

typedef void sums_function(const struct sum_strips *strips, struct row_sums sums[]);

/* The same of horizontal strips of SHORT_ROW elements or more, without a second operand. */
INLINE void sums_with_alongside(const struct sum_strips *strips, struct row_sums sums[],
                                const struct strips_alongside *alongside, int mode, struct writing writing)
{
    for (ptrdiff_t s = strips->first; s < strips->end; s++) {
        struct sum_strip strip = strip_of(strips, s, mode);
        struct strip_alongside strip_alongside = begin_alongside(alongside, s, strip.length, writing);
        struct row_sums found = horizontal_sums(&strip, mode, &strip_alongside, writing);
        sums[s].total = found.total;
        if (mode & KEEP_MAX_OUT) sums[s].ties = found.ties;
        alongside->extremes[s] = strip_alongside.extremes;
    }
}

INLINE struct pair first_pairs(struct pair a, struct pair b, ptrdiff_t size)
{
    return (struct pair){first_runs(a.high, b.high, size), first_runs(a.low, b.low, size)};
}

INLINE struct pair second_pairs(struct pair a, struct pair b, ptrdiff_t size)
{
    return (struct pair){second_runs(a.high, b.high, size), second_runs(a.low, b.low, size)};
}

INLINE vec add(vec a, vec b) { return a + b; }

/* The field of each row's sums, the missing ones like the first, in a lane for each. `most` is a constant. */
#define DEFINE_ACROSS_LANES(name, type, first_parts, second_parts, combine)                        \
    INLINE type name(const type *field, ptrdiff_t count, ptrdiff_t most)                           \
    {                                                                                              \
        type of_row[LANES];                                                                        \
        for (ptrdiff_t r = 0; r < most; r++) {                                                     \
            ptrdiff_t row = r < count ? r : 0;                                                     \
            of_row[r] = *(const type *)((const char *)field + row * (ptrdiff_t)sizeof(struct row_sums)); \
        }                                                                                          \
        FOLD_LANES(type, of_row, most, first_parts, second_parts, combine)                         \
        return of_row[0];                                                                          \
    }
DEFINE_ACROSS_LANES(sum_across_lanes, vec, first_runs, second_runs, add)
DEFINE_ACROSS_LANES(pair_across_lanes, struct pair, first_pairs, second_pairs, add_pairs)

NOT_INLINE void sums_across_lanes(const struct row_sums of_row[], ptrdiff_t count, int with_ties, int with_costs,
                                  struct row_sums *sums)
{
#define ACROSS(rows)                                                                               \
    sums->total = pair_across_lanes(&of_row->total, count, rows);                                  \
    if (with_ties) sums->ties = sum_across_lanes(&of_row->ties, count, rows);
    WITH_CONSTANT_ROWS(count, ACROSS);
#undef ACROSS
    if (!with_costs) return;
    sums->cost = pair_across_lanes(&of_row->cost, count, LANES);
    sums->mass = pair_across_lanes(&of_row->mass, count, LANES);
}

#endif
