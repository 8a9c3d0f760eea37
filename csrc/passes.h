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

#include "vector_exp.h"

#define CHAINS ((ptrdiff_t)(512 / REAL_BITS))
#define CHAIN_VECTORS (CHAINS / LANES)
/* Shorter rows are transposed, so that one vector holds one element of many rows: below
 * this length the work across lanes would cost more than the transposition (measured). */
#define SHORT_ROW ((ptrdiff_t)(4096 / REAL_BITS))

/* Beyond it e**x is 0 or infinite. */
#define EXP_LIMIT ((real)0.4 * LARGE_MAX)

static const vec no_elements = {0};

struct row_max {
    vec value, exponential; /* e**value, shifted as the row's others are */
};

/* All lanes, or the first `count`: a loop's body serves its whole vectors and its tail. */
INLINE vec load_lanes(const real *from, ptrdiff_t count)
{
    return count == LANES ? load(from) : load_first(from, count, 0);
}

INLINE void store_lanes(real *to, ptrdiff_t count, vec value)
{
    if (count == LANES) store(to, value);
    else store_first(to, count, value);
}

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
    STORE = 1,     /* it is written, rounded, to `e` */
    KEEP_MAX_OUT = 2, /* those of elements equal to the max are counted instead of added */
    SCALED = 4,    /* there is a temperature */
    TARGETS = 8,   /* `second` holds dense targets: their cost and mass are summed as well */
    WEIGHTED = 16, /* `second` holds factors, 0 only where x is -inf */
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

/* The same where the max is kept out. What is left may be smaller than the max by any
 * factor and is wanted to full relative precision, so the sum starts at 0, and since then
 * either of the two may be the larger one it takes TwoSum's three more additions. */
INLINE vec add_small_exponential(struct chain *chain, struct exponential e)
{
    vec value = rounded(e);
    vec next = chain->sum + value;
    vec part = next - chain->sum;
    vec lost = fma_(e.scale, e.tail, e.scale - part);
    chain->compensation += (chain->sum - (next - part)) + lost;
    chain->sum = next;
    return value;
}

INLINE void chain_step(struct chain *chain, vec x, vec second, const struct exp_shift *shift,
                       const struct row_max *row_max, real *e_out, ptrdiff_t partial, int mode)
{
    struct exponential e = shifted_exp(x, shift, mode & SCALED, mode & KEEP_MAX_OUT ? &row_max->value : NULL);
    vec value;
    if (mode & WEIGHTED) {
        struct pair exact = as_pair(e);
        struct pair term = two_product(exact.high, second);
        term.low = fma_(exact.low, second, term.low);
        add_term(&chain->cost, term);
        value = exact.high;
    } else {
        value = mode & KEEP_MAX_OUT ? add_small_exponential(chain, e) : add_exponential(chain, e);
    }
    if (mode & KEEP_MAX_OUT) {
        const vec infinity = splat((real)__builtin_inf());
        vec unit = splat(1);
        /* b * inf keeps the signs of infinite terms apart. */
        if (mode & WEIGHTED) unit = select(equal(row_max->value, infinity), second * infinity, second);
        lane_mask is_max = equal(x, row_max->value);
        chain->ties += select(is_max, unit, splat(0));
        if (mode & STORE) value = select(is_max, row_max->exponential, value);
    }
    if (mode & TARGETS) {
        /* A target of 0 costs nothing, even where the distance is infinite. */
        vec distance = row_max->value - x;
        if (mode & SCALED) distance /= shift->temperature;
        distance = select(equal(second, splat(0)), splat(0), distance);
        struct pair term = two_product(distance, second);
        /* An infinite product has no low part. */
        term.low = select(equal(term.low, term.low), term.low, splat(0));
        add_term(&chain->cost, term);
        add_term(&chain->mass, (struct pair){second, splat(0)});
    }
    if (mode & STORE) {
        if (partial < LANES) store_first(e_out, partial, value);
        else store(e_out, value);
    }
}

INLINE struct chain new_chain(int mode)
{
    struct pair none = {splat(0), splat(0)};
    return (struct chain){splat(mode & KEEP_MAX_OUT ? 0 : 2 * SUM_SCALE), splat(0), splat(0), none, none};
}

