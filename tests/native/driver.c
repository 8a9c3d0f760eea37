/* Runs every kernel of the C library, without Python, and proves four things:
 *   - all instruction sets this CPU has, all layouts, alignments and numbers of threads give
 *     the same bytes; the digests printed let machines and compilers be compared as well;
 *   - nothing outside the operands is read (guard pages on both sides) or written;
 *   - the results are right: within the promised error of a long double calculation;
 *   - calls from several threads at once do not disturb each other.
 *
 *   driver [--quick | --large | --huge | --stress SECONDS] [--digest] [--once] [--isa NAME]
 *
 * --quick    fewer lengths and no large arrays, for valgrind, emulators and sanitizers
 * --large    only the large arrays, which several threads share
 * --digest   prints the digests alone and leaves out the long double calculation
 * --once     runs every case in one way only
 * --isa      that instruction set alone
 * --stress   only the calls from several threads at once, for so long
 * --huge     only a row of more than 2**31 elements, all at one address
 * Exit status: 0, 1 where something is wrong, 2 where the driver cannot run, 3 after a crash. */
#define _DEFAULT_SOURCE
#include "cases.h"

#include <float.h>
#include <math.h>
#include <pthread.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>
#include <unistd.h>
#ifdef _OPENMP
#include <omp.h>
#endif

#define OPERATIONS 8
static const char *const operation_names[OPERATIONS] = {
    "softmax", "log_softmax", "logsumexp", "select", "cross_entropy", "grad_hess", "softmax_vjp",
    "log_softmax_vjp",
};

/* Every option of every operation, alone or together. */
static const struct {
    enum fsm_operation operation;
    unsigned options;
} subjects[] = {
    {FSM_SOFTMAX, 0},
    {FSM_SOFTMAX, TEMPERATURE},
    {FSM_LOG_SOFTMAX, 0},
    {FSM_LOG_SOFTMAX, TEMPERATURE},
    {FSM_LOGSUMEXP, 0},
    {FSM_LOGSUMEXP, SECOND},
    {FSM_LOGSUMEXP, SECOND | SIGN},
    {FSM_SELECT, LABELS},
    {FSM_SELECT, LABELS | TEMPERATURE},
    {FSM_CROSS_ENTROPY, LABELS | LOSS},
    {FSM_CROSS_ENTROPY, LABELS | LOSS | GRADIENT},
    {FSM_CROSS_ENTROPY, LABELS | GRADIENT | GRAD_LOSS | SAMPLE_WEIGHT},
    {FSM_CROSS_ENTROPY, LABELS | LOSS | GRADIENT | CLASS_WEIGHT | SAMPLE_WEIGHT | IGNORE},
    {FSM_CROSS_ENTROPY, LABELS | LOSS | GRADIENT | SMOOTHING},
    {FSM_CROSS_ENTROPY, LABELS | LOSS | SMOOTHING | CLASS_WEIGHT | IGNORE},
    {FSM_CROSS_ENTROPY, LABELS | LOSS | GRADIENT | SMOOTHING | CLASS_WEIGHT | IGNORE | Z_LOSS | GRAD_LOSS},
    {FSM_CROSS_ENTROPY, LABELS | LOSS | GRADIENT | CLASS_WEIGHT | Z_LOSS},
    {FSM_CROSS_ENTROPY, SECOND | LOSS},
    {FSM_CROSS_ENTROPY, SECOND | LOSS | GRADIENT},
    {FSM_CROSS_ENTROPY, 
     SECOND | LOSS | GRADIENT | CLASS_WEIGHT | SMOOTHING | SAMPLE_WEIGHT | Z_LOSS | GRAD_LOSS},
    {FSM_CROSS_ENTROPY, LABELS | SUM},
    {FSM_CROSS_ENTROPY, LABELS | SUM | GRADIENT | IGNORE | SAMPLE_WEIGHT},
    {FSM_CROSS_ENTROPY, SECOND | SUM | GRADIENT | SMOOTHING},
    {FSM_GRAD_HESS, LABELS},
    {FSM_GRAD_HESS, LABELS | CLASS_WEIGHT | SAMPLE_WEIGHT},
    {FSM_GRAD_HESS, SECOND | SAMPLE_WEIGHT},
    {FSM_SOFTMAX_VJP, SECOND},
    {FSM_LOG_SOFTMAX_VJP, SECOND},
};
#define SUBJECTS ((int)(sizeof subjects / sizeof *subjects))

static const char *only_instruction_set;
static int with_truth = 1, with_variants = 1;
static long cases_run, variants_run, rows_compared, failures;
static long reported[2]; /* of what is not right, and of what differs: the first few of each */
static uint64_t digests[OPERATIONS][2];

/* What runs now, for the report of a crash. */
static const struct test_case *current_case;
static const struct variant *current_variant;

static void report(const struct test_case *test, const struct variant *variant, const char *what)
{
    char text[1500];
    describe(text, sizeof text, test, variant);
    failures++;
    if (reported[variant != NULL]++ < 20) fprintf(stderr, "WRONG: %s\n  %s\n", what, text);
}

