#define _DEFAULT_SOURCE /* MAP_ANONYMOUS */
#include "cases.h"

#include <float.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>
#if defined(__x86_64__)
#include <xmmintrin.h>
#endif

/* ---- Random numbers: splitmix64 --------------------------------------------------------- */

uint64_t random_bits(uint64_t *state)
{
    uint64_t z = *state += UINT64_C(0x9e3779b97f4a7c15);
    z = (z ^ z >> 30) * UINT64_C(0xbf58476d1ce4e5b9);
    z = (z ^ z >> 27) * UINT64_C(0x94d049bb133111eb);
    return z ^ z >> 31;
}

double random_unit(uint64_t *state) { return (double)(random_bits(state) >> 11) * 0x1p-53; }

ptrdiff_t random_below(uint64_t *state, ptrdiff_t bound)
{
    return (ptrdiff_t)(random_bits(state) >> 1) % bound;
}

/* Near enough to normal; the sums of a few multiples of 2**-53 are exact. */
static double random_normal(uint64_t *state)
{
    double sum = 0;
    for (int i = 0; i < 4; i++) sum += random_unit(state);
    return (sum - 2) * 1.75;
}

/* ---- What a case consists of ----------------------------------------------------------- */

static int is_real(enum fsm_operand_name name)
{
    return name == FSM_X || name == FSM_OUT || name == FSM_SECOND || name == FSM_HESSIAN ||
           name == FSM_ROW_OUT || name == FSM_SIGN_OUT;
}

ptrdiff_t item_size(const struct test_case *test, enum fsm_operand_name name)
{
    return is_real(name) && !test->is_double ? 4 : 8;
}

ptrdiff_t item_count(const struct test_case *test, enum fsm_operand_name name)
{
    int selects = test->operation == FSM_SELECT;
    switch (name) {
    case FSM_X:
    case FSM_SECOND:
    case FSM_HESSIAN: return test->n;
    case FSM_OUT: return selects ? test->n_selected : test->n;
    case FSM_LABELS: return selects ? test->n_selected : 1;
    default: return 1;
    }
}

int is_output(const struct test_case *test, enum fsm_operand_name name)
{
    int is_loss = test->operation == FSM_CROSS_ENTROPY;
    switch (name) {
    case FSM_OUT: return is_loss ? (test->options & GRADIENT) != 0 : test->operation != FSM_LOGSUMEXP;
    case FSM_HESSIAN: return test->operation == FSM_GRAD_HESS;
    case FSM_ROW_OUT: return is_loss ? (test->options & LOSS) != 0 : test->operation == FSM_LOGSUMEXP;
    case FSM_SIGN_OUT: return (test->options & SIGN) != 0;
    default: return 0;
    }
}

int may_run_in_place(const struct test_case *test)
{
    return is_output(test, FSM_OUT) && test->operation != FSM_SELECT;
}

static ptrdiff_t label_size(enum fsm_label_type type) { return (ptrdiff_t)1 << (type % 4); }

int label_type_fits(const struct test_case *test, enum fsm_label_type type)
{
    int is_signed = type < FSM_UINT8;
    if (test->options & IGNORE && test->ignore_index < 0 && !is_signed) return 0;
    int bits = 8 * (int)label_size(type) - is_signed;
    return bits >= 63 || test->n - 1 <= ((int64_t)1 << bits) - 1;
}

static void set_real(char *values, int is_double, ptrdiff_t i, double value)
{
    if (is_double) ((double *)(void *)values)[i] = value;
    else ((float *)(void *)values)[i] = (float)value;
}

/* Any bit pattern; a finite one has not all of its exponent's bits set. */
static void set_bits(char *values, int is_double, ptrdiff_t i, uint64_t bits, int finite)
{
    uint32_t short_bits = (uint32_t)bits;
    if (finite && (bits & UINT64_C(0x7ff0000000000000)) == UINT64_C(0x7ff0000000000000))
        bits ^= UINT64_C(0x0010000000000000);
    if (finite && (short_bits & 0x7f800000) == 0x7f800000) short_bits ^= 0x00800000;
    if (is_double) memcpy(values + 8 * i, &bits, 8);
    else memcpy(values + 4 * i, &short_bits, 4);
}

