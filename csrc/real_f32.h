/* f32: the format and the constants of its exp and log. Data only.
 * Written by csrc/derive_constants.py; do not edit. */
#ifndef FASTSOFTMAX_REAL_H
#define FASTSOFTMAX_REAL_H

typedef float real;
typedef int32_t integer;
typedef uint32_t bit_pattern;

#define MANTISSA_BITS 23
#define EXPONENT_BIAS 127
#define REAL_MAX FLT_MAX
#define REAL_TRUE_MIN FLT_TRUE_MIN

/* 1.5 * 2**MANTISSA_BITS: adding it rounds to an integer, which is then found in the low bits. */
#define ROUND_MAGIC 0x1.8000000000000p+23f

/* Exponentials and their sums are kept times 2**SUM_EXPONENT, so that none of them is subnormal. */
#define SUM_EXPONENT 64
#define SUM_SCALE 0x1.0000000000000p+64f

/* From this |max| on a row is shifted by its max: the shift is exact wherever it matters. */
#define LARGE_MAX 0x1.0000000000000p+8f

/* exp: a table of TABLE_FACTOR * 2**(j / 16), the relative rounding errors of its entries, and
 * e**r - 1 = r + r*r*(c0 + c1*r + ...) for |r| <= ln(2)/32, error below 1.58e-9.
 * The factor is one for which entries j and j + 8 can share an error: 3.42e-9 remains at most. */
#define TABLE_BITS 4
#define TABLE_SIZE 16
#define TAILS_SIZE 8
#define INVERSE_FACTOR 0x1.ec428a0000000p-1f /* 1 / TABLE_FACTOR */
#define INVERSE_FACTOR_LESS_ONE -0x1.3bd7600000000p-5f
#define STEPS_PER_UNIT 0x1.7154760000000p+4f /* 16 / ln 2 */
#define STEP_HIGH 0x1.62e4300000000p-5f /* ln 2 / 16 */
#define STEP_LOW -0x1.05c6100000000p-33f
#define EXP_TABLE_BITS \
    0x3f852207, 0x3f8306f8, 0x3f812eb7, 0x3f7f9c3a, \
    0x3f7e5297, 0x3f7d5508, 0x3f7ca6ec, 0x3f7c4bc6, \
    0x3f7c4744, 0x3f7c9d3b, 0x3f7d51ac, 0x3f7e68c7, \
    0x3f7fe6e9, 0x3f81d0a2, 0x3f842ab7, 0x3f86fa1f
#define EXP_TABLE_TAILS \
    -0x1.cb83260000000p-29f, -0x1.ff839c0000000p-26f, -0x1.51ad940000000p-27f, -0x1.0fcefc0000000p-25f, \
    -0x1.cb54800000000p-27f, 0x1.45da140000000p-26f, -0x1.20e8e00000000p-26f, 0x1.8002640000000p-26f
#define EXP_COEFFICIENTS \
    0x1.0002200000000p-1f, 0x1.55571e0000000p-3f

/* log: ln(1 + f) = f - s*(f - R), s = f/(2 + f), R = z*(c0 + c1*z + ...), z = s*s,
 * for 1 + f from sqrt(1/2) to sqrt(2), error of R below 1.62e-9. */
#define LOG2_E 0x1.7154760000000p+0f
#define LN2 0x1.62e4300000000p-1f
#define LN2_HIGH 0x1.62e4000000000p-1f
#define LN2_LOW 0x1.7f7d1c0000000p-20f
#define SQRT_HALF_BITS 0x3f3504f3
#define LOG_COEFFICIENTS \
    0x1.55557a0000000p-1f, 0x1.995ebc0000000p-2f, \
    0x1.31e2c40000000p-2f

#endif