INLINE struct row_sums chain_total(struct chain chain, int mode)
{
    vec sum = mode & KEEP_MAX_OUT ? chain.sum : chain.sum - splat(2 * SUM_SCALE);
    struct pair total = mode & WEIGHTED ? chain.cost : two_sum(sum, chain.compensation);
    return (struct row_sums){total, chain.ties, chain.cost, chain.mass};
}

/* The chain of a vertical group that starts at step `first` and takes each `stride`-th. */
INLINE struct row_sums vertical_chain(const real *x, const real *second, real *e, ptrdiff_t length,
                                      ptrdiff_t first, ptrdiff_t stride, const struct exp_shift *shift,
                                      const struct row_max *row_max, int mode)
{
    struct chain chain = new_chain(mode);
    for (ptrdiff_t i = first; i < length; i += stride) {
        vec other = mode & (TARGETS | WEIGHTED) ? load(second + i * LANES) : no_elements;
        chain_step(&chain, load(x + i * LANES), other, shift, row_max, e + i * LANES, LANES, mode);
    }
    return chain_total(chain, mode);
}

INLINE struct row_sums vertical_sums(const real *x, const real *second, real *e, ptrdiff_t length, int is_short,
                                     const struct exp_shift *shift, const struct row_max *row_max, int mode)
{
    if (is_short) return vertical_chain(x, second, e, length, 0, 1, shift, row_max, mode);
    struct row_sums totals[CHAINS];
    for (ptrdiff_t c = 0; c < CHAINS; c++)
        totals[c] = vertical_chain(x, second, e, length, c, CHAINS, shift, row_max, mode);
    for (ptrdiff_t half = CHAINS / 2; half > 0; half /= 2)
        for (ptrdiff_t c = 0; c < half; c++) totals[c] = add_sums(totals[c], totals[c + half]);
    return totals[0];
}

INLINE struct pair exchange_pair(struct pair a, int distance)
{
    return (struct pair){exchange(a.high, distance), exchange(a.low, distance)};
}

INLINE struct row_sums horizontal_sums(const real *x, const real *second, real *e, ptrdiff_t length,
                                       const struct exp_shift *shift, const struct row_max *row_max, int mode)
{
    struct chain chains[CHAIN_VECTORS];
    for (int c = 0; c < CHAIN_VECTORS; c++) chains[c] = new_chain(mode);
    ptrdiff_t i = 0;
    for (; i + CHAINS <= length; i += CHAINS) {
        for (int c = 0; c < CHAIN_VECTORS; c++) {
            ptrdiff_t at = i + c * LANES;
            vec other = mode & (TARGETS | WEIGHTED) ? load(second + at) : no_elements;
            chain_step(&chains[c], load(x + at), other, shift, row_max, e + at, LANES, mode);
        }
    }
    /* The padding's exponentials are 0 and change no bit of a chain. */
    for (int c = 0; c < CHAIN_VECTORS; c++) {
        ptrdiff_t at = i + c * LANES;
        if (at >= length) break;
        ptrdiff_t count = length - at < LANES ? length - at : LANES;
        vec last = load_first(x + at, count, -(real)__builtin_inf());
        vec other = mode & (TARGETS | WEIGHTED) ? load_first(second + at, count, 0) : no_elements;
        chain_step(&chains[c], last, other, shift, row_max, e + at, count, mode);
        /* In an empty row the padding equals the max: it is not to be counted. */
        if (mode & KEEP_MAX_OUT && !(mode & WEIGHTED)) {
            lane_mask is_max = equal(last, row_max->value);
            for (ptrdiff_t lane = count; lane < LANES; lane++) chains[c].ties[lane] -= (real)is_set(is_max, lane);
        }
    }
    struct row_sums totals[CHAIN_VECTORS];
    for (int c = 0; c < CHAIN_VECTORS; c++) totals[c] = chain_total(chains[c], mode);
    for (int half = CHAIN_VECTORS / 2; half > 0; half /= 2)
        for (int c = 0; c < half; c++) totals[c] = add_sums(totals[c], totals[c + half]);
    struct row_sums sums = totals[0];
    for (int distance = (int)LANES / 2; distance > 0; distance /= 2) {
        sums.total = add_pairs(sums.total, exchange_pair(sums.total, distance));
        sums.ties += exchange(sums.ties, distance);
        if (mode & TARGETS) {
            sums.cost = add_pairs(sums.cost, exchange_pair(sums.cost, distance));
            sums.mass = add_pairs(sums.mass, exchange_pair(sums.mass, distance));
        }
    }
    return sums;
}