#if !defined(__SANITIZE_ADDRESS__) && !defined(__SANITIZE_THREAD__)
static void report_crash(int signal_number)
{
    char text[1500] = "no case";
    if (current_case) describe(text, sizeof text, current_case, current_variant);
    fprintf(stderr, "CRASH: signal %d in\n  %s\n", signal_number, text);
    _exit(3);
}
#endif

/* ---- What is right --------------------------------------------------------------------- */

static long double real_at(const struct test_case *test, const char *values, ptrdiff_t i)
{
    if (test->is_double) return ((const double *)(const void *)values)[i];
    return ((const float *)(const void *)values)[i];
}

/* The spacing of the dtype's numbers at this value. */
static long double spacing(const struct test_case *test, long double value)
{
    int digits = test->is_double ? DBL_MANT_DIG : FLT_MANT_DIG;
    int least = test->is_double ? DBL_MIN_EXP : FLT_MIN_EXP;
    int exponent = least;
    if (value != 0) frexpl(value, &exponent);
    return ldexpl(1, (exponent > least ? exponent : least) - digits);
}

static char last_miss[200];

/* Within `units` of the spacing at `scale`, or at the value itself where that is larger. */
static int is_near(const struct test_case *test, long double got, long double exact, long double scale,
                   long double units)
{
    long double largest = test->is_double ? (long double)DBL_MAX : (long double)FLT_MAX;
    long double size = fmaxl(fabsl(exact), fabsl(scale));
    int is_right = fabsl(got - exact) <= units * spacing(test, size);
    if (isinf(got) || isinf(exact))
        is_right = got == exact || (size > largest * 0.999L && signbit(got) == signbit(exact));
    if (isnan(exact)) is_right = isnan(got);
    if (!is_right)
        snprintf(last_miss, sizeof last_miss, "%.20Lg, not %.20Lg: off by %.4Lg of %.4Lg units", got, exact,
                 fabsl(got - exact) / spacing(test, size), units);
    return is_right;
}

/* A row's max, and the rest of its sum of exponentials apart from the `ties` equal to it. */
struct exact_row {
    long double max, rest, log_sum, logsumexp;
    ptrdiff_t ties;
    int has_nan, has_infinity;
};

static struct exact_row exact_row_of(const struct test_case *test, const char *x, long double temperature)
{
    struct exact_row row = {.max = -INFINITY};
    for (ptrdiff_t i = 0; i < test->n; i++) {
        long double value = real_at(test, x, i);
        row.has_nan |= isnan(value);
        row.has_infinity |= value == INFINITY;
        if (value > row.max) row.max = value;
    }
    for (ptrdiff_t i = 0; i < test->n; i++) {
        long double value = real_at(test, x, i);
        if (value == row.max) row.ties++;
        else row.rest += expl((value - row.max) / temperature);
    }
    row.log_sum = log1pl(row.rest + (long double)(row.ties - 1));
    row.logsumexp = row.max / temperature + row.log_sum;
    if (row.has_nan || row.max == -INFINITY || row.has_infinity) row.log_sum = NAN;
    if (row.max == -INFINITY && !row.has_nan) row.logsumexp = -INFINITY;
    if (row.has_infinity) row.logsumexp = INFINITY;
    if (row.has_nan) row.logsumexp = NAN;
    return row;
}

/* A double of the row, as the dtype holds it. */
static long double row_value(const struct test_case *test, enum fsm_operand_name name, ptrdiff_t row)
{
    if (!test->inputs[name]) return 1;
    return ((const double *)(const void *)test->inputs[name])[row];
}

static long double temperature_of(const struct test_case *test, ptrdiff_t row)
{
    double value = (double)row_value(test, FSM_TEMPERATURE, row);
    return test->is_double ? value : (double)(float)value;
}

/* Temperatures whose inverse is far from the ends of float32's range: the others are cut. */
static int is_plain_temperature(long double temperature)
{
    return temperature > 1e-30L && temperature < 1e30L;
}

static const char *check_softmax(const struct test_case *test, const struct results *results,
                                 ptrdiff_t number)
{
    const char *x = test->inputs[FSM_X] + number * test->n * item_size(test, FSM_X);
    const char *out = results->values[FSM_OUT] + number * test->n * item_size(test, FSM_X);
    long double temperature = temperature_of(test, number);
    if (!is_plain_temperature(temperature)) return NULL;
    struct exact_row row = exact_row_of(test, x, temperature);
    int is_log = test->operation == FSM_LOG_SOFTMAX;
    for (ptrdiff_t i = 0; i < test->n; i++) {
        long double got = real_at(test, out, i), exact = NAN, distance = real_at(test, x, i) - row.max;
        if (!isnan(row.log_sum) && is_log) exact = distance / temperature - row.log_sum;
        else if (!isnan(row.log_sum))
            exact = expl(distance / temperature) / (row.rest + (long double)row.ties);
        /* What long double itself may lose. */
        long double units = 2 + fabsl(distance / temperature) * LDBL_EPSILON / spacing(test, 1) * 2;
        if (is_log && temperature != 1) units += 1;
        if (!isfinite(units)) units = 2;
        if (!is_near(test, got, exact, 0, units)) return is_log ? "log_softmax is off" : "softmax is off";
    }
    return NULL;
}

