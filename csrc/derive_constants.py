"""Derive every numerical constant of the kernels and write the two data headers.

Run as ``python csrc/derive_constants.py`` (needs mpmath, numpy and sympy);
it rewrites ``csrc/real_f32.h`` and ``csrc/real_f64.h`` beside itself and prints the
error bounds that it writes into them. It is no part of the build.
"""

from dataclasses import dataclass
from pathlib import Path

import numpy as np
from mpmath import mp, mpf
from sympy import ZZ
from sympy.polys.matrices import DomainMatrix

mp.prec = 300
LN2 = mp.log(2)


@dataclass(frozen=True)
class Format:
    """One floating-point format and the choices that depend on it."""

    name: str
    bits: int
    mantissa_bits: int  # stored ones
    exponent_bias: int
    table_bits: int  # 2**table_bits entries in the table of powers of two
    tails: int  # entries in the table of their rounding errors, shared by every tails-th power; 0 for none
    exp_terms: int  # coefficients beyond r itself
    log_terms: int
    sum_exponent: int  # row sums are kept scaled by 2**sum_exponent
    large_max: int  # rows whose |max| reaches this are shifted by their max
    ctype: str
    integer: str
    suffix: str


FORMATS = [
    Format("f32", 32, 23, 127, 4, 8, 2, 3, 64, 256, "float", "int32_t", "f"),
    Format("f64", 64, 52, 1023, 3, 0, 6, 7, 512, 2048, "double", "int64_t", ""),
]


def nearest(value, bits):
    """The nearest number with a significand of ``bits`` bits."""
    mantissa, exponent = mp.frexp(mpf(value))
    return mp.ldexp(mp.nint(mp.ldexp(mantissa, bits)), exponent - bits)


def minimax(function, weight, low, high, terms):
    """Coefficients c minimising max |weight(x) * (sum(c[k] x**k) - function(x))| (Remez)."""
    grid = [low + (high - low) * mpf(i) / 4000 for i in range(1, 4000)]
    points = [
        (low + high) / 2 - (high - low) / 2 * mp.cos(mp.pi * (2 * i + 1) / (2 * terms + 2)) for i in range(terms + 1)
    ]
    for _ in range(12):
        system = mp.matrix(terms + 1)
        target = mp.matrix(terms + 1, 1)
        for row, x in enumerate(points):
            for k in range(terms):
                system[row, k] = x**k
            system[row, terms] = (-1) ** row / weight(x)
            target[row] = function(x)
        solution = mp.lu_solve(system, target)
        coefficients = [solution[k] for k in range(terms)]
        errors = [weight(x) * (mp.polyval(coefficients[::-1], x) - function(x)) for x in grid]
        # One extremum from every run of equal sign.
        extrema, best = [], 0
        for i in range(1, len(grid)):
            if errors[i] * errors[best] > 0:
                if abs(errors[i]) > abs(errors[best]):
                    best = i
            else:
                extrema.append(best)
                best = i
        extrema.append(best)
        while len(extrema) > terms + 1:
            ends = (0, len(extrema) - 1)
            extrema.pop(min(ends, key=lambda e: abs(errors[extrema[e]])))
        if len(extrema) < terms + 1:
            break
        points = [grid[i] for i in extrema]
    return coefficients, max(abs(e) for e in errors)


# A factor common to all of a row's exponentials cancels, so the table may hold c * 2**(j / entries) for any c.
# Below, c is chosen so that its entries need no tails, or few: all c lie between 1 and 2**(1 / entries), so
# that every entry is below 2.


def factor_for_shared_tails(fmt):
    """The c for which entries with one tail have most nearly one rounding error, of all floats and those between."""
    entries = 1 << fmt.table_bits
    powers = np.exp2(np.arange(entries, dtype=np.longdouble) / entries)[:, np.newaxis]
    step = np.longdouble(2) ** -(fmt.mantissa_bits + 3)
    best, least = None, np.inf
    for first in np.arange(1, float(powers[1, 0]), 2.0**-8):
        factors = first + step * np.arange(int(2.0**-8 / step))
        wanted = powers * factors
        errors = ((wanted.astype(np.float32) - wanted) / wanted).reshape(-1, fmt.tails, factors.size)
        spread = np.ptp(errors, axis=0).max(axis=0)
        spread[wanted[-1] >= 2] = np.inf
        at = np.argmin(spread)
        if spread[at] < least:
            best, least = factors[at], spread[at]
    return mpf(float(best))