static void fill_row(const struct test_case *test, char *x, enum row_kind kind, uint64_t *state)
{
    const double infinity = (double)__builtin_inf(), nan = __builtin_nan("");
    const double largest = test->is_double ? DBL_MAX : (double)FLT_MAX;
    const double smallest = test->is_double ? 0x1p-1074 : 0x1p-149;
    ptrdiff_t n = test->n;
    double level = random_normal(state) * 8;
    for (ptrdiff_t i = 0; i < n; i++) {
        double value = random_normal(state);
        uint64_t bits = random_bits(state);
        switch (kind) {
        case NORMAL_1: break;
        case NORMAL_4: value *= 4; break;
        case NORMAL_20: value *= 20; break;
        case WIDE: value = (double)(bits >> 40) * 0x1p-24 * 100 - 50 + 30; break;
        case OFFSET_100: value += 100; break;
        case OFFSET_MINUS_1000: value = value * 3 - 1000; break;
        case OFFSET_MILLION: value = value * 4 + 1e6; break;
        case LARGEST: value = largest * (1 - (double)(bits % 8) * 0x1p-22); break;
        case DOMINATED: value = value * 3 - (double)(bits % 64); break;
        case EQUAL: value = level; break;
        case TO_SUBNORMAL: value = -(double)(bits >> 40) * 0x1p-24 * (test->is_double ? 760 : 110); break;
        case TINY: value = (double)(bits % 64) * smallest * (bits & 64 ? -1 : 1); break;
        case TIES: value = (double)(bits % 4); break;
        case SOME_ABSENT: value = bits % 3 == 0 ? -infinity : value * 4; break;
        case ALL_ABSENT: value = -infinity; break;
        case WITH_NAN:
        case WITH_INFINITY:
        case WITH_BOTH: value *= 4; break;
        case FINITE_BITS:
        case ANY_BITS: set_bits(x, test->is_double, i, bits, kind == FINITE_BITS); continue;
        case ROW_KINDS: break;
        }
        set_real(x, test->is_double, i, value);
    }
    if (kind == DOMINATED) set_real(x, test->is_double, random_below(state, n), 60);
    if (kind == WITH_NAN || kind == WITH_BOTH) set_real(x, test->is_double, random_below(state, n), nan);
    if (kind == WITH_INFINITY || kind == WITH_BOTH)
        set_real(x, test->is_double, random_below(state, n), infinity);
}

/* What an operation takes that is not logits: probabilities and log-probabilities. */
static void fill_vjp_row(const struct test_case *test, char *x, enum row_kind kind, uint64_t *state)
{
    double step = 2.0 / (double)test->n;
    fill_row(test, x, kind, state);
    if (kind > OFFSET_MILLION) return;
    for (ptrdiff_t i = 0; i < test->n; i++)
        set_real(x, test->is_double, i,
                 test->operation == FSM_SOFTMAX_VJP ? random_unit(state) * step : -random_unit(state) * 20);
}

static void fill_second_row(const struct test_case *test, char *second, enum row_kind kind, uint64_t *state)
{
    double step = 2.0 / (double)test->n;
    for (ptrdiff_t i = 0; i < test->n; i++) {
        double value = random_normal(state);
        uint64_t bits = random_bits(state);
        if (test->operation == FSM_CROSS_ENTROPY || test->operation == FSM_GRAD_HESS)
            value = bits % 5 == 0 ? 0 : random_unit(state) * step;
        if (test->operation == FSM_LOGSUMEXP) {
            if (bits % 7 == 0) value = 0;
            if (!(test->options & SIGN) && value < 0) value = -value;
        }
        /* Factors are of moderate size by the contract. */
        if (kind == ANY_BITS && test->operation != FSM_LOGSUMEXP) set_bits(second, test->is_double, i, bits, 0);
        else set_real(second, test->is_double, i, value);
    }
}