static const char *check_logsumexp(const struct test_case *test, const struct results *results,
                                   ptrdiff_t number)
{
    const char *x = test->inputs[FSM_X] + number * test->n * item_size(test, FSM_X);
    long double got = real_at(test, results->values[FSM_ROW_OUT], number);
    if (!test->inputs[FSM_SECOND]) {
        struct exact_row row = exact_row_of(test, x, 1);
        /* Near 0 by cancellation: one epsilon of max(1, |max|). */
        long double cancelled = 0.5L * fmaxl(1, fabsl(row.max));
        int cancels = fabsl(row.logsumexp) < cancelled;
        return is_near(test, got, row.logsumexp, cancels ? cancelled : 0, 2) ? NULL : "logsumexp is off";
    }
    const char *b = test->inputs[FSM_SECOND] + number * test->n * item_size(test, FSM_X);
    long double max = -INFINITY, sum = 0, magnitudes = 0;
    for (ptrdiff_t i = 0; i < test->n; i++) {
        long double value = real_at(test, x, i), factor = real_at(test, b, i);
        if (factor == 0) continue;
        if (isnan(value) || value == INFINITY || !isfinite(factor)) return NULL;
        max = fmaxl(max, value);
    }
    for (ptrdiff_t i = 0; i < test->n; i++) {
        long double value = real_at(test, x, i), factor = real_at(test, b, i);
        if (factor == 0 || value == -INFINITY) continue;
        sum += factor * expl(value - max);
        magnitudes += fabsl(factor) * expl(value - max);
    }
    long double exact = sum == 0 ? -INFINITY : max + logl(fabsl(sum)), sign = (sum > 0) - (sum < 0);
    if (results->values[FSM_SIGN_OUT]) {
        if (real_at(test, results->values[FSM_SIGN_OUT], number) != sign) {
            /* Cancelled beyond what both calculations can tell. */
            return fabsl(sum) < magnitudes * spacing(test, 1) ? NULL : "the sign of logsumexp is wrong";
        }
    } else if (sum < 0) {
        exact = NAN;
    }
    /* What the terms lose, a fraction of a unit each, grows as the sum cancels. */
    long double units = 3 + (sum == 0 ? 0 : magnitudes / fabsl(sum));
    return is_near(test, got, exact, fmaxl(1, fabsl(max)), units) ? NULL : "logsumexp with factors is off";
}

static const char *check_select(const struct test_case *test, const struct results *results, ptrdiff_t number)
{
    const char *x = test->inputs[FSM_X] + number * test->n * item_size(test, FSM_X);
    const int64_t *labels = (const int64_t *)(const void *)test->inputs[FSM_LABELS];
    labels += number * test->n_selected;
    long double temperature = temperature_of(test, number);
    if (!is_plain_temperature(temperature)) return NULL;
    struct exact_row row = exact_row_of(test, x, temperature);
    for (ptrdiff_t k = 0; k < test->n_selected; k++) {
        long double got = real_at(test, results->values[FSM_OUT], number * test->n_selected + k);
        long double exact = (real_at(test, x, (ptrdiff_t)labels[k]) - row.max) / temperature - row.log_sum;
        if (!is_near(test, got, exact, 0, temperature == 1 ? 2 : 3)) return "a selected log_softmax is off";
    }
    return NULL;
}

/* The label of a row that counts, or -1. */
static ptrdiff_t label_of(const struct test_case *test, ptrdiff_t number)
{
    if (!test->inputs[FSM_LABELS]) return -1;
    int64_t label = ((const int64_t *)(const void *)test->inputs[FSM_LABELS])[number];
    return test->options & IGNORE && label == test->ignore_index ? -1 : (ptrdiff_t)label;
}

static long double class_weight_of(const struct test_case *test, ptrdiff_t i)
{
    return test->class_weight ? real_at(test, test->class_weight, i) : 1;
}

/* The target of class i: of the label, or of the probabilities, smoothed and weighted. */
static long double target_of(const struct test_case *test, ptrdiff_t number, ptrdiff_t label, ptrdiff_t i)
{
    long double target = i == label;
    if (test->inputs[FSM_SECOND]) target = real_at(test, test->inputs[FSM_SECOND], number * test->n + i);
    long double smoothing = test->label_smoothing;
    return (target * (1 - smoothing) + smoothing / (long double)test->n) * class_weight_of(test, i);
}

