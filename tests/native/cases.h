/* Test cases over the contract in csrc/fastsoftmax.h, for driver.c and fuzz.c.
 *
 * A case is one operation with its options and its inputs in logical order: rows in the C
 * order of a batch of two axes, each row contiguous. A variant is one way to run it: which
 * instruction set, how every operand lies in memory, how many threads. The results come
 * back in logical order, so those of all variants must have the same bytes.
 *
 * Inputs are made of integers alone (own generator, exact conversions): the same on every
 * machine and with every compiler. */
#ifndef CASES_H
#define CASES_H

#include "fastsoftmax.h"

enum option {
    TEMPERATURE = 1,
    SECOND = 2,        /* b, the label probabilities, or the incoming gradient */
    SIGN = 4,
    LABELS = 8,
    CLASS_WEIGHT = 16,
    SAMPLE_WEIGHT = 32,
    IGNORE = 64,
    SMOOTHING = 128,
    Z_LOSS = 256,
    GRAD_LOSS = 512,
    SUM = 1024,
    LOSS = 2048,
    GRADIENT = 4096,
};

struct test_case {
    enum fsm_operation operation;
    int is_double;
    unsigned options;
    ptrdiff_t n, batch[2], rows, n_selected;
    double label_smoothing, z_loss, grad_scale, factor, min_hess;
    int64_t ignore_index;
    /* Logical arrays: operands absent from the case are NULL. Labels are int64_t here. */
    char *inputs[FSM_OPERANDS];
    char *class_weight;
    int *row_kinds; /* of x */
};

/* Rows of x come in kinds; those from FIRST_SPECIAL_KIND on hold something not finite. */
enum row_kind {
    NORMAL_1, NORMAL_4, NORMAL_20, WIDE, OFFSET_100, OFFSET_MINUS_1000, OFFSET_MILLION, LARGEST, DOMINATED,
    EQUAL, TO_SUBNORMAL, TINY, TIES, FINITE_BITS,
    FIRST_SPECIAL_KIND, SOME_ABSENT = FIRST_SPECIAL_KIND, ALL_ABSENT, WITH_NAN, WITH_INFINITY, WITH_BOTH,
    ANY_BITS,
    ROW_KINDS,
};

/* Where an operand begins and ends: flush with one of the guard pages, or this many items
 * after a 64-byte boundary. */
#define AT_END (-1)
#define AT_BEGIN 0

struct variant {
    const char *instruction_set;
    int layouts[FSM_OPERANDS];
    int alignments[FSM_OPERANDS];
    int in_place;      /* out is x */
    int simplify;      /* 0: not at all, 1: fsm_simplify_batch, 2: and it may reorder */
    int extra_axes;    /* axes of length 1 between the batch's */
    enum fsm_label_type label_type;
    int threads;
};

struct results {
    char *values[FSM_OPERANDS]; /* NULL where not an output of the case */
    double loss_sum;
};

uint64_t random_bits(uint64_t *state);
double random_unit(uint64_t *state); /* [0, 1) */
ptrdiff_t random_below(uint64_t *state, ptrdiff_t bound);

ptrdiff_t item_size(const struct test_case *test, enum fsm_operand_name name);
ptrdiff_t item_count(const struct test_case *test, enum fsm_operand_name name); /* in a row */
int is_output(const struct test_case *test, enum fsm_operand_name name);
int may_run_in_place(const struct test_case *test);
int label_type_fits(const struct test_case *test, enum fsm_label_type type);

int layout_count(void);

struct test_case make_case(enum fsm_operation operation, int is_double, unsigned options, ptrdiff_t n,
                           ptrdiff_t batch_0, ptrdiff_t batch_1, uint64_t seed);
void free_case(struct test_case *test);

struct variant plain_variant(const struct test_case *test, const char *instruction_set);
struct variant random_variant(const struct test_case *test, const char *instruction_set, uint64_t *state);

struct results make_results(const struct test_case *test);
void free_results(struct results *results);

/* Memory for every operand between guard pages; `bytes` is what the largest operand takes. */
void map_arenas(size_t bytes);

/* Runs the case; NULL, or what was wrong (a write beside an operand, an input changed ...). */
const char *run_variant(const struct test_case *test, const struct variant *variant, struct results *results);

/* The first difference, NaNs of any kind being equal: 0 where there is none. */
int results_differ(const struct test_case *test, const struct results *a, const struct results *b,
                   enum fsm_operand_name *name, ptrdiff_t *index);

/* FNV-1a over the values as integers, every NaN as one and the same. */
uint64_t add_to_digest(uint64_t digest, const struct test_case *test, const struct results *results);
#define EMPTY_DIGEST UINT64_C(14695981039346656037)

void describe(char *text, size_t size, const struct test_case *test, const struct variant *variant);

#endif