static char *allocate(ptrdiff_t items, ptrdiff_t size)
{
    void *memory = malloc((size_t)(items * size));
    if (!memory) {
        fprintf(stderr, "no memory for a test case\n");
        exit(2);
    }
    return memory;
}

struct test_case make_case(enum fsm_operation operation, int is_double, unsigned options, ptrdiff_t n,
                           ptrdiff_t batch_0, ptrdiff_t batch_1, uint64_t seed)
{
    struct test_case test = {
        .operation = operation,
        .is_double = is_double,
        .options = options,
        .n = n,
        .batch = {batch_0, batch_1},
        .rows = batch_0 * batch_1,
        .n_selected = operation == FSM_SELECT ? 1 + n % 3 : 1,
        .label_smoothing = options & SMOOTHING ? 0.125 + (double)(n % 3) / 10 : 0,
        .z_loss = options & Z_LOSS ? 0.01 : 0,
        .grad_scale = operation == FSM_CROSS_ENTROPY ? 0.75 : 1,
        .factor = 2,
        .min_hess = n % 2 ? 0 : 0x1p-20,
        .ignore_index = n % 2 ? 0 : -100,
    };
    uint64_t state = seed;
    for (int skipped = 0; skipped < 3; skipped++) random_bits(&state);
    ptrdiff_t size = is_double ? 8 : 4;
    test.row_kinds = (int *)(void *)allocate(test.rows, sizeof *test.row_kinds);
    int first_kind = (int)random_below(&state, ROW_KINDS);
    char *x = test.inputs[FSM_X] = allocate(test.rows * n, size);
    for (ptrdiff_t row = 0; row < test.rows; row++) {
        int kind = test.row_kinds[row] = (int)((first_kind + row) % ROW_KINDS);
        if (operation == FSM_SOFTMAX_VJP || operation == FSM_LOG_SOFTMAX_VJP)
            fill_vjp_row(&test, x + row * n * size, (enum row_kind)kind, &state);
        else fill_row(&test, x + row * n * size, (enum row_kind)kind, &state);
    }
    if (options & SECOND) {
        char *second = test.inputs[FSM_SECOND] = allocate(test.rows * n, size);
        for (ptrdiff_t row = 0; row < test.rows; row++)
            fill_second_row(&test, second + row * n * size, (enum row_kind)test.row_kinds[row], &state);
    }
    if (options & LABELS) {
        ptrdiff_t count = test.rows * test.n_selected;
        int64_t *labels = (int64_t *)(void *)(test.inputs[FSM_LABELS] = allocate(count, 8));
        for (ptrdiff_t i = 0; i < count; i++) {
            labels[i] = random_below(&state, n);
            if (options & IGNORE && random_below(&state, 8) == 0) labels[i] = test.ignore_index;
        }
    }
    static const double weights[] = {1, 0.5, 2, 0, -1, 1.25, 1, 1};
    static const double temperatures[] = {1, 0.5, 2, 0.1, 3.7, 0.001, 100, 0.7, 1e-42, 1e300};
    for (enum fsm_operand_name name = FSM_SAMPLE_WEIGHT; name <= FSM_TEMPERATURE; name++) {
        static const unsigned needs[] = {SAMPLE_WEIGHT, GRAD_LOSS, TEMPERATURE};
        if (!(options & needs[name - FSM_SAMPLE_WEIGHT])) continue;
        test.inputs[name] = allocate(test.rows, 8);
        for (ptrdiff_t row = 0; row < test.rows; row++) {
            double value = random_normal(&state);
            if (name == FSM_SAMPLE_WEIGHT) value = weights[random_below(&state, 8)];
            if (name == FSM_TEMPERATURE) value = temperatures[random_below(&state, 10)];
            set_real(test.inputs[name], 1, row, value);
        }
    }
    if (options & CLASS_WEIGHT) {
        test.class_weight = allocate(n, size);
        for (ptrdiff_t i = 0; i < n; i++)
            set_real(test.class_weight, is_double, i,
                     i == n / 2 && n > 2 ? 0 : 0.1 + 2 * random_unit(&state));
    }
    return test;
}