static const char *check_cross_entropy(const struct test_case *test, const struct results *results,
                                       ptrdiff_t number)
{
    const char *x = test->inputs[FSM_X] + number * test->n * item_size(test, FSM_X);
    ptrdiff_t label = label_of(test, number);
    long double weight = row_value(test, FSM_SAMPLE_WEIGHT, number);
    if (test->inputs[FSM_LABELS]) {
        if (label < 0) weight = 0;
        else if (class_weight_of(test, label) == 0 && test->label_smoothing == 0) weight = 0;
    }
    struct exact_row row = exact_row_of(test, x, 1);
    int counts = weight != 0;
    /* Rows with something infinite have their own tests, in Python. */
    if (counts && (test->row_kinds[number] >= FIRST_SPECIAL_KIND || !(fabsl(row.max) < 1e18L))) return NULL;
    long double mass = 0, cost = 0;
    for (ptrdiff_t i = 0; counts && i < test->n; i++) {
        long double target = target_of(test, number, label, i);
        mass += target;
        if (target != 0) cost += target * (row.max - real_at(test, x, i));
    }
    long double z = test->z_loss * (label >= 0 ? class_weight_of(test, label) : 1);
    long double slope = mass + 2 * z * row.logsumexp;
    long double loss = mass * row.log_sum + cost + z * row.logsumexp * row.logsumexp;
    if (results->values[FSM_ROW_OUT]) {
        long double got = real_at(test, results->values[FSM_ROW_OUT], number);
        int plain = !(test->options & (SMOOTHING | Z_LOSS | CLASS_WEIGHT | SECOND | SAMPLE_WEIGHT));
        if (!is_near(test, got, counts ? loss * weight : 0, 0, plain ? 2 : 5)) return "the loss is off";
    }
    if (!results->values[FSM_OUT]) return NULL;
    long double upstream = row_value(test, FSM_GRAD_LOSS, number) * test->grad_scale * weight;
    int plain = !(test->options & (SMOOTHING | Z_LOSS | CLASS_WEIGHT | SECOND | SAMPLE_WEIGHT | GRAD_LOSS));
    for (ptrdiff_t i = 0; i < test->n; i++) {
        long double got = real_at(test, results->values[FSM_OUT], number * test->n + i);
        long double exact = 0, largest = 0;
        if (counts) {
            long double p = expl(real_at(test, x, i) - row.max) / (row.rest + (long double)row.ties);
            long double target = target_of(test, number, label, i);
            exact = (slope * p - target) * upstream;
            largest = fmaxl(fabsl(slope * p * upstream), fabsl(target * upstream));
            if (z != 0) largest = fmaxl(largest, fabsl(2 * z * row.logsumexp * p * upstream));
        }
        /* The last summand: what p itself loses among the subnormals. */
        long double units = plain ? 2 : 6;
        if (counts) units += fabsl(slope * upstream) * spacing(test, 0) / spacing(test, largest);
        if (!is_near(test, got, exact, largest, units)) return "the gradient is off";
    }
    return NULL;
}

static const char *check_grad_hess(const struct test_case *test, const struct results *results,
                                   ptrdiff_t number)
{
    const char *x = test->inputs[FSM_X] + number * test->n * item_size(test, FSM_X);
    ptrdiff_t label = label_of(test, number);
    long double weight = row_value(test, FSM_SAMPLE_WEIGHT, number);
    if (label >= 0) weight *= class_weight_of(test, label);
    if (!test->is_double) weight = (float)weight;
    struct exact_row row = exact_row_of(test, x, 1);
    if (weight != 0 && isnan(row.log_sum)) return NULL;
    for (ptrdiff_t i = 0; i < test->n; i++) {
        long double gradient = 0, hessian = 0, p = 0, y = 0;
        if (weight != 0) {
            p = expl(real_at(test, x, i) - row.max) / (row.rest + (long double)row.ties);
            y = i == label;
            if (test->inputs[FSM_SECOND]) y = real_at(test, test->inputs[FSM_SECOND], number * test->n + i);
            if (!isfinite(y)) continue;
            gradient = (p - y) * weight;
            hessian = test->factor * p * (1 - p) * weight;
        }
        if (hessian < test->min_hess) hessian = test->min_hess;
        long double got = real_at(test, results->values[FSM_OUT], number * test->n + i);
        /* What p itself loses among the subnormals. */
        long double lost = fabsl(weight) * spacing(test, 0);
        long double scale = fmaxl(p, fabsl(y)) * weight;
        if (!is_near(test, got, gradient, scale, 3 + lost / spacing(test, scale)))
            return "the gradient is off";
        got = real_at(test, results->values[FSM_HESSIAN], number * test->n + i);
        scale = test->factor * p * weight;
        if (!is_near(test, got, hessian, scale, 4 + test->factor * lost / spacing(test, scale)))
            return "the hessian is off";
    }
    return NULL;
}

static const char *check_vjp(const struct test_case *test, const struct results *results, ptrdiff_t number)
{
    const char *x = test->inputs[FSM_X] + number * test->n * item_size(test, FSM_X);
    const char *g = test->inputs[FSM_SECOND] + number * test->n * item_size(test, FSM_X);
    int is_log = test->operation == FSM_LOG_SOFTMAX_VJP;
    if (test->row_kinds[number] > OFFSET_MILLION) return NULL; /* not probabilities */
    long double sum = 0;
    for (ptrdiff_t i = 0; i < test->n; i++) sum += real_at(test, g, i) * (is_log ? 1 : real_at(test, x, i));
    for (ptrdiff_t i = 0; i < test->n; i++) {
        long double value = real_at(test, x, i), grad = real_at(test, g, i);
        long double exact = is_log ? grad - expl(value) * sum : value * (grad - sum);
        long double largest = is_log ? fmaxl(fabsl(grad), expl(value) * fabsl(sum))
                                     : value * fmaxl(fabsl(grad), fabsl(sum));
        if (!is_near(test, real_at(test, results->values[FSM_OUT], number * test->n + i), exact, largest, 2))
            return is_log ? "log_softmax_vjp is off" : "softmax_vjp is off";
    }
    return NULL;
}