def factor_without_tails(fmt):
    """A c for which all entries lie close to numbers of the format.

    Close integers n * 2**(j / entries) for one integer n of a given size: a closest vector of a lattice, found by
    rounding to its reduced basis (Babai 1986, On Lovasz' lattice reduction and the nearest lattice point problem).
    """
    entries, one = 1 << fmt.table_bits, 1 << fmt.mantissa_bits
    middle = int(one * mp.power(2, mpf(1) / (2 * entries)))
    # The first coordinate is how far n is from the middle, the others are errors, which weigh as much where they are
    # some thousandths as n does some thousandths off. (1 << 20 keeps the rounding of the powers out of it.)
    powers = [mp.power(2, mpf(j) / entries) for j in range(1, entries)]
    rows = [[1 << 20, *(int(mp.nint(p * (one << 20))) for p in powers)]]
    rows += [[(one << 20) * (i == j) for j in range(entries)] for i in range(1, entries)]
    basis = [as_vector(row) for row in DomainMatrix(rows, (entries, entries), ZZ).lll().to_list()]
    orthogonal = []
    for row in basis:
        rest = row
        for other in orthogonal:
            rest = less_multiple(rest, mp.fdot(row, other) / mp.fdot(other, other), other)
        orthogonal.append(rest)
    left = [mpf(0), *(middle * p * (one << 20) for p in powers)]
    for row, direction in zip(reversed(basis), reversed(orthogonal), strict=True):
        left = less_multiple(left, mp.nint(mp.fdot(left, direction) / mp.fdot(direction, direction)), row)
    return (middle + left[0] / (1 << 20)) / one


def as_vector(integers):
    return [mpf(int(v)) for v in integers]


def less_multiple(vector, times, other):
    return [a - times * b for a, b in zip(vector, other, strict=True)]


def literal(fmt, value):
    return f"{hexadecimal(nearest(value, fmt.mantissa_bits + 1))}{fmt.suffix}"


def hexadecimal(value):
    return float(value).hex()


def bits_of(fmt, value):
    """The bit pattern of a positive normal number."""
    mantissa, exponent = mp.frexp(nearest(value, fmt.mantissa_bits + 1))
    fraction = int(mp.ldexp(mantissa, fmt.mantissa_bits + 1)) - (1 << fmt.mantissa_bits)
    return ((exponent - 1 + fmt.exponent_bias) << fmt.mantissa_bits) + fraction


def table_rows(values, per_row=4):
    lines = []
    for i in range(0, len(values), per_row):
        lines.append("    " + ", ".join(values[i : i + per_row]) + ",")
    return " \\\n".join(lines)