/* sum(x * g), or sum(g) where x is NULL, as `cost`, in the order of every sum. */
static struct row_sums vertical_products(const real *x, const real *g, ptrdiff_t length, int is_short)
{
    ptrdiff_t chains = is_short ? 1 : CHAINS;
    struct pair totals[CHAINS];
    for (ptrdiff_t c = 0; c < chains; c++) {
        totals[c] = (struct pair){splat(0), splat(0)};
        for (ptrdiff_t i = c; i < length; i += chains)
            add_term(&totals[c], two_product(load(g + i * LANES), x ? load(x + i * LANES) : splat(1)));
    }
    for (ptrdiff_t half = chains / 2; half > 0; half /= 2)
        for (ptrdiff_t c = 0; c < half; c++) totals[c] = add_pairs(totals[c], totals[c + half]);
    return (struct row_sums){.cost = totals[0]};
}

static struct row_sums horizontal_products(const real *x, const real *g, ptrdiff_t length)
{
    struct pair totals[CHAIN_VECTORS];
    for (int c = 0; c < CHAIN_VECTORS; c++) totals[c] = (struct pair){splat(0), splat(0)};
    for (ptrdiff_t i = 0; i < length; i += CHAINS)
        for (int c = 0; c < CHAIN_VECTORS && i + c * LANES < length; c++) {
            ptrdiff_t at = i + c * LANES, lanes = length - at < LANES ? length - at : LANES;
            add_term(&totals[c], two_product(load_lanes(g + at, lanes), x ? load_lanes(x + at, lanes) : splat(1)));
        }
    for (int half = CHAIN_VECTORS / 2; half > 0; half /= 2)
        for (int c = 0; c < half; c++) totals[c] = add_pairs(totals[c], totals[c + half]);
    for (int distance = (int)LANES / 2; distance > 0; distance /= 2)
        totals[0] = add_pairs(totals[0], exchange_pair(totals[0], distance));
    return (struct row_sums){.cost = totals[0]};
}

/* Each lane's max; of a horizontal strip in the end the same in all lanes. NaN is passed
 * over: it reaches every result through the sum. */
static vec max_of_strip(const real *x, ptrdiff_t size, int vertical)
{
    vec lowest = splat(-(real)__builtin_inf());
    /* Four independent chains: one would wait for each max in turn. */
    vec a = lowest, b = lowest, c = lowest, d = lowest;
    ptrdiff_t i = 0;
    for (; i + 4 * LANES <= size; i += 4 * LANES) {
        a = max(load(x + i), a);
        b = max(load(x + i + LANES), b);
        c = max(load(x + i + 2 * LANES), c);
        d = max(load(x + i + 3 * LANES), d);
    }
    for (; i + LANES <= size; i += LANES) a = max(load(x + i), a);
    if (i < size) b = max(load_first(x + i, size - i, -(real)__builtin_inf()), b);
    a = max(max(a, b), max(c, d));
    if (vertical) return a;
    for (int distance = (int)LANES / 2; distance > 0; distance /= 2) a = max(exchange(a, distance), a);
    return a;
}

/* out = e * factor */
INLINE void scale_step(ptrdiff_t i, ptrdiff_t lanes, const real *e, real *out, struct pair factor)
{
    vec value = load_lanes(e + i, lanes);
    store_lanes(out + i, lanes, fma_(value, factor.high, value * factor.low));
}

static void write_scaled(const real *e, real *out, ptrdiff_t size, struct pair factor)
{
    EACH_VECTOR(size, scale_step, e, out, factor);
}