typedef const char *check_function(const struct test_case *, const struct results *, ptrdiff_t);

static void check_truth(const struct test_case *test, const struct results *results)
{
    static check_function *const checks[OPERATIONS] = {
        check_softmax, check_softmax, check_logsumexp, check_select, check_cross_entropy, check_grad_hess,
        check_vjp, check_vjp,
    };
    for (ptrdiff_t row = 0; row < test->rows; row++) {
        const char *wrong = checks[test->operation](test, results, row);
        rows_compared++;
        if (!wrong) continue;
        char text[400];
        snprintf(text, sizeof text, "%s in row %td (kind %d): %s", wrong, row, test->row_kinds[row],
                 last_miss);
        last_miss[0] = 0;
        report(test, NULL, text);
    }
}

/* ---- One case in many ways --------------------------------------------------------------- */

static int instruction_set_runs(const char *name)
{
    return fsm_cpu_has(name) && (!only_instruction_set || strcmp(name, only_instruction_set) == 0);
}

/* The last of those that run here: scalar, unless another one is asked for. */
static const char *plainest_instruction_set(void)
{
    const char *plainest = NULL;
    for (const char *const *name = fsm_instruction_sets(); *name; name++)
        if (instruction_set_runs(*name)) plainest = *name;
    return plainest;
}

static void compare_variant(const struct test_case *test, const struct variant *variant,
                            const struct results *expected, struct results *got)
{
    current_case = test;
    current_variant = variant;
    variants_run++;
    const char *wrong = run_variant(test, variant, got);
    enum fsm_operand_name name;
    ptrdiff_t index;
    if (wrong) {
        report(test, variant, wrong);
    } else if (results_differ(test, expected, got, &name, &index)) {
        char text[200];
        if (name == FSM_OPERANDS)
            snprintf(text, sizeof text, "the summed loss is %a, not %a", got->loss_sum, expected->loss_sum);
        else
            snprintf(text, sizeof text, "operand %d, item %td is %a, not %a (row kind %d)", name, index,
                     (double)real_at(test, got->values[name], index),
                     (double)real_at(test, expected->values[name], index),
                     test->row_kinds[index / item_count(test, name)]);
        report(test, variant, text);
    }
    current_case = NULL;
}

enum effort {
    QUICK = 1,      /* random variants for each instruction set */
    THOROUGH = 4,
    ALIGNMENTS = 5, /* every alignment of x and out besides */
    HEAVY = 6,      /* a large array: one variant on several threads for each, no truth */
};

static void run_case(int subject, int is_double, ptrdiff_t n, ptrdiff_t batch_0, ptrdiff_t batch_1,
                     enum effort effort)
{
    uint64_t seed = (uint64_t)subject << 40 ^ (uint64_t)is_double << 39;
    seed ^= (uint64_t)n << 12 ^ (uint64_t)batch_1;
    struct test_case test = make_case(subjects[subject].operation, is_double, subjects[subject].options, n,
                                      batch_0, batch_1, seed);
    struct results expected = make_results(&test), got = make_results(&test);
    uint64_t state = ~seed;
    static int turn;
    struct variant plain = plain_variant(&test, plainest_instruction_set());
    cases_run++;
    current_case = &test;
    current_variant = &plain;
    variants_run++;
    const char *wrong = run_variant(&test, &plain, &expected);
    if (wrong) report(&test, &plain, wrong);
    if (with_truth && effort != HEAVY) check_truth(&test, &expected);
    uint64_t *digest = &digests[test.operation][is_double];
    *digest = add_to_digest(*digest, &test, &expected);

    for (const char *const *name = fsm_instruction_sets(); *name && with_variants; name++) {
        if (!instruction_set_runs(*name)) continue;
        struct variant variant = plain_variant(&test, *name);
        if (effort == HEAVY) {
            /* Rows, padded rows or columns, in turn; columns are never streamed. */
            int layout = turn++ % (batch_1 > 1000 ? 2 : 3);
            for (int operand = 0; operand < FSM_OPERANDS; operand++) variant.layouts[operand] = layout;
            variant.threads = 2 + turn % 3;
            variant.simplify = 1;
            compare_variant(&test, &variant, &expected, &got);
            continue;
        }
        if (strcmp(*name, plain.instruction_set) != 0) compare_variant(&test, &variant, &expected, &got);
        for (int i = 0; i < (effort == QUICK ? 1 : 4); i++) {
            variant = random_variant(&test, *name, &state);
            compare_variant(&test, &variant, &expected, &got);
        }
        for (int offset = 0; effort == ALIGNMENTS && offset < (int)(64 / item_size(&test, FSM_X)); offset++) {
            variant = plain_variant(&test, *name);
            for (int operand = 0; operand < FSM_OPERANDS; operand++) variant.alignments[operand] = offset;
            variant.alignments[FSM_OUT] = (offset * 5 + 3) % (int)(64 / item_size(&test, FSM_X));
            compare_variant(&test, &variant, &expected, &got);
            variant.in_place = may_run_in_place(&test);
            if (variant.in_place) compare_variant(&test, &variant, &expected, &got);
        }
    }
    free_results(&expected);
    free_results(&got);
    free_case(&test);
}