void free_case(struct test_case *test)
{
    for (int name = 0; name < FSM_OPERANDS; name++) free(test->inputs[name]);
    free(test->class_weight);
    free(test->row_kinds);
}

struct results make_results(const struct test_case *test)
{
    struct results results = {.loss_sum = 0};
    for (int name = 0; name < FSM_OPERANDS; name++)
        if (is_output(test, (enum fsm_operand_name)name))
            results.values[name] = allocate(test->rows * item_count(test, (enum fsm_operand_name)name),
                                            item_size(test, (enum fsm_operand_name)name));
    return results;
}

void free_results(struct results *results)
{
    for (int name = 0; name < FSM_OPERANDS; name++) free(results->values[name]);
}

/* ---- Memory between guard pages ------------------------------------------------------ */

/* One for each operand, and one for the class weights. */
static struct arena {
    char *begin, *end;
} arenas[FSM_OPERANDS + 1];

/* Beside and between an operand's items lies this: a NaN, should a kernel read it, and no
 * label; and it must be there still after the run. */
#define FILLER 0xff
/* Bytes of filler before and after the operand that are looked at. */
#define MARGIN 256

void map_arenas(size_t bytes)
{
    size_t page = (size_t)sysconf(_SC_PAGESIZE);
    bytes = (bytes + 2 * MARGIN + page - 1) / page * page;
    for (int i = 0; i <= FSM_OPERANDS; i++) {
        const int flags = MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE;
        char *memory = mmap(NULL, bytes + 2 * page, PROT_NONE, flags, -1, 0);
        if (memory == MAP_FAILED || mprotect(memory + page, bytes, PROT_READ | PROT_WRITE) != 0) {
            perror("mmap");
            exit(2);
        }
        arenas[i] = (struct arena){memory + page, memory + page + bytes};
    }
}

/* How an array of (batch 0, batch 1, axis) lies in memory. */
static const struct layout {
    const char *name;
    int order[3]; /* outermost axis first; 2 is the axis of the row */
    int step;     /* items from one innermost item to the next */
    int pad;      /* items between the lines of each axis */
    int reversed; /* bit mask of axes */
} layouts[] = {
    {"rows", {0, 1, 2}, 1, 0, 0},
    {"padded rows", {0, 1, 2}, 1, 3, 0},
    {"columns", {2, 0, 1}, 1, 0, 0},
    {"middle axis", {0, 2, 1}, 1, 0, 0},
    {"rows, batch transposed", {1, 0, 2}, 1, 1, 0},
    {"columns, batch transposed", {2, 1, 0}, 1, 0, 0},
    {"padded columns", {2, 0, 1}, 1, 5, 0},
    {"rows backwards", {0, 1, 2}, 1, 0, 4},
    {"last row first", {0, 1, 2}, 1, 2, 3},
    {"columns, all reversed", {2, 0, 1}, 1, 0, 7},
    {"every third", {0, 1, 2}, 3, 1, 0},
    {"every second column, batch 1 reversed", {0, 2, 1}, 2, 0, 2},
    {"batch 1 outermost", {1, 2, 0}, 1, 1, 1},
};
#define LAYOUTS ((int)(sizeof layouts / sizeof *layouts))

int layout_count(void) { return LAYOUTS; }

/* An array in its place: filler from `low` to `high` but for the items. */
struct placed {
    ptrdiff_t item, shape[3], strides[3];
    char *first, *low, *high;
};

