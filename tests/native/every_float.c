/* exp and log in float32 over every finite input, beside double precision: the worst error
 * of each, in ULP, and where it is. Through the jobs of csrc/fastsoftmax.h alone:
 *   exp          log_softmax_vjp of the row [x, -inf] and the gradient [0, 1] is -e**x, where that is finite
 *   softmax, log_softmax and logsumexp of the row [x, 0], both elements: e**-|x|, ln(1 + e**-|x|)
 *   log          logsumexp of the row [0] with the factor x, over the factors a job may have
 *
 *   every_float [--step N]    every N-th bit pattern only
 *
 * Exit status: 0, 1 where an error is beyond 2 ULP, 2 where the program cannot run. */
#include "fastsoftmax.h"

#include <float.h>
#include <math.h>
#include <pthread.h>
#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

#define COUNT 8192 /* rows in a job: what it reads and writes stays in the first caches */
#define MOST_THREADS 64
#define PROMISE 2.0
/* A job's factors: csrc/fastsoftmax.h. */
#define LEAST_FACTOR 0x1p-32f
#define LARGEST_FACTOR 0x1p32f

enum figure { EXP, SOFTMAX, LOG_SOFTMAX, LOGSUMEXP, LOG, FIGURES };
static const char *const names[FIGURES] = {"exp", "softmax", "log_softmax", "logsumexp", "log"};

struct worst {
    double error;
    float x;
};

/* Line 0 holds the x, line 1 the other element of each row. */
struct buffers {
    float x[COUNT], zeros[COUNT], out[2 * COUNT], row_out[COUNT];
    float pairs[2 * COUNT];
};

static uint64_t step = 1;
static _Atomic uint64_t next_pattern;
static pthread_mutex_t mutex = PTHREAD_MUTEX_INITIALIZER;
static struct worst worst[FIGURES];
static uint64_t inputs;

/* 2**exponent, of a normal number. */
static double power_of_two(int exponent)
{
    uint64_t bits = (uint64_t)(exponent + 1023) << 52;
    double power;
    memcpy(&power, &bits, sizeof power);
    return power;
}

/* In units of float32's spacing at the exact value. */
static double error_of(float got, double exact)
{
    if (isinf(got) || isinf((float)exact)) return got == (float)exact ? 0 : (double)INFINITY;
    uint64_t bits;
    memcpy(&bits, &exact, sizeof bits);
    int exponent = (int)(bits >> 52 & 0x7ff) - 1023;
    if (exponent < FLT_MIN_EXP - 1) exponent = FLT_MIN_EXP - 1;
    double error = fabs((double)got - exact) * power_of_two(FLT_MANT_DIG - 1 - exponent);
    return isnan(error) ? (double)INFINITY : error;
}

static void note(struct worst *found, double error, float x)
{
    if (error > found->error) *found = (struct worst){error, x};
}

static void run(enum fsm_operation operation, ptrdiff_t n, ptrdiff_t rows, const float *x, const float *second,
                ptrdiff_t second_stride, float *out, float *row_out)
{
    struct fsm_job job = {.operation = operation, .n = n, .rows = rows, .dimensions = 1, .shape = {rows}};
    const ptrdiff_t item = sizeof(float);
    job.operands[FSM_X] = (struct fsm_operand){(char *)(uintptr_t)x, COUNT * item, {item}};
    job.operands[FSM_SECOND] = (struct fsm_operand){(char *)(uintptr_t)second, item, {second_stride}};
    job.operands[FSM_OUT] = (struct fsm_operand){(char *)out, COUNT * item, {item}};
    job.operands[FSM_ROW_OUT] = (struct fsm_operand){(char *)row_out, 0, {item}};
    if (fsm_run(&job) == FSM_DONE) return;
    fprintf(stderr, "no memory\n");
    exit(2);
}