static void run_length(ptrdiff_t n, ptrdiff_t batch_0, ptrdiff_t batch_1, enum effort effort)
{
    for (int subject = 0; subject < SUBJECTS; subject++)
        for (int is_double = 0; is_double < 2; is_double++)
            run_case(subject, is_double, n, batch_0, batch_1, effort);
}

static void run_quick(void)
{
    static const ptrdiff_t lengths[] = {1,  2,  3,  4,  5,  7,  8,  9,   10,  13,  15,  16,  17,  24,
                                        31, 32, 33, 63, 64, 65, 67, 100, 127, 128, 129, 130, 255, 1000};
    for (size_t i = 0; i < sizeof lengths / sizeof *lengths; i++)
        run_length(lengths[i], lengths[i] > 128 ? 1 : 3, 7, QUICK);
    run_length(4097, 1, 3, QUICK);
    run_length(8200, 1, 2, QUICK);
    run_length(16400, 1, 2, QUICK);
}

static void run_full(void)
{
    static const ptrdiff_t batches[][2] = {{5, 7}, {1, 41}, {23, 1}, {3, 16}, {2, 19}};
    static const ptrdiff_t longer[] = {255, 256, 257, 511, 1000, 1023, 2048, 4095, 4096, 4097,
                                       5000, 8192, 9000, 12289};
    for (ptrdiff_t n = 1; n <= 130; n++) {
        const ptrdiff_t *batch = batches[n % 5];
        int aligned = n == 1 || n == 7 || n == 16 || n == 33 || n == 100 || n == 129;
        run_length(n, batch[0], batch[1], aligned ? ALIGNMENTS : THOROUGH);
    }
    for (size_t i = 0; i < sizeof longer / sizeof *longer; i++)
        run_length(longer[i], 2, longer[i] < 2000 ? 9 : 3, longer[i] == 1000 ? ALIGNMENTS : THOROUGH);
    run_length(1, 1, 1, THOROUGH);
    run_length(10, 1, 1, THOROUGH);
    run_length(5000, 1, 1, THOROUGH);
    run_length(16401, 2, 3, QUICK);
    run_length(100001, 1, 2, QUICK);
}

/* Enough elements for several threads: many short rows, rows in pieces, rows in blocks. */
static void run_large(void)
{
    run_length(3, 150, 151, HEAVY);
    run_length(10, 70, 101, HEAVY);
    run_length(100, 30, 31, HEAVY);
    run_length(300, 16, 17, HEAVY);
    run_length(1000, 9, 10, HEAVY);
    run_length(5000, 3, 5, HEAVY);
    run_length(9000, 1, 7, HEAVY);
    run_length(20000, 1, 9, HEAVY);
    run_length(70001, 1, 1, HEAVY);
    run_length(100001, 1, 3, HEAVY);
}

/* Outputs so large that they are written past the caches. */
static void run_streamed(void)
{
    for (int subject = 0; subject < SUBJECTS; subject++) {
        int is_loss = subjects[subject].operation == FSM_CROSS_ENTROPY;
        if (!is_loss && subjects[subject].operation != FSM_SOFTMAX) continue;
        if (subjects[subject].options != (is_loss ? LABELS | LOSS | GRADIENT : 0)) continue;
        run_case(subject, 0, 1003, 1, 6400, HEAVY);
        run_case(subject, 1, 1003, 1, 3200, HEAVY);
        run_case(subject, 0, 60001, 1, 110, HEAVY);
    }
}

/* ---- What no case has -------------------------------------------------------------------- */

static void expect(int is_right, const char *what)
{
    if (is_right) return;
    if (failures++ < 20) fprintf(stderr, "WRONG: %s\n", what);
}

static void set_line(struct fsm_operand *operand, void *data, ptrdiff_t axis_stride, ptrdiff_t row_stride)
{
    operand->data = data;
    operand->axis_stride = axis_stride;
    operand->strides[0] = row_stride;
}

static struct fsm_job one_dimensional_job(enum fsm_operation operation, ptrdiff_t n, ptrdiff_t rows)
{
    return (struct fsm_job){.operation = operation, .is_double = 1, .n = n, .rows = rows, .dimensions = 1,
                            .shape = {rows}, .grad_scale = 1};
}

/* Exactly known results, whatever the instruction set. */
static void check_plain_truths(void)
{
    enum { LONGEST = 130 };
    double x[LONGEST], out[LONGEST];
    for (ptrdiff_t n = 1; n <= LONGEST; n++) {
        struct fsm_job job = one_dimensional_job(FSM_SOFTMAX, n, 1);
        for (ptrdiff_t i = 0; i < n; i++) x[i] = 0;
        set_line(&job.operands[FSM_X], x, 8, 0);
        set_line(&job.operands[FSM_OUT], out, 8, 0);
        expect(fsm_run(&job) == FSM_DONE, "softmax of equal elements failed");
        for (ptrdiff_t i = 0; i < n; i++) expect(out[i] == 1.0 / (double)n, "softmax of n zeros is 1/n");
        for (ptrdiff_t i = 1; i < n; i++) x[i] = -(double)INFINITY;
        job.operation = FSM_LOG_SOFTMAX;
        expect(fsm_run(&job) == FSM_DONE && out[0] == 0, "log_softmax of a lone element is 0");
        for (ptrdiff_t i = 1; i < n; i++) expect(out[i] == -(double)INFINITY, "an absent element's is -inf");
    }
}

