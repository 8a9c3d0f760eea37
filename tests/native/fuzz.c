/* libFuzzer target: a job of any operation, options, shape, strides and values from the
 * bytes, on operands with guard pages at both ends; every instruction set and layout must
 * give what the plainest run gives. Run by long.py. */
#include "cases.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

int LLVMFuzzerInitialize(int *count, char ***arguments);
int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

static uint8_t take_byte(const uint8_t **data, size_t *size)
{
    if (*size == 0) return 0;
    --*size;
    return *(*data)++;
}

int LLVMFuzzerInitialize(int *count, char ***arguments)
{
    (void)count;
    (void)arguments;
    fsm_initialise_threads(0, 1);
    map_arenas((size_t)1 << 21);
    return 0;
}

/* The options that mean something for the operation. */
static unsigned fitting_options(enum fsm_operation operation, unsigned options)
{
    const unsigned weights = CLASS_WEIGHT | SAMPLE_WEIGHT;
    switch (operation) {
    case FSM_SOFTMAX:
    case FSM_LOG_SOFTMAX: return options & TEMPERATURE;
    case FSM_LOGSUMEXP: return options & SECOND ? options & (SECOND | SIGN) : 0;
    case FSM_SELECT: return LABELS | (options & TEMPERATURE);
    case FSM_CROSS_ENTROPY:
        options &= SECOND | LABELS | weights | IGNORE | SMOOTHING | Z_LOSS | GRAD_LOSS | SUM | LOSS |
                   GRADIENT;
        options = options & SECOND ? options & ~(unsigned)(LABELS | IGNORE) : options | LABELS;
        if (options & SUM) options &= ~(unsigned)LOSS;
        return options & (SUM | LOSS | GRADIENT) ? options : options | LOSS;
    case FSM_GRAD_HESS:
        options &= SECOND | weights;
        return options & SECOND ? options & ~(unsigned)CLASS_WEIGHT : options | LABELS;
    default: return SECOND;
    }
}

static void fail(const struct test_case *test, const struct variant *variant, const char *what)
{
    char text[1500];
    describe(text, sizeof text, test, variant);
    fprintf(stderr, "WRONG: %s\n  %s\n", what, text);
    abort();
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    uint8_t shape_byte = take_byte(&data, &size);
    enum fsm_operation operation = (enum fsm_operation)(take_byte(&data, &size) % 8);
    unsigned options = (unsigned)take_byte(&data, &size) | (unsigned)take_byte(&data, &size) << 8;
    ptrdiff_t n = 1 + take_byte(&data, &size) % 70;
    ptrdiff_t batch_0 = 1 + shape_byte % 3, batch_1 = 1 + shape_byte / 3 % 9;
    /* Now and then columns enough for panels, longer rows, and a row of several blocks, alike or each to itself. */
    if (shape_byte >= 228 && shape_byte < 240) batch_1 *= 8;
    if (shape_byte >= 240) n *= 4;
    if (shape_byte == 254) n = 16384 + n;
    if (shape_byte == 255) n = 3900 + n * 4;
    if (shape_byte >= 254) batch_0 = batch_1 = 1;
    int is_double = take_byte(&data, &size) & 1;
    uint64_t seed = take_byte(&data, &size);
    struct test_case test =
        make_case(operation, is_double, fitting_options(operation, options), n, batch_0, batch_1, seed);

    /* What is left of the bytes replaces values. */
    ptrdiff_t item = item_size(&test, FSM_X), places = test.rows * n;
    for (; size > (size_t)item + 2; data += item + 2, size -= (size_t)item + 2) {
        enum fsm_operand_name name = data[0] & 1 && test.inputs[FSM_SECOND] ? FSM_SECOND : FSM_X;
        memcpy(test.inputs[name] + (data[0] / 2 * 256 + data[1]) % places * item, data + 2, (size_t)item);
    }
    for (; size > 0; size--) seed = seed * 257 + *data++;

    const char *const *names = fsm_instruction_sets();
    struct results expected = make_results(&test), got = make_results(&test);
    struct variant variant = plain_variant(&test, "scalar");
    const char *wrong = run_variant(&test, &variant, &expected);
    if (wrong) fail(&test, &variant, wrong);
    for (; *names; names++) {
        if (!fsm_cpu_has(*names)) continue;
        variant = random_variant(&test, *names, &seed);
        wrong = run_variant(&test, &variant, &got);
        enum fsm_operand_name name;
        ptrdiff_t index;
        if (wrong) fail(&test, &variant, wrong);
        if (results_differ(&test, &expected, &got, &name, &index)) fail(&test, &variant, "another result");
    }
    free_results(&expected);
    free_results(&got);
    free_case(&test);
    return 0;
}
