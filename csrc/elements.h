/* The third phase: what is done with each element of a strip on its way out. */
#ifndef FASTSOFTMAX_ELEMENTS_H
#define FASTSOFTMAX_ELEMENTS_H

#include "last_step.h"
#include "vector_exp.h"

/* Beyond it e**x is infinite; a max within it, on both sides, is below LARGE_MAX: nothing is subtracted from x. */
#define EXP_LIMIT ((real)0.4 * LARGE_MAX)
/* Reals of a row from which it pays to have all vectors aligned but the first and the last (measured with 200). */
#define ALIGNED_STORES (4 * LANES)

/* step(i, lanes, ...) for every vector of a strip, with `lanes` a constant, and for its tail. */
#define EACH_VECTOR(size, step, ...)                                                               \
    do {                                                                                           \
        ptrdiff_t i_ = 0;                                                                          \
        for (; i_ + LANES <= (size); i_ += LANES) step(i_, LANES, __VA_ARGS__);                    \
        if (i_ < (size)) step(i_, (size)-i_, __VA_ARGS__);                                         \
    } while (0)

/* out = value_of(from, ...), which may be the same memory. Vectors are aligned in out but for the first and the last
 * one, which overlap others and are read before these are written: a load of what lies beside a store under a mask
 * has to wait for it (25 cycles on Zen 4), and the next row begins there. A vertical strip is aligned as a whole. */
#define WRITE_VALUES(size, value_of, from, out, ...)                                               \
    do {                                                                                           \
        if ((size) < LANES) {                                                                      \
            store_first(out, size, value_of(load_first(from, size, 0), __VA_ARGS__));              \
            break;                                                                                 \
        }                                                                                          \
        ptrdiff_t head_ = (size) >= ALIGNED_STORES ? until_aligned(out, size) : 0, i_ = head_;     \
        vec first_ = value_of(load(from), __VA_ARGS__);                                            \
        vec last_ = value_of(load((from) + (size)-LANES), __VA_ARGS__);                            \
        for (; i_ + LANES <= (size); i_ += LANES)                                                  \
            store((out) + i_, value_of(load((from) + i_), __VA_ARGS__));                           \
        if (head_) store(out, first_);                                                             \
        if (i_ < (size)) store((out) + (size)-LANES, last_);                                       \
    } while (0)

/* The same past the caches. */
#define STREAM_VALUES(size, value_of, from, out, ...)                                              \
    do {                                                                                           \
        ptrdiff_t i_ = until_aligned(out, size);                                                   \
        if (i_) stream_first(out, i_, value_of(load_first(from, i_, 0), __VA_ARGS__));             \
        for (; i_ + LANES <= (size); i_ += LANES)                                                  \
            stream((out) + i_, value_of(load((from) + i_), __VA_ARGS__));                          \
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

/* The same where a row needs care: see last_step.h. */
NOT_INLINE void write_carefully(const real *e, real *out, ptrdiff_t size, const struct last_values *values)
{
    WRITE_VALUES(size, after_last_step, e, out, SCALE_CAREFULLY, values);
}

/* to = e * lowering, which is a power of two */
INLINE void lower_step(ptrdiff_t i, ptrdiff_t lanes, const real *e, real *to, vec lowering)
{
    store_lanes(to + i, lanes, load_lanes(e + i, lanes) * lowering);
}

INLINE vec less_step(vec e, struct pair factor, struct pair step)
{
    return fma_(e, factor.high, -step.high) + fma_(e, factor.low, -step.low);
}

/* out = e * factor - step */
INLINE void uniform_gradient_step(ptrdiff_t i, ptrdiff_t lanes, const real *e, real *out, struct pair factor,
                                  struct pair step)
{
    store_lanes(out + i, lanes, less_step(load_lanes(e + i, lanes), factor, step));
}

/* out = e * factor - scale * targets */
INLINE void gradient_step(ptrdiff_t i, ptrdiff_t lanes, const real *e, const real *targets, real *out,
                          struct pair factor, struct pair scale)
{
    vec value = load_lanes(e + i, lanes), target = load_lanes(targets + i, lanes);
    struct pair step = two_product(scale.high, target);
    step.low = fma_(scale.low, target, step.low);
    step = infinite_alone(step);
    store_lanes(out + i, lanes, less_step(value, factor, step));
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
    product = infinite_alone(product);
    store_lanes(out + i, lanes, fma_(probability, load_lanes(g + i, lanes), -product.high) - product.low);
}

/* out = g - e**x * total, where the exponential comes times 2**(SUM_EXPONENT - N): the power
 * is taken back in two exact halves, so that it neither overflows nor underflows by itself. */
INLINE void log_vjp_step(ptrdiff_t i, ptrdiff_t lanes, const real *x, const real *g, real *out,
                         const struct exp_shift *shift, vec half_power, vec other_half, struct pair total)
{
    vec logp = min(splat(EXP_LIMIT), load_lanes(x + i, lanes));
    vec p = rounded(without_factor(shifted_exp(logp, shift, 0, 0))) * half_power * other_half;
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
    h.low = fma_(h.low, choose(is_finite(scale.high), scale.high, zero), h.high * scale.low);
    vec result = fma_(h.high, scale.high, h.low);
    store_lanes(gradient + i, lanes, choose(ignored, zero, g));
    store_lanes(hessian + i, lanes, max(least, choose(ignored, zero, result))); /* a NaN stays one */
}

/* out = 0 in the lanes of ignored rows */
INLINE void clear_step(ptrdiff_t i, ptrdiff_t lanes, real *out, lane_mask ignored)
{
    store_lanes(out + i, lanes, choose(ignored, splat(0), load_lanes(out + i, lanes)));
}

#endif