static void check_empty_jobs(void)
{
    for (int operation = 0; operation < OPERATIONS; operation++)
        for (int no_rows = 0; no_rows < 2; no_rows++) {
            ptrdiff_t n = no_rows ? 5 : 0, rows = no_rows ? 0 : 5;
            struct fsm_job job = one_dimensional_job((enum fsm_operation)operation, n, rows);
            for (int name = 0; name < FSM_OPERANDS; name++)
                job.operands[name].data = (char *)16; /* no memory */
            expect(fsm_run(&job) == FSM_DONE, "a job without elements has nothing to do");
        }
}

/* A label outside [0, n) is found wherever it is, in every type that can hold it. */
static void check_bad_labels(void)
{
    enum { ROWS = 37 };
    static const int64_t bad[] = {10, -1, 127, INT8_MIN, 255, INT16_MIN, 65535, INT32_MIN,
                                  UINT32_MAX, INT64_MIN, INT64_MAX};
    for (int type = FSM_INT8; type <= FSM_UINT64; type++)
        for (size_t i = 0; i < sizeof bad / sizeof *bad; i++) {
            char labels[ROWS * 8] = {0};
            int size = 1 << type % 4;
            ptrdiff_t bad_row = (ptrdiff_t)(i * 7 + (size_t)type) % ROWS;
            memcpy(labels + bad_row * size, &bad[i], (size_t)size);
            int64_t held = 0; /* as the type sees it */
            memcpy(&held, &bad[i], (size_t)size);
            if (held == 0) continue;
            struct fsm_job job = one_dimensional_job(FSM_CROSS_ENTROPY, 10, ROWS);
            job.label_type = (enum fsm_label_type)type;
            set_line(&job.operands[FSM_LABELS], labels, 0, size);
            struct fsm_label_check check = fsm_check_labels(&job);
            expect(check.bad_row == bad_row && check.bad_item == 0, "a bad label is found");
        }
}

/* The elements of a broadcast row have one address. */
static void check_huge(void)
{
    const ptrdiff_t n = ((ptrdiff_t)1 << 31) + 12345;
    for (int is_double = 0; is_double < 2; is_double++) {
        double x = 0.5, result = 0;
        float short_x = 0.5f, short_result = 0;
        struct fsm_job job = one_dimensional_job(FSM_LOGSUMEXP, n, 1);
        job.is_double = is_double;
        set_line(&job.operands[FSM_X], is_double ? (void *)&x : (void *)&short_x, 0, 0);
        set_line(&job.operands[FSM_ROW_OUT], is_double ? (void *)&result : (void *)&short_result, 0, 0);
        expect(fsm_run(&job) == FSM_DONE, "a huge row failed");
        double exact = 0.5 + log((double)n), error = (is_double ? result : (double)short_result) - exact;
        expect(fabs(error) < exact * (is_double ? 0x1p-51 : 0x1p-22), "logsumexp of a huge row");
    }
}

/* ---- Several callers ----------------------------------------------------------------------- */

/* Jobs on memory of their own, large and small, each with the result it had alone. */
struct caller {
    pthread_t thread;
    double seconds;
    uint64_t seed;
    long calls, wrong;
};

#define CALLER_JOBS 8

static double now(void)
{
    struct timespec time;
    clock_gettime(CLOCK_MONOTONIC, &time);
    return (double)time.tv_sec + (double)time.tv_nsec * 1e-9;
}

static void *call_again_and_again(void *context)
{
    struct caller *caller = context;
    static const ptrdiff_t shapes[CALLER_JOBS][2] = {{10, 9000}, {1000, 90}, {70001, 1}, {9000, 9},
                                                     {33, 20}, {5, 100}, {1000, 2}, {5000, 40}};
    double *x[CALLER_JOBS], *out[CALLER_JOBS], *expected[CALLER_JOBS];
    for (int j = 0; j < CALLER_JOBS; j++) {
        ptrdiff_t count = shapes[j][0] * shapes[j][1];
        x[j] = malloc((size_t)count * 8);
        out[j] = malloc((size_t)count * 8);
        expected[j] = malloc((size_t)count * 8);
        for (ptrdiff_t i = 0; i < count; i++) x[j][i] = random_unit(&caller->seed) * 20;
    }
    double end = now() + caller->seconds;
    for (int round = 0; round < 3 || now() < end; round++) {
        for (int j = 0; j < CALLER_JOBS; j++) {
            ptrdiff_t n = shapes[j][0], rows = shapes[j][1];
            struct fsm_job job = one_dimensional_job(j % 2 ? FSM_LOG_SOFTMAX : FSM_SOFTMAX, n, rows);
            set_line(&job.operands[FSM_X], x[j], 8, n * 8);
            set_line(&job.operands[FSM_OUT], round ? out[j] : expected[j], 8, n * 8);
            /* The first round runs on one thread, the others on as many as can be had. */
            int before = fsm_limit_calling_thread(round ? 0 : 1);
            if (fsm_run(&job) != FSM_DONE) caller->wrong++;
            fsm_limit_calling_thread(before);
            if (round && memcmp(out[j], expected[j], (size_t)(n * rows) * 8) != 0) caller->wrong++;
            caller->calls++;
        }
    }
    for (int j = 0; j < CALLER_JOBS; j++) {
        free(x[j]);
        free(out[j]);
        free(expected[j]);
    }
    return NULL;
}