/* The same past the caches. */
static void stream_scaled(const real *e, real *out, ptrdiff_t size, struct pair factor)
{
    ptrdiff_t misaligned = (ptrdiff_t)((uintptr_t)out % VECTOR_BYTES / sizeof(real));
    ptrdiff_t i = misaligned ? LANES - misaligned : 0;
    if (i > size) i = size;
    write_scaled(e, out, i, factor);
    for (; i + LANES <= size; i += LANES) {
        vec value = load(e + i);
        stream(out + i, fma_(value, factor.high, value * factor.low));
    }
    write_scaled(e + i, out + i, size - i, factor);
}

/* out = e * factor - scale * targets */
INLINE void gradient_step(ptrdiff_t i, ptrdiff_t lanes, const real *e, const real *targets, real *out,
                          struct pair factor, vec scale)
{
    vec value = load_lanes(e + i, lanes);
    vec gradient = fma_(value, factor.high, value * factor.low);
    store_lanes(out + i, lanes, fma_(-scale, load_lanes(targets + i, lanes), gradient));
}

/* out = (x - max) / T - log_sum */
INLINE void log_step(ptrdiff_t i, ptrdiff_t lanes, const real *x, real *out, vec row_max, vec log_sum)
{
    store_lanes(out + i, lanes, (load_lanes(x + i, lanes) - row_max) - log_sum);
}

INLINE void scaled_log_step(ptrdiff_t i, ptrdiff_t lanes, const real *x, real *out, vec row_max, vec log_sum,
                            vec temperature)
{
    store_lanes(out + i, lanes, (load_lanes(x + i, lanes) - row_max) / temperature - log_sum);
}

/* out = p * (g - dot) */
INLINE void vjp_step(ptrdiff_t i, ptrdiff_t lanes, const real *p, const real *g, real *out, vec dot)
{
    store_lanes(out + i, lanes, load_lanes(p + i, lanes) * (load_lanes(g + i, lanes) - dot));
}

/* out = g - e**x * total, where the exponential comes times 2**(SUM_EXPONENT - N): the power
 * is taken back in two exact halves, so that it neither overflows nor underflows by itself. */
INLINE void log_vjp_step(ptrdiff_t i, ptrdiff_t lanes, const real *x, const real *g, real *out,
                         const struct exp_shift *shift, vec half_power, vec other_half, vec total)
{
    vec logp = min(splat(EXP_LIMIT), load_lanes(x + i, lanes));
    vec p = rounded(shifted_exp(logp, shift, 0, NULL)) * half_power * other_half;
    store_lanes(out + i, lanes, load_lanes(g + i, lanes) - p * total);
}

/* gradient = (p - y) * weight, hessian = max(factor * p * (1 - p) * weight, least); y NULL: 0 */
INLINE void grad_hess_step(ptrdiff_t i, ptrdiff_t lanes, const real *e, const real *y, real *gradient, real *hessian,
                           struct pair scale, vec weight, vec factor, vec least)
{
    vec value = load_lanes(e + i, lanes), zero = splat(0);
    lane_mask ignored = equal(weight, zero);
    vec p = fma_(value, scale.high, value * scale.low);
    vec g = (p - (y ? load_lanes(y + i, lanes) : zero)) * weight;
    vec h = factor * p * (splat(1) - p) * weight;
    store_lanes(gradient + i, lanes, select(ignored, zero, g));
    store_lanes(hessian + i, lanes, max(least, select(ignored, zero, h))); /* a NaN stays one */
}

/* out = 0 in the lanes of ignored rows */
INLINE void clear_step(ptrdiff_t i, ptrdiff_t lanes, real *out, lane_mask ignored)
{
    store_lanes(out + i, lanes, select(ignored, splat(0), load_lanes(out + i, lanes)));
}

/* kept = x, but -inf where b is 0 */
INLINE void drop_zeros_step(ptrdiff_t i, ptrdiff_t lanes, const real *x, const real *b, real *kept)
{
    lane_mask absent = equal(load_lanes(b + i, lanes), splat(0));
    store_lanes(kept + i, lanes, select(absent, splat(-(real)__builtin_inf()), load_lanes(x + i, lanes)));
}

#endif