static struct placed place(const struct arena *arena, ptrdiff_t item, ptrdiff_t batch_0, ptrdiff_t batch_1,
                           ptrdiff_t items, int layout_number, int alignment)
{
    const struct layout *layout = &layouts[layout_number];
    struct placed placed = {.item = item, .shape = {batch_0, batch_1, items}};
    ptrdiff_t stride = item * layout->step, extent = item, before_first = 0;
    for (int i = 2; i >= 0; i--) {
        int axis = layout->order[i];
        ptrdiff_t reach = stride * (placed.shape[axis] - 1);
        int reversed = layout->reversed >> axis & 1;
        placed.strides[axis] = reversed ? -stride : stride;
        if (reversed) before_first += reach;
        extent += reach;
        stride = stride * placed.shape[axis] + item * layout->pad;
    }
    if (extent + 64 + 2 * MARGIN > arena->end - arena->begin) {
        fprintf(stderr, "an operand of %td bytes is larger than its arena\n", extent);
        exit(2);
    }
    char *begin = alignment == AT_END ? arena->end - extent : arena->begin + alignment * item;
    placed.first = begin + before_first;
    placed.low = begin - arena->begin < MARGIN ? arena->begin : begin - MARGIN;
    placed.high = arena->end - begin - extent < MARGIN ? arena->end : begin + extent + MARGIN;
    memset(placed.low, FILLER, (size_t)(placed.high - placed.low));
    return placed;
}

enum direction { PUT, TAKE };

/* Items between a line in memory and a contiguous one. */
#define COPY_LINE(type)                                                                            \
    for (ptrdiff_t i = 0; i < count; i++)                                                          \
        memcpy(to + i * to_stride, from + i * from_stride, sizeof(type))
static void copy_line(char *to, ptrdiff_t to_stride, const char *from, ptrdiff_t from_stride, ptrdiff_t count,
                      ptrdiff_t item)
{
    if (to_stride == item && from_stride == item) memcpy(to, from, (size_t)(count * item));
    else if (item == 8) COPY_LINE(uint64_t);
    else if (item == 4) COPY_LINE(uint32_t);
    else if (item == 2) COPY_LINE(uint16_t);
    else COPY_LINE(uint8_t);
}

/* Between logical order and the place. */
static void transfer(const struct placed *placed, char *values, enum direction direction)
{
    ptrdiff_t count = placed->shape[2], item = placed->item, stride = placed->strides[2];
    for (ptrdiff_t a = 0; a < placed->shape[0]; a++)
        for (ptrdiff_t b = 0; b < placed->shape[1]; b++, values += count * item) {
            char *at = placed->first + a * placed->strides[0] + b * placed->strides[1];
            if (direction == PUT) copy_line(at, stride, values, item, count, item);
            else copy_line(values, item, at, stride, count, item);
        }
}

/* Takes the items out, puts filler in their place, and tells whether all is filler then. */
static int take_and_check(const struct placed *placed, char *values, char *all_filler)
{
    transfer(placed, values, TAKE);
    ptrdiff_t items = placed->shape[0] * placed->shape[1] * placed->shape[2];
    memset(all_filler, FILLER, (size_t)(items * placed->item));
    transfer(placed, all_filler, PUT);
    return placed->low[0] == (char)FILLER &&
           memcmp(placed->low, placed->low + 1, (size_t)(placed->high - placed->low - 1)) == 0;
}

/* ---- Running --------------------------------------------------------------------------- */

/* Arguments of all operands alike, a plain run being the first of the kind. */
struct variant plain_variant(const struct test_case *test, const char *instruction_set)
{
    struct variant variant = {.instruction_set = instruction_set, .label_type = FSM_INT64, .threads = 1};
    (void)test;
    for (int name = 0; name < FSM_OPERANDS; name++) variant.alignments[name] = AT_END;
    return variant;
}

