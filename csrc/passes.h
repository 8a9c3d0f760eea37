/* The loops over a strip: reals in a row, a whole number of vectors long in a vertical
 * group (step i holds element i of every lane's row), any length in a horizontal one.
 *
 * The order of a row's sum. It depends on n alone, so that every group, instruction set,
 * layout and thread count gives the same bits:
 *   n < SHORT_ROW: one chain, elements 0, 1, 2, ...
 *   otherwise, in each block: CHAINS chains, chain c taking elements c, c + CHAINS, ...;
 *   their totals are added in halves (c with c + CHAINS/2, and so on), then block by block.
 * A horizontal group keeps CHAINS chains in CHAINS / LANES vectors; a vertical one runs
 * them one after the other. */
#ifndef FASTSOFTMAX_PASSES_H
#define FASTSOFTMAX_PASSES_H

#include "last_step.h"
#include "vector_exp.h"

#define CHAINS ((ptrdiff_t)(512 / REAL_BITS))
#define CHAIN_VECTORS (CHAINS / LANES)
/* Reals of a row from which it pays to begin with less than a vector of them and have the others aligned: where that
 * takes a step of the sum more, and where it takes a load or a store more (measured with 200 to 1000). */
#define ALIGNED_SUMS (32 * LANES)
#define ALIGNED_COPIES (4 * LANES)
#define SHORT_ROW ((ptrdiff_t)(REAL_BITS == 32 ? 128 : 64))
/* Rows below this length are transposed where there are enough of them, so that one vector holds one element of many:
 * the work across lanes would cost more. Measured, softmax transposed against not: 0.8 of the time with 130 float32,
 * 0.9 with 200, 1.0 with 256; with float64 0.85 at 100, 0.9 at 130, 0.97 at 190. */
#define TRANSPOSED_ROW ((ptrdiff_t)(REAL_BITS == 32 ? 256 : 192))
/* Reals of a row from which it pays to begin with less than a vector of them and have the others aligned: where that
 * takes a step of the sum more, and where it takes a load or a store more (measured with 200 to 1000). */
#define ALIGNED_SUMS (32 * LANES)
#define ALIGNED_COPIES (4 * LANES)
#define SHORT_ROW ((ptrdiff_t)(REAL_BITS == 32 ? 128 : 64))
/* Rows below this length are transposed where there are enough of them, so that one vector holds one element of many:
 * the work across lanes would cost more. Measured, softmax transposed against not: 0.85 of the time with 130 float32,
 * 0.87 with 200, 0.94 with 300, 1.0 with 400. */

/* Beyond it e**x is infinite; and no lower max is needed. */
#define EXP_LIMIT ((real)0.4 * LARGE_MAX)

static const vec no_elements = {0};

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

INLINE struct exp_shift shift_in_strip(int vertical, const struct exp_shift *shift, ptrdiff_t strip, int scaled)
{
    struct exp_shift result;
    result.subtract = in_strip(vertical, &shift->subtract, strip);
    result.magic = in_strip(vertical, &shift->magic, strip);
    result.lowest = in_strip(vertical, &shift->lowest, strip);
    if (scaled) {
        result.prescale = in_strip(vertical, &shift->prescale, strip);
        result.inverse_high = in_strip(vertical, &shift->inverse_high, strip);
        result.inverse_low = in_strip(vertical, &shift->inverse_low, strip);
        result.lowest_x = in_strip(vertical, &shift->lowest_x, strip);
    }
    return result;
}

/* What goes through the sum phase in one call: a vertical group's strip, or those of the rows
 * [first, end) of a horizontal one. */
struct sum_strips {
    int vertical, is_short;
    ptrdiff_t length; /* elements of a row */
    ptrdiff_t ahead;  /* reals from x to the row of the next group, for horizontal strips that are no copies */
    ptrdiff_t first, end;
    const real *x[LANES], *second; /* second: where there is one strip */
    real *e[LANES];
    const struct exp_shift *shift; /* of the group, as row_max */
    const vec *row_max;
};

/* One of them. */
struct sum_strip {
    ptrdiff_t length, ahead;
    const real *x, *second;
    real *e;
    struct exp_shift shift;
    vec row_max;
};

/* step(i, lanes, ...) for every vector of a strip, with `lanes` a constant, and for its tail. */
#define EACH_VECTOR(size, step, ...)                                                               \
    do {                                                                                           \
        ptrdiff_t i_ = 0;                                                                          \
        for (; i_ + LANES <= (size); i_ += LANES) step(i_, LANES, __VA_ARGS__);                    \
        if (i_ < (size)) step(i_, (size)-i_, __VA_ARGS__);                                         \
    } while (0)

