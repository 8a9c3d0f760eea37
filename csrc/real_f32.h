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

/* exp: a table of 2**(j / 16), its relative rounding errors, and
 * e**r - 1 = r + r*r*(c0 + c1*r + ...) for |r| <= ln(2)/32, error below 1.58e-9. */
#define TABLE_BITS 4
#define TABLE_SIZE 16
#define STEPS_PER_UNIT 0x1.7154760000000p+4f /* 16 / ln 2 */
#define STEP_HIGH 0x1.62e4300000000p-5f /* ln 2 / 16 */
#define STEP_LOW -0x1.05c6100000000p-33f
#define EXP_TABLE_BITS \
    0x3f800000, 0x3f7daac3, 0x3f7b95c2, 0x3f79c3d3, \
    0x3f7837f0, 0x3f76f532, 0x3f75fed7, 0x3f75583f, \
    0x3f7504f3, 0x3f7508a4, 0x3f75672a, 0x3f76248c, \
    0x3f7744fd, 0x3f78ccdf, 0x3f7ac0c7, 0x3f7d257d
#define EXP_TABLE_TAILS \
    0x0.0p+0f, 0x1.8d96d40000000p-25f, -0x1.9c0c220000000p-27f, 0x1.9649040000000p-25f, \
    0x1.1250020000000p-25f, 0x1.370be40000000p-25f, -0x1.0a35500000000p-25f, -0x1.00d8ac0000000p-27f, \
    0x1.26055c0000000p-26f, -0x1.05cb440000000p-25f, 0x1.67a1ca0000000p-28f, 0x1.a3b5e40000000p-28f, \
    -0x1.f9c3040000000p-27f, -0x1.6961b40000000p-28f, -0x1.a5217c0000000p-28f, 0x1.61428e0000000p-28f
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