struct variant random_variant(const struct test_case *test, const char *instruction_set, uint64_t *state)
{
    struct variant variant = {.instruction_set = instruction_set};
    /* Half of the time all of the elements lie alike, as in most calls. */
    int alike = (int)random_below(state, 2), common = (int)random_below(state, LAYOUTS);
    for (int name = 0; name < FSM_OPERANDS; name++) {
        variant.layouts[name] = alike ? common : (int)random_below(state, LAYOUTS);
        ptrdiff_t offsets = 64 / item_size(test, (enum fsm_operand_name)name);
        variant.alignments[name] = random_below(state, 2) ? AT_END : (int)random_below(state, offsets);
    }
    variant.in_place = may_run_in_place(test) && random_below(state, 3) == 0;
    variant.extra_axes = random_below(state, 4) == 0;
    /* A summed loss, and what is found wrong with labels, follow the given order. */
    variant.simplify = (int)random_below(state, test->options & (SUM | LABELS) ? 2 : 3);
    do variant.label_type = (enum fsm_label_type)random_below(state, 8);
    while (!label_type_fits(test, variant.label_type));
    variant.threads = 1 + (int)random_below(state, 4);
    return variant;
}

static void put_labels(const struct test_case *test, const struct placed *placed, ptrdiff_t count,
                       char *scratch)
{
    const int64_t *labels = (const int64_t *)(const void *)test->inputs[FSM_LABELS];
    for (ptrdiff_t i = 0; i < count; i++) {
        uint64_t bits = (uint64_t)labels[i];
        uint8_t byte = (uint8_t)bits;
        uint16_t half = (uint16_t)bits;
        uint32_t word = (uint32_t)bits;
        const void *from = placed->item == 1 ? (const void *)&byte : placed->item == 2 ? (const void *)&half :
                           placed->item == 4 ? (const void *)&word : (const void *)&bits;
        memcpy(scratch + i * placed->item, from, (size_t)placed->item);
    }
    transfer(placed, scratch, PUT);
}

/* What fsm_check_labels must find: every label is good, and some rows are ignored. */
static const char *check_labels(const struct test_case *test, struct fsm_job *job)
{
    struct fsm_label_check check = fsm_check_labels(job);
    if (check.bad_row != -1 || check.bad_item != -1) return "good labels are taken for bad ones";
    if (test->operation == FSM_SELECT) return NULL;
    ptrdiff_t counted = 0;
    double weight_sum = 0;
    for (ptrdiff_t row = 0; row < test->rows; row++) {
        double weight = 1;
        if (test->inputs[FSM_SAMPLE_WEIGHT])
            weight = ((double *)(void *)test->inputs[FSM_SAMPLE_WEIGHT])[row];
        int64_t label = ((int64_t *)(void *)test->inputs[FSM_LABELS])[row];
        if (weight == 0 || (test->options & IGNORE && label == test->ignore_index)) continue;
        if (test->class_weight) {
            double class_weight = test->is_double ? ((double *)(void *)test->class_weight)[label]
                                                  : (double)((float *)(void *)test->class_weight)[label];
            if (class_weight == 0 && test->label_smoothing == 0) continue;
            weight *= class_weight;
        }
        counted++;
        weight_sum += weight;
    }
    if (check.counted != counted) return "another number of rows counts";
    if (check.weight_sum != weight_sum) return "another sum of weights";
    return NULL;
}

static unsigned floating_point_modes(void)
{
#if defined(__x86_64__)
    return _mm_getcsr() & ~0x3fu; /* all but the exception flags */
#else
    return 0;
#endif
}

