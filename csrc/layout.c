/* The batch axes of a job: the fewest that say where every row lies. */
#include "kernels.h"

static void move_axis(struct fsm_job *job, int from, int to)
{
    job->shape[to] = job->shape[from];
    for (int name = 0; name < FSM_OPERANDS; name++)
        if (job->operands[name].data) job->operands[name].strides[to] = job->operands[name].strides[from];
}

static void swap_axes(struct fsm_job *job, int a, int b)
{
    ptrdiff_t size = job->shape[a];
    job->shape[a] = job->shape[b];
    job->shape[b] = size;
    for (int name = 0; name < FSM_OPERANDS; name++) {
        struct fsm_operand *operand = &job->operands[name];
        if (!operand->data) continue;
        ptrdiff_t stride = operand->strides[a];
        operand->strides[a] = operand->strides[b];
        operand->strides[b] = stride;
    }
}

static ptrdiff_t magnitude(ptrdiff_t stride) { return stride < 0 ? -stride : stride; }

/* The two axes, b right after a, can be walked as one. */
static int are_one(const struct fsm_job *job, int a, int b)
{
    for (int name = 0; name < FSM_OPERANDS; name++) {
        const struct fsm_operand *operand = &job->operands[name];
        if (operand->data && operand->strides[a] != job->shape[b] * operand->strides[b]) return 0;
    }
    return 1;
}

void fsm_simplify_batch(struct fsm_job *job, int may_reorder)
{
    int kept = 0;
    for (int d = 0; d < job->dimensions; d++)
        if (job->shape[d] != 1) move_axis(job, d, kept++);
    const ptrdiff_t *strides = job->operands[FSM_X].strides;
    if (may_reorder)
        for (int d = 1; d < kept; d++)
            for (int e = d; e > 0 && magnitude(strides[e - 1]) < magnitude(strides[e]); e--) swap_axes(job, e - 1, e);
    int merged = 0;
    for (int d = 0; d < kept; d++) {
        if (merged > 0 && are_one(job, merged - 1, d)) {
            ptrdiff_t size = job->shape[merged - 1] * job->shape[d];
            move_axis(job, d, merged - 1);
            job->shape[merged - 1] = size;
        } else {
            move_axis(job, d, merged++);
        }
    }
    job->dimensions = merged;
    if (merged == 0) { /* a single row */
        job->dimensions = 1;
        job->shape[0] = 1;
        for (int name = 0; name < FSM_OPERANDS; name++) job->operands[name].strides[0] = 0;
    }
}
