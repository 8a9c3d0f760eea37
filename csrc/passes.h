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
/* Shorter rows, unless there is only one, are transposed, so that one vector holds one element of many rows: below
 * this length the work across lanes would cost more than the transposition (measured). */
#define SHORT_ROW ((ptrdiff_t)(REAL_BITS == 32 ? 128 : 64))

/* Beyond it e**x is infinite; and no lower max is needed. */
#define EXP_LIMIT ((real)0.4 * LARGE_MAX)

static const vec no_elements = {0};

/* One strip on its way through the sum phase. */
struct sum_strip {
    int vertical, is_short;
    ptrdiff_t length; /* elements of a row */
    ptrdiff_t ahead;  /* reals from x to the row of the next group, for a horizontal strip that is no copy */
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
    vec sum, compensation, ties;
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
INLINE vec add_small_exponential(struct chain *chain, struct exponential e, lane_mask kept)
{
    vec value = rounded(e);
    vec next = choose(kept, chain->sum + value, chain->sum);
    vec lost = (chain->sum - next) + e.scale;
    vec sum_of_lost = chain->compensation + fma_(e.scale, e.tail, lost);
    chain->compensation = choose(kept, sum_of_lost, chain->compensation);
    chain->sum = next;
    return value;
}

INLINE void chain_step(struct chain *chain, const struct sum_strip *strip, ptrdiff_t at, ptrdiff_t lanes, int mode)
{
    int needs_second = mode & (TARGETS | WEIGHTED | PRODUCTS);
    vec second = needs_second ? load_lanes(strip->second + at, lanes) : no_elements;
    if (mode & PRODUCTS) {
        vec other = strip->x ? load_lanes(strip->x + at, lanes) : splat(1);
        add_term(&chain->cost, two_product(second, other));
        return;
    }
    vec x = lanes == LANES ? load(strip->x + at) : load_first(strip->x + at, lanes, -(real)__builtin_inf());
    lane_mask is_max = equal(x, strip->row_max);
    /* The -inf in a tail's padding is to be clamped. */
    int unclamped = mode & UNCLAMPED && lanes == LANES;
    struct exponential e = shifted_exp(x, &strip->shift, mode & SCALED, unclamped);
    vec value;
    if (mode & WEIGHTED) {
        struct pair exact = as_pair(e);
        struct pair term = two_product(exact.high, second);
        term.low = fma_(exact.low, second, term.low);
        term.high = choose(is_max, splat(0), term.high);
        term.low = choose(is_max, splat(0), term.low);
        add_term(&chain->cost, term);
        value = exact.high;
    } else {
        value = mode & KEEP_MAX_OUT ? add_small_exponential(chain, e, ~is_max) : add_exponential(chain, e);
    }
    if (mode & KEEP_MAX_OUT) {
        const vec infinity = splat((real)__builtin_inf());
        vec unit = splat(1);
        /* b * inf keeps the signs of infinite terms apart. */
        if (mode & WEIGHTED) unit = choose(equal(strip->row_max, infinity), second * infinity, second);
        /* In a row of -inf alone the padding of a tail equals the max. */
        if (lanes < LANES) is_max &= first_lanes(lanes);
        chain->ties = choose(is_max, chain->ties + unit, chain->ties);
    }
    if (mode & TARGETS) {
        /* A target of 0 costs nothing, even where the distance is infinite. */
        vec distance = choose(equal(second, splat(0)), splat(0), strip->row_max - x);
        struct pair term = two_product(distance, second);
        /* An infinite product has no low part. */
        term.low = choose(equal(term.low, term.low), term.low, splat(0));
        add_term(&chain->cost, term);
        add_term(&chain->mass, (struct pair){second, splat(0)});
    }
    if (mode & STORE) store_lanes(strip->e + at, lanes, value);
}

INLINE struct chain new_chain(int mode)
{
    struct pair none = {splat(0), splat(0)};
    return (struct chain){splat(mode & KEEP_MAX_OUT ? 0 : 2 * SUM_SCALE), splat(0), splat(0), none, none};
}

INLINE struct pair sum_of_chain(vec sum, vec compensation, int mode)
{
    return two_sum(mode & KEEP_MAX_OUT ? sum : sum - splat(2 * SUM_SCALE), compensation);
}

INLINE struct row_sums chain_total(struct chain chain, int mode)
{
    struct pair total = mode & WEIGHTED ? chain.cost : sum_of_chain(chain.sum, chain.compensation, mode);
    return (struct row_sums){total, chain.ties, chain.cost, chain.mass};
}

/* The chain of a vertical strip that starts at step `first` and takes each `stride`-th. */
INLINE struct chain vertical_chain(const struct sum_strip *strip, ptrdiff_t first, ptrdiff_t stride, int mode)
{
    struct chain chain = new_chain(mode);
    for (ptrdiff_t i = first; i < strip->length; i += stride) chain_step(&chain, strip, i * LANES, LANES, mode);
    return chain;
}

INLINE struct row_sums vertical_sums(const struct sum_strip *strip_in, int mode)
{
    struct sum_strip strip = *strip_in; /* where the compiler sees that no store changes it */
    if (strip.is_short) return chain_total(vertical_chain(&strip, 0, 1, mode), mode);
    struct row_sums totals[CHAINS];
    for (ptrdiff_t c = 0; c < CHAINS; c++) totals[c] = chain_total(vertical_chain(&strip, c, CHAINS, mode), mode);
    for (ptrdiff_t half = CHAINS / 2; half > 0; half /= 2)
        for (ptrdiff_t c = 0; c < half; c++) totals[c] = add_sums(totals[c], totals[c + half]);
    return totals[0];
}

/* A single short row's one chain, of which a vertical group would use one lane: its exponentials a
 * vector at a time, and their sum element by element, in every lane. For the modes of SINGLE_ROW_MODES. */
#define SINGLE_ROW_MODES (STORE | KEEP_MAX_OUT | SCALED | UNCLAMPED)
INLINE struct row_sums short_horizontal_sums(const struct sum_strip *strip_in, int mode)
{
    struct sum_strip strip = *strip_in;
    real logits[SHORT_ROW], scales[SHORT_ROW], tails[SHORT_ROW]; /* where e is x, x is gone after the first loop */
    for (ptrdiff_t i = 0; i < strip.length; i += LANES) {
        ptrdiff_t lanes = strip.length - i < LANES ? strip.length - i : LANES;
        vec x = load_first(strip.x + i, lanes, -(real)__builtin_inf());
        struct exponential e = shifted_exp(x, &strip.shift, mode & SCALED, mode & UNCLAMPED && lanes == LANES);
        store(logits + i, x);
        store(scales + i, e.scale);
        store(tails + i, e.tail);
        if (mode & STORE) store_lanes(strip.e + i, lanes, rounded(e));
    }
    struct chain chain = new_chain(mode);
    for (ptrdiff_t i = 0; i < strip.length; i++) {
        struct exponential e = {splat(scales[i]), splat(tails[i])};
        if (mode & KEEP_MAX_OUT) {
            lane_mask is_max = equal(splat(logits[i]), strip.row_max);
            add_small_exponential(&chain, e, ~is_max);
            chain.ties = choose(is_max, chain.ties + splat(1), chain.ties);
        } else {
            add_exponential(&chain, e);
        }
    }
    return chain_total(chain, mode);
}

/* The totals of a horizontal strip's chains, CHAIN_VECTORS of them added up in each lane. */
INLINE struct row_sums horizontal_sums(const struct sum_strip *strip_in, int mode)
{
    struct sum_strip strip = *strip_in;
    if (strip.is_short && !(mode & ~SINGLE_ROW_MODES)) return short_horizontal_sums(&strip, mode);
    struct chain chains[CHAIN_VECTORS];
    for (int c = 0; c < CHAIN_VECTORS; c++) chains[c] = new_chain(mode);
    ptrdiff_t i = 0;
    for (; i + CHAINS <= strip.length; i += CHAINS) {
        /* CHAINS reals are a line of memory. The sums leave the memory idle, the max would wait for it. */
        if (!(mode & PRODUCTS)) prefetch(strip.x + i + strip.ahead);
        for (int c = 0; c < CHAIN_VECTORS; c++) chain_step(&chains[c], &strip, i + c * LANES, LANES, mode);
    }
    /* The padding's exponentials are 0 and change no bit of a chain. */
    for (int c = 0; c < CHAIN_VECTORS; c++) {
        ptrdiff_t left = strip.length - i - c * LANES;
        if (left >= LANES) chain_step(&chains[c], &strip, i + c * LANES, LANES, mode);
        else if (left > 0) chain_step(&chains[c], &strip, i + c * LANES, left, mode);
    }
    struct row_sums totals[CHAIN_VECTORS];
    for (int c = 0; c < CHAIN_VECTORS; c++) totals[c] = chain_total(chains[c], mode);
    for (int half = CHAIN_VECTORS / 2; half > 0; half /= 2)
        for (int c = 0; c < half; c++) totals[c] = add_sums(totals[c], totals[c + half]);
    return totals[0];
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

INLINE vec sum_across_lanes(vec of_row[LANES], ptrdiff_t count)
{
#define FOLD(rows) FOLD_LANES(vec, of_row, rows, first_runs, second_runs, add)
    WITH_CONSTANT_ROWS(count, FOLD);
#undef FOLD
    return of_row[0];
}

INLINE struct pair pair_across_lanes(struct pair of_row[LANES], ptrdiff_t count)
{
#define FOLD(rows) FOLD_LANES(struct pair, of_row, rows, first_pairs, second_pairs, add_pairs)
    WITH_CONSTANT_ROWS(count, FOLD);
#undef FOLD
    return of_row[0];
}

/* of_row[field] of each row, those past the last one like the first. */
#define FIELD_OF_ROWS(to, of_row, count, field) EACH_LANE(r) (to)[r] = (of_row)[r < (count) ? r : 0].field

NOT_INLINE void sums_across_lanes(const struct row_sums of_row[], ptrdiff_t count, int with_ties, int with_costs,
                              struct row_sums *sums)
{
    struct pair pairs[LANES];
    FIELD_OF_ROWS(pairs, of_row, count, total);
    sums->total = pair_across_lanes(pairs, count);
    if (with_ties) {
        vec ties[LANES];
        FIELD_OF_ROWS(ties, of_row, count, ties);
        sums->ties = sum_across_lanes(ties, count);
    }
    if (with_costs) {
        FIELD_OF_ROWS(pairs, of_row, count, cost);
        sums->cost = pair_across_lanes(pairs, count);
        FIELD_OF_ROWS(pairs, of_row, count, mass);
        sums->mass = pair_across_lanes(pairs, count);
    }
}

/* The largest and the smallest element. NaN is passed over: it reaches every result through the sum. */
struct extremes {
    vec max, min;
};

INLINE struct extremes join(struct extremes a, struct extremes b)
{
    return (struct extremes){max(a.max, b.max), min(a.min, b.min)};
}

INLINE struct extremes first_extremes(struct extremes a, struct extremes b, ptrdiff_t size)
{
    return (struct extremes){first_runs(a.max, b.max, size), first_runs(a.min, b.min, size)};
}

INLINE struct extremes second_extremes(struct extremes a, struct extremes b, ptrdiff_t size)
{
    return (struct extremes){second_runs(a.max, b.max, size), second_runs(a.min, b.min, size)};
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
    return (struct extremes){splat(-(real)__builtin_inf()), splat((real)__builtin_inf())};
}

INLINE struct extremes with_elements(struct extremes so_far, vec elements)
{
    return (struct extremes){max(elements, so_far.max), min(elements, so_far.min)};
}

/* Those of each lane. */
NOT_INLINE struct extremes extremes_of_strip(const real *x, ptrdiff_t size)
{
    /* Four independent chains: one would wait for each max in turn. */
    struct extremes a = no_extremes(), b = a, c = a, d = a;
    ptrdiff_t i = 0;
    for (; i + 4 * LANES <= size; i += 4 * LANES) {
        a = with_elements(a, load(x + i));
        b = with_elements(b, load(x + i + LANES));
        c = with_elements(c, load(x + i + 2 * LANES));
        d = with_elements(d, load(x + i + 3 * LANES));
    }
    for (; i + LANES <= size; i += LANES) a = with_elements(a, load(x + i));
    if (i < size) {
        b.max = max(load_first(x + i, size - i, -(real)__builtin_inf()), b.max);
        b.min = min(load_first(x + i, size - i, (real)__builtin_inf()), b.min);
    }
    return join(join(a, b), join(c, d));
}

/* out = e * factor */
INLINE void scale_step(ptrdiff_t i, ptrdiff_t lanes, const real *e, real *out, struct pair factor)
{
    store_lanes(out + i, lanes, scaled(load_lanes(e + i, lanes), factor));
}

NOT_INLINE void write_scaled(const real *e, real *out, ptrdiff_t size, struct pair factor)
{
    EACH_VECTOR(size, scale_step, e, out, factor);
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

/* out = (x - max) / T - log_sum */
INLINE void log_step(ptrdiff_t i, ptrdiff_t lanes, const real *x, real *out, vec row_max, vec log_sum)
{
    store_lanes(out + i, lanes, (load_lanes(x + i, lanes) - row_max) - log_sum);
}

/* Reals before the first that a vector may be streamed to. */
INLINE ptrdiff_t until_aligned(const real *out, ptrdiff_t size)
{
    ptrdiff_t misaligned = (ptrdiff_t)((uintptr_t)out % VECTOR_BYTES / sizeof(real));
    ptrdiff_t count = misaligned ? LANES - misaligned : 0;
    return count < size ? count : size;
}

/* out = e * factor */
INLINE void stream_scaled_step(ptrdiff_t i, ptrdiff_t lanes, const real *e, real *out, struct pair factor)
{
    vec value = scaled(load_lanes(e + i, lanes), factor);
    if (lanes == LANES) stream(out + i, value);
    else stream_first(out + i, lanes, value);
}

static void stream_scaled(const real *e, real *out, ptrdiff_t size, struct pair factor)
{
    ptrdiff_t head = until_aligned(out, size);
    if (head) stream_scaled_step(0, head, e, out, factor);
    EACH_VECTOR(size - head, stream_scaled_step, e + head, out + head, factor);
}

/* out = (x - max) - log_sum */
INLINE void stream_log_step(ptrdiff_t i, ptrdiff_t lanes, const real *x, real *out, vec row_max, vec log_sum)
{
    vec value = (load_lanes(x + i, lanes) - row_max) - log_sum;
    if (lanes == LANES) stream(out + i, value);
    else stream_first(out + i, lanes, value);
}

static void stream_log(const real *x, real *out, ptrdiff_t size, vec row_max, vec log_sum)
{
    ptrdiff_t head = until_aligned(out, size);
    if (head) stream_log_step(0, head, x, out, row_max, log_sum);
    EACH_VECTOR(size - head, stream_log_step, x + head, out + head, row_max, log_sum);
}

/* (x - max) / T; in halves where the quotient may be finite though the difference is not. */
INLINE vec scaled_distance(vec x, vec row_max, vec temperature)
{
    vec scale = choose(less(splat(1), temperature), splat((real)0.5), splat(1));
    return (x * scale - row_max * scale) / (temperature * scale);
}

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