const char *run_variant(const struct test_case *test, const struct variant *variant, struct results *results)
{
    struct fsm_job job;
    /* What a job does not need it must not read. */
    memset(&job, 0xa5, sizeof job);
    job.operation = test->operation;
    job.is_double = test->is_double;
    job.n = test->n;
    job.rows = test->rows;
    job.has_ignore_index = (test->options & IGNORE) != 0;
    job.label_smoothing = test->label_smoothing;
    job.z_loss = test->z_loss;
    job.grad_scale = test->grad_scale;
    job.sum_losses = (test->options & SUM) != 0;
    job.class_weight = NULL;
    if (job.has_ignore_index) job.ignore_index = test->ignore_index;
    if (test->operation == FSM_GRAD_HESS) {
        job.factor = test->factor;
        job.min_hess = test->min_hess;
    }
    if (test->operation == FSM_SELECT) job.n_selected = test->n_selected;

    /* The batch's axes, with others of length 1 (of any stride) where asked for. */
    int axis_of[2] = {0, 1};
    job.dimensions = 2;
    if (variant->extra_axes) {
        job.dimensions = 5;
        axis_of[0] = 1;
        axis_of[1] = 3;
        for (int d = 0; d < 5; d++) job.shape[d] = 1;
    }
    for (int d = 0; d < 2; d++) job.shape[axis_of[d]] = test->batch[d];

    ptrdiff_t most_items = test->rows * (test->n > test->n_selected ? test->n : test->n_selected);
    char *scratch = allocate(most_items, 8), *taken = allocate(most_items, 8);
    struct placed placed[FSM_OPERANDS + 1] = {0};
    for (int number = 0; number < FSM_OPERANDS; number++) {
        enum fsm_operand_name name = (enum fsm_operand_name)number;
        struct fsm_operand *operand = &job.operands[name];
        operand->data = NULL;
        int output = is_output(test, name);
        if (!test->inputs[name] && !output) continue;
        if (name == FSM_OUT && variant->in_place) {
            *operand = job.operands[FSM_X];
            continue;
        }
        ptrdiff_t item = name == FSM_LABELS ? label_size(variant->label_type) : item_size(test, name);
        placed[name] = place(&arenas[name], item, test->batch[0], test->batch[1], item_count(test, name),
                             variant->layouts[name], variant->alignments[name]);
        if (name == FSM_LABELS) {
            job.label_type = variant->label_type;
            put_labels(test, &placed[name], test->rows * item_count(test, name), scratch);
        } else if (!output) {
            transfer(&placed[name], test->inputs[name], PUT);
        }
        operand->data = placed[name].first;
        operand->axis_stride = placed[name].strides[2];
        for (int d = 0; d < 2; d++) operand->strides[axis_of[d]] = placed[name].strides[d];
    }
    if (test->class_weight) {
        struct placed *weights = &placed[FSM_OPERANDS];
        *weights = place(&arenas[FSM_OPERANDS], item_size(test, FSM_X), 1, 1, test->n, 0, AT_END);
        transfer(weights, test->class_weight, PUT);
        job.class_weight = weights->first;
    }
    if (variant->simplify) fsm_simplify_batch(&job, variant->simplify == 2);

    const char *wrong = NULL;
    if (test->inputs[FSM_LABELS]) wrong = check_labels(test, &job);
    unsigned modes = floating_point_modes();
    fsm_request_threads(variant->threads);
    if (!fsm_choose_instruction_set(variant->instruction_set)) wrong = "the instruction set is not to be had";
    if (!wrong && fsm_run(&job) != FSM_DONE) wrong = "no memory";
    if (!wrong && floating_point_modes() != modes) wrong = "the floating-point environment has changed";

    for (int number = 0; number <= FSM_OPERANDS && !wrong; number++) {
        enum fsm_operand_name name = (enum fsm_operand_name)number;
        if (!placed[name].first) continue;
        if (name == FSM_X && variant->in_place) name = FSM_OUT;
        if (!take_and_check(&placed[number], taken, scratch)) wrong = "written beside an operand";
        size_t bytes = (size_t)(placed[number].shape[2] * test->rows * placed[number].item);
        const char *given = name == FSM_OPERANDS ? test->class_weight : test->inputs[name];
        if (name == FSM_OPERANDS) bytes = (size_t)(test->n * placed[number].item);
        if (name < FSM_OPERANDS && is_output(test, name)) memcpy(results->values[name], taken, bytes);
        else if (name != FSM_LABELS && memcmp(taken, given, bytes) != 0) wrong = "an input has changed";
    }
    results->loss_sum = job.sum_losses ? job.loss_sum : 0;
    free(scratch);
    free(taken);
    return wrong;
}