static long run_callers(double seconds)
{
    enum { CALLERS = 4 };
    struct caller callers[CALLERS];
    long calls = 0;
    fsm_choose_instruction_set(plainest_instruction_set());
    for (const char *const *name = fsm_instruction_sets(); *name; name++) {
        if (!instruction_set_runs(*name)) continue;
        fsm_choose_instruction_set(*name);
        break;
    }
    fsm_request_threads(3);
    for (int i = 0; i < CALLERS; i++) {
        callers[i] = (struct caller){.seconds = seconds, .seed = (uint64_t)i};
        if (pthread_create(&callers[i].thread, NULL, call_again_and_again, &callers[i]) != 0) exit(2);
    }
    for (int i = 0; i < CALLERS; i++) {
        pthread_join(callers[i].thread, NULL);
        expect(callers[i].wrong == 0, "a call among others gave another result");
        calls += callers[i].calls;
    }
    return calls;
}

int main(int count, char **arguments)
{
    int quick = 0, large = 0, digest_only = 0, huge = 0;
    double stress = -1;
    for (int i = 1; i < count; i++) {
        if (strcmp(arguments[i], "--quick") == 0) quick = 1;
        else if (strcmp(arguments[i], "--large") == 0) large = 1;
        else if (strcmp(arguments[i], "--digest") == 0) digest_only = 1;
        else if (strcmp(arguments[i], "--once") == 0) with_variants = 0;
        else if (strcmp(arguments[i], "--huge") == 0) huge = 1;
        else if (strcmp(arguments[i], "--isa") == 0 && i + 1 < count) only_instruction_set = arguments[++i];
        else if (strcmp(arguments[i], "--stress") == 0 && i + 1 < count) stress = atof(arguments[++i]);
        else {
            fprintf(stderr, "driver [--quick | --large | --huge | --stress SECONDS]"
                            " [--digest] [--once] [--isa NAME]\n");
            return 2;
        }
    }
    with_truth = !digest_only;
    if (!plainest_instruction_set()) {
        fprintf(stderr, "this CPU has no %s\n", only_instruction_set);
        return 2;
    }
#if !defined(__SANITIZE_ADDRESS__) && !defined(__SANITIZE_THREAD__)
    signal(SIGSEGV, report_crash);
    signal(SIGBUS, report_crash);
    signal(SIGILL, report_crash);
    signal(SIGFPE, report_crash);
#endif
    int openmp_limit = 1;
#ifdef _OPENMP
    openmp_limit = omp_get_max_threads();
#endif
    fsm_initialise_threads(0, openmp_limit);
    if (stress >= 0) {
        long calls = run_callers(stress);
        printf("%ld calls from 4 threads, %ld wrong\n", calls, failures);
        return failures != 0;
    }
    for (const char *const *name = fsm_instruction_sets(); *name; name++) {
        if (!instruction_set_runs(*name)) continue;
        fsm_choose_instruction_set(*name);
        check_plain_truths();
        check_empty_jobs();
        if (huge) check_huge();
    }
    check_bad_labels();
    if (huge) {
        printf("rows of more than 2**31 elements: %ld wrong\n", failures);
        return failures != 0;
    }
    map_arenas(quick ? (size_t)4 << 20 : (size_t)128 << 20);
    for (int i = 0; i < OPERATIONS; i++) digests[i][0] = digests[i][1] = EMPTY_DIGEST;
    if (quick) {
        run_quick();
    } else {
        if (!large) run_full();
        run_large();
        run_streamed();
    }
    long calls = digest_only ? 0 : run_callers(0);
    for (int i = 0; i < OPERATIONS; i++)
        for (int is_double = 0; is_double < 2; is_double++)
            printf("%s %s f%d %016llx\n", quick ? "quick" : large ? "large" : "full", operation_names[i],
                   is_double ? 64 : 32, (unsigned long long)digests[i][is_double]);
    if (!digest_only) {
        printf("# instruction sets:");
        for (const char *const *name = fsm_instruction_sets(); *name; name++)
            if (instruction_set_runs(*name)) printf(" %s", *name);
        printf("\n# %ld cases, %ld runs, %ld calls among others, %ld rows examined, threads: %s\n",
               cases_run, variants_run, calls, rows_compared,
               fsm_openmp_runtime() ? fsm_openmp_runtime() : "one");
    }
    if (failures) fprintf(stderr, "%ld WRONG\n", failures);
    return failures != 0;
}
