/* f64: the format and the constants of its exp and log. Data only.
 * Written by csrc/derive_constants.py; do not edit. */
#ifndef FASTSOFTMAX_REAL_H
#define FASTSOFTMAX_REAL_H

typedef double real;
typedef int64_t integer;
typedef uint64_t bit_pattern;

#define MANTISSA_BITS 52
#define EXPONENT_BIAS 1023
#define REAL_MAX DBL_MAX
#define REAL_TRUE_MIN DBL_TRUE_MIN

/* 1.5 * 2**MANTISSA_BITS: adding it rounds to an integer, which is then found in the low bits. */
#define ROUND_MAGIC 0x1.8000000000000p+52

/* Exponentials and their sums are kept times 2**SUM_EXPONENT, so that none of them is subnormal. */
#define SUM_EXPONENT 512
#define SUM_SCALE 0x1.0000000000000p+512

/* From this |max| on a row is shifted by its max: the shift is exact wherever it matters. */
#define LARGE_MAX 0x1.0000000000000p+11

/* exp: a table of TABLE_FACTOR * 2**(j / 8), and
 * e**r - 1 = r + r*r*(c0 + c1*r + ...) for |r| <= ln(2)/16, error below 2.84e-18.
 * The factor is one for which entries need no more digits: 5.46e-19 remains at most. */
#define TABLE_BITS 3
#define TABLE_SIZE 8
#define TAILS_SIZE 0
#define INVERSE_FACTOR 0x1.e7ec6ae7e9eb1p-1 /* 1 / TABLE_FACTOR */
#define INVERSE_FACTOR_LESS_ONE -0x1.81395181614f1p-5
#define STEPS_PER_UNIT 0x1.71547652b82fep+3 /* 8 / ln 2 */
#define STEP_HIGH 0x1.62e42fefa39efp-4 /* ln 2 / 8 */
#define STEP_LOW 0x1.abc9e3b39803fp-59
#define EXP_TABLE_BITS \
    0x3ff0ca1dc9248b2f, 0x3ff04f210dbff1a1, 0x3feff759bd5229d7, 0x3fefc5f7a09029b0, \
    0x3fefbe7455e1d008, 0x3fefe49a0021deb1, 0x3ff03c8a9033fec4, 0x3ff0cac7b7745be0
#define EXP_COEFFICIENTS \
    0x1.0000000000110p-1, 0x1.55555555555fbp-3, \
    0x1.55555547eacbdp-5, 0x1.1111110a1242dp-7, \
    0x1.6c1cc436f3c95p-10, 0x1.a01fb566c4a6dp-13

/* log: ln(1 + f) = f - s*(f - R), s = f/(2 + f), R = z*(c0 + c1*z + ...), z = s*s,
 * for 1 + f from sqrt(1/2) to sqrt(2), error of R below 2.46e-18. */
#define LOG2_E 0x1.71547652b82fep+0
#define LN2 0x1.62e42fefa39efp-1
#define LN2_HIGH 0x1.62e42fefa3800p-1
#define LN2_LOW 0x1.ef35793c76730p-45
#define SQRT_HALF_BITS 0x3fe6a09e667f3bcd
#define LOG_COEFFICIENTS \
    0x1.5555555555592p-1, 0x1.999999997fdd8p-2, \
    0x1.24924941ef381p-2, 0x1.c71c520b08dc5p-3, \
    0x1.74663e8b56a7ap-3, 0x1.39a1c49d156bfp-3, \
    0x1.2f04facd1e223p-3

#endif