/* ---- Comparing ------------------------------------------------------------------------- */

/* A value as an integer, every NaN the same. */
static uint64_t bits_of(const char *values, ptrdiff_t item, ptrdiff_t i)
{
    if (item == 8) {
        uint64_t bits;
        memcpy(&bits, values + 8 * i, 8);
        return (bits << 1) > UINT64_C(0xffe0000000000000) ? UINT64_C(0x7ff8000000000000) : bits;
    }
    uint32_t bits;
    memcpy(&bits, values + 4 * i, 4);
    return (bits << 1) > 0xff000000 ? 0x7fc00000 : bits;
}

int results_differ(const struct test_case *test, const struct results *a, const struct results *b,
                   enum fsm_operand_name *name, ptrdiff_t *index)
{
    for (int number = 0; number < FSM_OPERANDS; number++) {
        *name = (enum fsm_operand_name)number;
        if (!a->values[number]) continue;
        ptrdiff_t item = item_size(test, *name), count = test->rows * item_count(test, *name);
        if (memcmp(a->values[number], b->values[number], (size_t)(count * item)) == 0) continue;
        for (*index = 0; *index < count; ++*index)
            if (bits_of(a->values[number], item, *index) != bits_of(b->values[number], item, *index))
                return 1;
    }
    *name = FSM_OPERANDS; /* the summed loss */
    *index = 0;
    return bits_of((const char *)&a->loss_sum, 8, 0) != bits_of((const char *)&b->loss_sum, 8, 0);
}

static uint64_t add_word(uint64_t digest, uint64_t word) { return (digest ^ word) * UINT64_C(1099511628211); }

uint64_t add_to_digest(uint64_t digest, const struct test_case *test, const struct results *results)
{
    for (int number = 0; number < FSM_OPERANDS; number++) {
        enum fsm_operand_name name = (enum fsm_operand_name)number;
        if (!results->values[number]) continue;
        ptrdiff_t item = item_size(test, name), count = test->rows * item_count(test, name);
        for (ptrdiff_t i = 0; i < count; i++)
            digest = add_word(digest, bits_of(results->values[number], item, i));
    }
    /* The high bits of a word reach only the high bits of the product: fold them back. */
    digest ^= digest >> 32;
    return add_word(digest, bits_of((const char *)&results->loss_sum, 8, 0));
}

void describe(char *text, size_t size, const struct test_case *test, const struct variant *variant)
{
    static const char *const operations[] = {"softmax", "log_softmax", "logsumexp", "select",
                                             "cross_entropy", "grad_hess", "softmax_vjp", "log_softmax_vjp"};
    static const char *const options[] = {
        "temperature", "second", "sign", "labels", "class_weight", "sample_weight", "ignore",
        "smoothing", "z_loss", "grad_loss", "sum", "loss", "gradient",
    };
    int length = snprintf(text, size, "%s f%d n=%td batch=(%td, %td)", operations[test->operation],
                          test->is_double ? 64 : 32, test->n, test->batch[0], test->batch[1]);
    for (int i = 0; i < 13; i++)
        if (test->options >> i & 1 && length < (int)size)
            length += snprintf(text + length, size - (size_t)length, " %s", options[i]);
    if (!variant || length >= (int)size) return;
    length += snprintf(text + length, size - (size_t)length, " | %s, threads=%d, simplify=%d%s%s",
                       variant->instruction_set, variant->threads, variant->simplify,
                       variant->in_place ? ", in place" : "", variant->extra_axes ? ", extra axes" : "");
    for (int name = 0; name < FSM_OPERANDS && length < (int)size; name++)
        if (test->inputs[name] || is_output(test, (enum fsm_operand_name)name))
            length += snprintf(text + length, size - (size_t)length, "; %d: %s at %d", name,
                               layouts[variant->layouts[name]].name, variant->alignments[name]);
}