def header(fmt):
    precision = fmt.mantissa_bits + 1
    entries = 1 << fmt.table_bits
    step = LN2 / entries
    radius = step / 2 * mpf("1.001")  # a little more than half a step: rint may err by one ulp

    # The even and the odd part of (e**r - 1 - r) / r**2, each as a function of z = r*r.
    tiny = mpf(10) ** -12
    even, even_error = minimax(
        lambda z: (mp.cosh(mp.sqrt(z)) - 1) / z,
        lambda z: z,
        tiny,
        radius**2,
        fmt.exp_terms // 2,
    )
    odd, odd_error = minimax(
        lambda z: (mp.sinh(mp.sqrt(z)) / mp.sqrt(z) - 1) / z,
        lambda z: z ** mpf(1.5),
        tiny,
        radius**2,
        fmt.exp_terms // 2,
    )
    exp_coefficients = [c for pair in zip(even, odd, strict=True) for c in pair]
    exp_error = even_error + odd_error

    def log_tail(z):
        s = mp.sqrt(z)
        return (2 * mp.atanh(s) - 2 * s) / (s * z) if z else mpf(2) / 3

    largest_s = (mp.sqrt(2) - 1) / (mp.sqrt(2) + 1) * mpf("1.0001")
    log_coefficients, log_error = minimax(log_tail, lambda z: z, tiny, largest_s**2, fmt.log_terms)

    factor = factor_for_shared_tails(fmt) if fmt.tails else factor_without_tails(fmt)
    powers = [factor * mp.power(2, mpf(j) / entries) for j in range(entries)]
    # An index j sits below the exponent in the rounded argument. Taking j away
    # here lets one shift and one addition put the exponent in place.
    shifted = [bits_of(fmt, p) - (j << (fmt.mantissa_bits - fmt.table_bits)) for j, p in enumerate(powers)]
    missing = [(p - nearest(p, precision)) / p for p in powers]
    tails = [(max(missing[j :: fmt.tails]) + min(missing[j :: fmt.tails])) / 2 for j in range(fmt.tails)]
    table_error = max(abs(m - (tails[j % fmt.tails] if tails else 0)) for j, m in enumerate(missing))

    step_high = nearest(step, precision)
    step_low = step - step_high
    # Short enough for an exact product with any exponent a row sum can have.
    ln2_high = nearest(LN2, precision - 8 if fmt.bits == 32 else precision - 11)
    magic = mpf(3) * 2 ** (fmt.mantissa_bits - 1)

    table_text = table_rows([f"0x{b:0{fmt.bits // 4}x}" for b in shifted])
    tails_in_words = "the relative rounding errors of its entries, " if tails else ""
    tails_needed = f"entries j and j + {fmt.tails} can share an error" if tails else "entries need no more digits"
    tail_text = f"#define EXP_TABLE_TAILS \\\n{table_rows([literal(fmt, t) for t in tails])}\n" if tails else ""
    exp_text = table_rows([literal(fmt, c) for c in exp_coefficients], 2)
    log_text = table_rows([literal(fmt, c) for c in log_coefficients], 2)
    return f"""/* {fmt.name}: the format and the constants of its exp and log. Data only.
 * Written by csrc/derive_constants.py; do not edit. */
#ifndef FASTSOFTMAX_REAL_H
#define FASTSOFTMAX_REAL_H

typedef {fmt.ctype} real;
typedef {fmt.integer} integer;
typedef u{fmt.integer} bit_pattern;

#define MANTISSA_BITS {fmt.mantissa_bits}
#define EXPONENT_BIAS {fmt.exponent_bias}
#define REAL_MAX {"FLT_MAX" if fmt.bits == 32 else "DBL_MAX"}
#define REAL_TRUE_MIN {"FLT_TRUE_MIN" if fmt.bits == 32 else "DBL_TRUE_MIN"}

/* 1.5 * 2**MANTISSA_BITS: adding it rounds to an integer, which is then found in the low bits. */
#define ROUND_MAGIC {literal(fmt, magic)}

/* Exponentials and their sums are kept times 2**SUM_EXPONENT, so that none of them is subnormal. */
#define SUM_EXPONENT {fmt.sum_exponent}
#define SUM_SCALE {literal(fmt, mpf(2) ** fmt.sum_exponent)}

/* From this |max| on a row is shifted by its max: the shift is exact wherever it matters. */
#define LARGE_MAX {literal(fmt, fmt.large_max)}

/* exp: a table of TABLE_FACTOR * 2**(j / {entries}), {tails_in_words}and
 * e**r - 1 = r + r*r*(c0 + c1*r + ...) for |r| <= ln(2)/{2 * entries}, error below {mp.nstr(exp_error, 3)}.
 * The factor is one for which {tails_needed}: {mp.nstr(table_error, 3)} remains at most. */
#define TABLE_BITS {fmt.table_bits}
#define TABLE_SIZE {entries}
#define TAILS_SIZE {fmt.tails}
#define INVERSE_FACTOR {literal(fmt, 1 / factor)} /* 1 / TABLE_FACTOR */
#define INVERSE_FACTOR_LESS_ONE {literal(fmt, 1 / factor - 1)}
#define STEPS_PER_UNIT {literal(fmt, 1 / step)} /* {entries} / ln 2 */
#define STEP_HIGH {literal(fmt, step_high)} /* ln 2 / {entries} */
#define STEP_LOW {literal(fmt, step_low)}
#define EXP_TABLE_BITS \\
{table_text}
{tail_text}#define EXP_COEFFICIENTS \\
{exp_text}

/* log: ln(1 + f) = f - s*(f - R), s = f/(2 + f), R = z*(c0 + c1*z + ...), z = s*s,
 * for 1 + f from sqrt(1/2) to sqrt(2), error of R below {mp.nstr(log_error, 3)}. */
#define LOG2_E {literal(fmt, 1 / LN2)}
#define LN2 {literal(fmt, LN2)}
#define LN2_HIGH {literal(fmt, ln2_high)}
#define LN2_LOW {literal(fmt, LN2 - ln2_high)}
#define SQRT_HALF_BITS 0x{bits_of(fmt, mp.sqrt(mpf(0.5))):0{fmt.bits // 4}x}
#define LOG_COEFFICIENTS \\
{log_text}

#endif
"""


def main():
    for fmt in FORMATS:
        path = Path(__file__).with_name(f"real_{fmt.name}.h")
        # The last row of a table needs no continuation comma.
        path.write_text(header(fmt).replace(",\n#", "\n#").replace(",\n\n", "\n\n"))
        print(path.name, *[line for line in path.read_text().splitlines() if "error" in line], sep="\n  ")


if __name__ == "__main__":
    main()