/* What the sum phase finds, for each lane's row. */
struct row_sums {
    struct pair total; /* of exponentials; without the largest ones where those are kept out */
    vec ties;          /* how many elements equal the max (their b, where weighted) */
    struct pair cost;  /* sum(t * (max - x)) over dense targets t; or sum(second * x) */
    struct pair mass;  /* sum(t) */
};

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
    UNCLAMPED = 64,    /* see shifted_exp */
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
 * `sum` starts at 2 * SUM_SCALE, at least as large as any exponential of the row, so that
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

INLINE void product_step(struct chain *chain, const struct sum_strip *strip, ptrdiff_t at, lane_mask lanes, int whole)
{
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
    /* What is absent is to be clamped. */
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
    struct exponential e = exp_of_reduced(step.argument);
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
    if (mode & PRODUCTS) product_step(chain, strip, at, lanes, 0);
    else add_step(chain, strip, read_step(strip, at, lanes, 0, mode), at, lanes, 0, mode);
}

INLINE void whole_step(struct chain *chain, const struct sum_strip *strip, ptrdiff_t at, int mode)
{
    lane_mask all = first_lanes(LANES);
    if (mode & PRODUCTS) product_step(chain, strip, at, all, 1);
    else add_step(chain, strip, read_step(strip, at, all, 1, mode), at, all, 1, mode);
}