static void measure(struct buffers *b, ptrdiff_t rows, struct worst found[FIGURES])
{
    static const float gradient[] = {0, 1};
    float *other = b->pairs + COUNT;
    memcpy(b->pairs, b->x, sizeof b->x);
    for (ptrdiff_t i = 0; i < COUNT; i++) other[i] = -INFINITY;
    run(FSM_LOG_SOFTMAX_VJP, 2, rows, b->pairs, gradient, 0, b->out, NULL);
    double powers[COUNT], logs[COUNT]; /* e**-|x|, ln(1 + e**-|x|) */
    for (ptrdiff_t i = 0; i < rows; i++) {
        double power = exp((double)b->x[i]);
        if (power <= (double)FLT_MAX) note(&found[EXP], error_of(-b->out[i], power), b->x[i]);
        powers[i] = b->x[i] > 0 ? 1 / power : power;
        logs[i] = log1p(powers[i]);
    }

    for (ptrdiff_t i = 0; i < COUNT; i++) other[i] = 0;
    for (enum fsm_operation operation = FSM_SOFTMAX; operation <= FSM_LOG_SOFTMAX; operation++) {
        run(operation, 2, rows, b->pairs, NULL, 0, b->out, NULL);
        for (ptrdiff_t i = 0; i < rows; i++) {
            float x = b->x[i];
            double larger = operation == FSM_SOFTMAX ? 1 / (1 + powers[i]) : -logs[i];
            double smaller = operation == FSM_SOFTMAX ? powers[i] / (1 + powers[i]) : -fabs((double)x) - logs[i];
            struct worst *figure = &found[operation == FSM_SOFTMAX ? SOFTMAX : LOG_SOFTMAX];
            note(figure, error_of(b->out[i], x > 0 ? larger : smaller), x);
            note(figure, error_of(b->out[COUNT + i], x > 0 ? smaller : larger), x);
        }
    }

    run(FSM_LOGSUMEXP, 2, rows, b->pairs, NULL, 0, NULL, b->row_out);
    for (ptrdiff_t i = 0; i < rows; i++)
        note(&found[LOGSUMEXP], error_of(b->row_out[i], fmax((double)b->x[i], 0) + logs[i]), b->x[i]);

    ptrdiff_t factors = 0;
    for (ptrdiff_t i = 0; i < rows; i++)
        if (b->x[i] >= LEAST_FACTOR && b->x[i] <= LARGEST_FACTOR) b->pairs[factors++] = b->x[i];
    if (factors == 0) return;
    run(FSM_LOGSUMEXP, 1, factors, b->zeros, b->pairs, sizeof(float), NULL, b->row_out);
    for (ptrdiff_t i = 0; i < factors; i++)
        note(&found[LOG], error_of(b->row_out[i], log((double)b->pairs[i])), b->pairs[i]);
}

static void *work(void *context)
{
    (void)context;
    struct buffers *buffers = calloc(1, sizeof *buffers);
    if (!buffers) exit(2);
    struct worst found[FIGURES] = {{0, 0}};
    uint64_t done = 0;
    for (;;) {
        uint64_t first = atomic_fetch_add(&next_pattern, COUNT * step);
        if (first > UINT32_MAX) break;
        ptrdiff_t rows = 0;
        for (uint64_t pattern = first; pattern < first + COUNT * step && pattern <= UINT32_MAX; pattern += step) {
            uint32_t bits = (uint32_t)pattern;
            if ((bits & 0x7f800000) != 0x7f800000) memcpy(&buffers->x[rows++], &bits, sizeof bits);
        }
        done += (uint64_t)rows;
        if (rows) measure(buffers, rows, found);
    }
    pthread_mutex_lock(&mutex);
    inputs += done;
    for (int figure = 0; figure < FIGURES; figure++) note(&worst[figure], found[figure].error, found[figure].x);
    pthread_mutex_unlock(&mutex);
    free(buffers);
    return NULL;
}

int main(int count, char **arguments)
{
    if (count == 3 && strcmp(arguments[1], "--step") == 0) step = strtoull(arguments[2], NULL, 10);
    if (step == 0 || (count != 1 && count != 3)) return 2;
    const char *const *instruction_set = fsm_instruction_sets();
    while (!fsm_cpu_has(*instruction_set)) instruction_set++;
    fsm_choose_instruction_set(*instruction_set);
    fsm_initialise_threads(0, 1);
    fsm_request_threads(1);

    int threads = fsm_processor_count();
    if (threads > MOST_THREADS) threads = MOST_THREADS;
    pthread_t started[MOST_THREADS];
    for (int i = 0; i < threads; i++)
        if (pthread_create(&started[i], NULL, work, NULL) != 0) return 2;
    for (int i = 0; i < threads; i++) pthread_join(started[i], NULL);

    int is_right = 1;
    printf("# %llu finite float32 numbers, %s:", (unsigned long long)inputs, *instruction_set);
    for (int figure = 0; figure < FIGURES; figure++) {
        printf("%s %s %.4f ULP at %a", figure ? "," : "", names[figure], worst[figure].error, (double)worst[figure].x);
        is_right &= worst[figure].error <= PROMISE;
    }
    printf("\n");
    if (!is_right) fprintf(stderr, "an error is beyond %g ULP\n", PROMISE);
    return !is_right;
}