INLINE struct chain new_chain(int mode)
{
    struct pair none = {splat(0), splat(0)};
    return (struct chain){splat(mode & KEEP_MAX_OUT ? 0 : 2 * SUM_SCALE), splat(0), 0, (ivec){0}, splat(0), none, none};
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

/* The chain of a vertical strip that starts at step `first` and takes each `stride`-th. */
INLINE struct chain vertical_chain(const struct sum_strip *strip, ptrdiff_t first, ptrdiff_t stride, int mode)
{
    struct chain chain = new_chain(mode);
    lane_mask all = first_lanes(LANES);
    if (mode & PRODUCTS) {
        for (ptrdiff_t i = first; i < strip->length; i += stride) whole_step(&chain, strip, i * LANES, mode);
    } else if (first < strip->length) {
        struct step step = read_step(strip, first * LANES, all, 1, mode);
        for (ptrdiff_t i = first; i < strip->length; i += stride) {
            ptrdiff_t following = i + stride < strip->length ? i + stride : i;
            struct step next = read_step(strip, following * LANES, all, 1, mode);
            add_step(&chain, strip, step, i * LANES, all, 1, mode);
            step = next;
        }
    }
    return chain;
}

/* The chains of a horizontal strip over whole vectors from number i on; returns the number of the first real that is
 * left. */
INLINE ptrdiff_t horizontal_chains(struct chain chains[], const struct sum_strip *strip, ptrdiff_t i, int mode)
{
    ptrdiff_t end = i + (strip->length - i) / CHAINS * CHAINS;
    lane_mask all = first_lanes(LANES);
    if (mode & PRODUCTS) {
        for (; i < end; i += CHAINS)
            for (int c = 0; c < CHAIN_VECTORS; c++) whole_step(&chains[c], strip, i + c * LANES, mode);
        return i;
    }
    if (i == end) return i;
    struct step step = read_step(strip, i, all, 1, mode);
    for (; i < end; i += CHAINS) {
        /* CHAINS reals are a line of memory. The sums leave the memory idle, the max would wait for it. */
        prefetch(strip->x + i + strip->ahead);
        for (int c = 0; c < CHAIN_VECTORS; c++) {
            ptrdiff_t at = i + c * LANES, following = at + LANES < end ? at + LANES : at;
            struct step next = read_step(strip, following, all, 1, mode);
            add_step(&chains[c], strip, step, at, all, 1, mode);
            step = next;
        }
    }
    return i;
}

INLINE struct row_sums vertical_sums(const struct sum_strip *strip, int is_short, int mode)
{
    if (is_short) return chain_total(vertical_chain(strip, 0, 1, mode), mode);
    int has_costs = mode & (TARGETS | PRODUCTS);
    struct pair totals[CHAINS], costs[CHAINS], masses[CHAINS];
    vec ties[CHAINS]; /* where they are whole numbers any order will do */
    struct row_sums sums = {.ties = splat(0)};
    for (ptrdiff_t c = 0; c < CHAINS; c++) {
        struct row_sums of_chain = chain_total(vertical_chain(strip, c, CHAINS, mode), mode);
        totals[c] = of_chain.total;
        if (mode & WEIGHTED) ties[c] = of_chain.ties;
        else sums.ties += of_chain.ties;
        if (has_costs) {
            costs[c] = of_chain.cost;
            masses[c] = of_chain.mass;
        }
    }
    for (ptrdiff_t half = CHAINS / 2; half > 0; half /= 2) {
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
 * chain. So the vectors may begin before the row does, where they fill lines of memory: the chains then lie in
 * other lanes until their end. */
INLINE struct row_sums horizontal_sums(const struct sum_strip *strip, int mode)
{
    struct chain chains[CHAIN_VECTORS];
    for (int c = 0; c < CHAIN_VECTORS; c++) chains[c] = new_chain(mode);
    int begins_early = CHAIN_VECTORS == 1 && strip->length >= ALIGNED_SUMS && !(mode & (TARGETS | WEIGHTED | PRODUCTS));
    ptrdiff_t head = begins_early ? until_aligned(mode & STORE ? strip->e : strip->x, strip->length) : 0;
    ptrdiff_t before = head ? LANES - head : 0;
    if (head) partial_step(&chains[0], strip, -before, ~first_lanes(before), mode);
    ptrdiff_t i = horizontal_chains(chains, strip, head, mode);
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

/* Of every strip, each row's in its place; what the mode does not sum is left alone. */
INLINE void sums_of_strips(const struct sum_strips *strips, struct row_sums sums[], int mode)
{
    for (ptrdiff_t s = strips->first; s < strips->end; s++) {
        struct sum_strip strip; /* a copy, where the compiler sees that no store changes it */
        strip.length = strips->length;
        strip.ahead = strips->ahead;
        strip.x = strips->x[s];
        if (mode & STORE) strip.e = strips->e[s];
        if (mode & (TARGETS | WEIGHTED | PRODUCTS)) strip.second = strips->second;
        if (!(mode & PRODUCTS)) strip.shift = shift_in_strip(strips->vertical, strips->shift, s, mode & SCALED);
        strip.row_max = mode & (KEEP_MAX_OUT) ? in_strip(strips->vertical, strips->row_max, s) : no_elements;
        struct row_sums found;
        if (strips->vertical) found = vertical_sums(&strip, strips->is_short, mode);
        else if (strips->is_short && !(mode & ~SINGLE_ROW_MODES)) found = short_horizontal_sums(&strip, mode);
        else found = horizontal_sums(&strip, mode);
        sums[s].total = found.total;
        if (mode & KEEP_MAX_OUT) sums[s].ties = found.ties;
        if (mode & (TARGETS | PRODUCTS)) {
            sums[s].cost = found.cost;
            sums[s].mass = found.mass;
        }
    }
}

/* ---- From the lanes of each horizontal strip to a lane for each row ----------------------- */

/* of_row[0] becomes what the lanes of each row's vectors combine to, row r's in lane r. They
 * are combined in halves, as vertical_sums adds its chains; at every step two vectors become
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
        for (ptrdiff_t r = 0; r < most; r++)                                                       \
            of_row[r] = *(const type *)((const char *)field + (r < count ? r : 0) * (ptrdiff_t)sizeof(struct row_sums)); \
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
    if (with_ties) sums->ties = sum_across_lanes(&of_row->ties, count, rows);                      \
    if (with_costs) {                                                                              \
        sums->cost = pair_across_lanes(&of_row->cost, count, rows);                                \
        sums->mass = pair_across_lanes(&of_row->mass, count, rows);                                \
    }
    WITH_CONSTANT_ROWS(count, ACROSS);
#undef ACROSS
}

/* The largest element, and one that no element is below, if it is negative (see lower_if_negative). NaN may be passed
 * over: it reaches every result through the sum. */
struct extremes {
    vec max, low;
};

INLINE struct extremes join(struct extremes a, struct extremes b)
{
    return (struct extremes){max(a.max, b.max), lower_if_negative(a.low, b.low)};
}

INLINE struct extremes first_extremes(struct extremes a, struct extremes b, ptrdiff_t size)
{
    return (struct extremes){first_runs(a.max, b.max, size), first_runs(a.low, b.low, size)};
}

INLINE struct extremes second_extremes(struct extremes a, struct extremes b, ptrdiff_t size)
{
    return (struct extremes){second_runs(a.max, b.max, size), second_runs(a.low, b.low, size)};
}

NOT_INLINE struct extremes extremes_across_lanes(struct extremes of_row[LANES], ptrdiff_t count)
{
#define FOLD(rows)                                                                                 \
    for (ptrdiff_t r = count; r < (rows); r++) of_row[r] = of_row[0];                              \
    FOLD_LANES(struct extremes, of_row, rows, first_extremes, second_extremes, join)
    WITH_CONSTANT_ROWS(count, FOLD);
#undef FOLD
    return of_row[0];
}

INLINE struct extremes no_extremes(void)
{
    return (struct extremes){splat(-(real)__builtin_inf()), splat(0)};
}

INLINE struct extremes with_elements(struct extremes so_far, vec elements)
{
    return (struct extremes){max(elements, so_far.max), lower_if_negative(elements, so_far.low)};
}

/* Those of each lane. The first and the last vector may overlap others, which changes nothing. */
INLINE struct extremes extremes_of_strip(const real *x, ptrdiff_t size)
{
    /* Four independent chains: one would wait for each max in turn. */
    struct extremes a = no_extremes(), b = a, c = a, d = a;
    if (size < LANES) {
        a.max = load_first(x, size, -(real)__builtin_inf());
        a.low = load_first(x, size, 0);
        return a;
    }
    c = with_elements(c, load(x));
    d = with_elements(d, load(x + size - LANES));
    ptrdiff_t i = size >= ALIGNED_SUMS ? until_aligned(x, size) : 0;
    for (; i + 4 * LANES <= size; i += 4 * LANES) {
        a = with_elements(a, load(x + i));
        b = with_elements(b, load(x + i + LANES));
        c = with_elements(c, load(x + i + 2 * LANES));
        d = with_elements(d, load(x + i + 3 * LANES));
    }
    for (; i + LANES <= size; i += LANES) a = with_elements(a, load(x + i));
    return join(join(a, b), join(c, d));
}

/* out = value_of(from, ...), which may be the same memory. Vectors are aligned in out but for the first and the last one,
 * which overlap others and are read before these are written: a load of what lies beside a store under a mask has to
 * wait for it (25 cycles on Zen 4), and the next row begins there. */
#define WRITE_VALUES(size, value_of, from, out, ...)                                               \
    do {                                                                                           \
        if ((size) < LANES) {                                                                      \
            store_first(out, size, value_of(load_first(from, size, 0), __VA_ARGS__));              \
            break;                                                                                 \
        }                                                                                          \
        ptrdiff_t head_ = (size) >= ALIGNED_COPIES ? until_aligned(out, size) : 0, i_ = head_;                            \
        vec first_ = value_of(load(from), __VA_ARGS__);                                            \
        vec last_ = value_of(load((from) + (size)-LANES), __VA_ARGS__);                            \
        for (; i_ + LANES <= (size); i_ += LANES) store((out) + i_, value_of(load((from) + i_), __VA_ARGS__)); \
        if (head_) store(out, first_);                                                             \
        if (i_ < (size)) store((out) + (size)-LANES, last_);                                       \
    } while (0)

/* The same past the caches. */
#define STREAM_VALUES(size, value_of, from, out, ...)                                              \
    do {                                                                                           \
        ptrdiff_t i_ = until_aligned(out, size);                                                   \
        if (i_) stream_first(out, i_, value_of(load_first(from, i_, 0), __VA_ARGS__));             \
        for (; i_ + LANES <= (size); i_ += LANES) stream((out) + i_, value_of(load((from) + i_), __VA_ARGS__)); \
        if (i_ < (size))                                                                           \
            stream_first((out) + i_, (size)-i_, value_of(load_first((from) + i_, (size)-i_, 0), __VA_ARGS__)); \
    } while (0)

/* out = e * factor */
NOT_INLINE void write_scaled(const real *e, real *out, ptrdiff_t size, struct pair factor)
{
    WRITE_VALUES(size, scaled, e, out, factor);
}

NOT_INLINE void stream_scaled(const real *e, real *out, ptrdiff_t size, struct pair factor)
{
    STREAM_VALUES(size, scaled, e, out, factor);
}

INLINE void certain_step(ptrdiff_t i, ptrdiff_t lanes, real *out, vec bound)
{
    store_lanes(out + i, lanes, certain_or(load_lanes(out + i, lanes), bound));
}

/* out = e * factor - scale * targets */
INLINE void gradient_step(ptrdiff_t i, ptrdiff_t lanes, const real *e, const real *targets, real *out,
                          struct pair factor, struct pair scale)
{
    vec value = load_lanes(e + i, lanes), target = load_lanes(targets + i, lanes);
    struct pair step = two_product(scale.high, target);
    step.low = fma_(scale.low, target, step.low);
    store_lanes(out + i, lanes, fma_(value, factor.high, -step.high) + fma_(value, factor.low, -step.low));
}

/* (x - max) / T; in halves where the quotient may be finite though the difference is not. */
INLINE vec scaled_distance(vec x, vec row_max, vec temperature)
{
    vec scale = choose(less(splat(1), temperature), splat((real)0.5), splat(1));
    return (x * scale - row_max * scale) / (temperature * scale);
}

/* out = (x - max) / T - log_sum */
INLINE void scaled_log_step(ptrdiff_t i, ptrdiff_t lanes, const real *x, real *out, vec row_max, vec log_sum,
                            vec temperature)
{
    store_lanes(out + i, lanes, scaled_distance(load_lanes(x + i, lanes), row_max, temperature) - log_sum);
}

/* out = p * (g - dot), as p*g - p*dot: rounded no more than the larger of these. */
INLINE void vjp_step(ptrdiff_t i, ptrdiff_t lanes, const real *p, const real *g, real *out, struct pair dot)
{
    vec probability = load_lanes(p + i, lanes);
    struct pair product = two_product(probability, dot.high);
    product.low = fma_(probability, dot.low, product.low);
    store_lanes(out + i, lanes, fma_(probability, load_lanes(g + i, lanes), -product.high) - product.low);
}

/* out = g - e**x * total, where the exponential comes times 2**(SUM_EXPONENT - N): the power
 * is taken back in two exact halves, so that it neither overflows nor underflows by itself. */
INLINE void log_vjp_step(ptrdiff_t i, ptrdiff_t lanes, const real *x, const real *g, real *out,
                         const struct exp_shift *shift, vec half_power, vec other_half, struct pair total)
{
    vec logp = min(splat(EXP_LIMIT), load_lanes(x + i, lanes));
    vec p = rounded(shifted_exp(logp, shift, 0, 0)) * half_power * other_half;
    store_lanes(out + i, lanes, fma_(-p, total.high, load_lanes(g + i, lanes)) - p * total.low);
}

/* gradient = (p - y) * weight, hessian = max(scale * p * (1 - p), least), scale = factor * weight; y NULL: 0.
 * p goes into the Hessian as the unrounded quotient of e and the sum. */
INLINE void grad_hess_step(ptrdiff_t i, ptrdiff_t lanes, const real *e, const real *y, real *gradient, real *hessian,
                           struct pair factor, vec weight, struct pair scale, vec least)
{
    vec value = load_lanes(e + i, lanes), zero = splat(0);
    lane_mask ignored = equal(weight, zero);
    struct pair p = two_product(value, factor.high);
    p.low = fma_(value, factor.low, p.low);
    p = fast_two_sum(p.high, p.low);
    vec g = (p.high - (y ? load_lanes(y + i, lanes) : zero)) * weight;
    struct pair others = fast_two_sum(splat(1), -p.high);
    others.low -= p.low;
    struct pair h = multiply_pairs(p, others);
    h.low = fma_(h.low, scale.high, h.high * scale.low);
    vec result = fma_(h.high, scale.high, h.low);
    store_lanes(gradient + i, lanes, choose(ignored, zero, g));
    store_lanes(hessian + i, lanes, max(least, choose(ignored, zero, result))); /* a NaN stays one */
}

/* out = 0 in the lanes of ignored rows */
INLINE void clear_step(ptrdiff_t i, ptrdiff_t lanes, real *out, lane_mask ignored)
{
    store_lanes(out + i, lanes, choose(ignored, splat(0), load_lanes(out + i, lanes)));
}

/* kept = x, but -inf where b is 0 */
INLINE void drop_zeros_step(ptrdiff_t i, ptrdiff_t lanes, const real *x, const real *b, real *kept)
{
    lane_mask absent = equal(load_lanes(b + i, lanes), splat(0));
    store_lanes(kept + i, lanes, choose(absent, splat(-(real)__builtin_inf()), load_lanes(x + i, lanes)));
}

#endif
