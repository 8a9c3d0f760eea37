/* Between the driver of a job (run.c) and the kernels of one dtype and instruction set.
 *
 * The kernels work on groups of rows, each at most as many as a vector has lanes:
 * vertical, with an element of each row in a lane, or horizontal, row by row with lanes of
 * neighbouring elements. Which of the two is a matter of speed alone: the order of every
 * sum, and so every bit, is fixed by sums.h and the blocks below for both.
 *
 * A group goes through three phases over the blocks of its rows: the max, the sum of
 * exponentials, the writing. rows() runs them for every group of a range; the single
 * phases serve rows that are so long and few that their blocks are shared out instead. */
#ifndef FASTSOFTMAX_KERNELS_H
#define FASTSOFTMAX_KERNELS_H

#include "fastsoftmax.h"

/* Rows longer than this are summed block by block. A block of the widest vertical group
 * (64 bytes a step) takes 256 KiB: it stays in a core's L2 cache. */
#define BLOCK ((ptrdiff_t)4096)

/* Where nothing but exponentials is summed, rows longer than LONG_ROW have blocks of up to LONG_BLOCK elements (512 KiB
 * of a vertical group), each of which is summed relative to its own max (blocks.h). What there is to do for one takes
 * as long as 15 lines of 64 bytes: with blocks of half the length, rows of 32,000 float32 take 1.02 to 1.05 of the
 * time; rows of 5000 in blocks of 2500 took 1.08. */
#define LONG_ROW ((ptrdiff_t)16384)
#define LONG_BLOCK ((ptrdiff_t)8192)

/* All but the last block have this many elements, whole cache lines; of four or a multiple of four blocks, as a rule,
 * so that threads have as many. */
static inline ptrdiff_t long_block_length(ptrdiff_t n)
{
    ptrdiff_t blocks = ((n - 1) / LONG_BLOCK / 4 + 1) * 4;
    return ((n - 1) / blocks / 64 + 1) * 64;
}

/* Groups of a batch, at most; and those that are under way at once where groups overlap. */
#define BATCH_GROUPS 8
#define OVERLAPPED_GROUPS 3

/* Bytes of a panel's columns in each line, at one index along the axis: a page at most. */
#define PANEL_LINE_BYTES ((ptrdiff_t)4096)

/* What the driver found out about a job, the same for all of its threads. */
struct plan {
    const struct fsm_job *job;
    int vertical;
    enum fsm_operation operation;
    unsigned operands; /* a bit, 1 << name, for each that the job has */
    int is_scaled, is_weighted; /* logits by a temperature, exponentials by factors */
    int has_dense_targets;      /* every class has a target, not the label alone */
    int has_uniform_targets;    /* the same, but for the label's (then has_dense_targets too) */
    int reads_targets;          /* dense ones that are not uniform: they are made, or given, element by element */
    ptrdiff_t blocks, block_length; /* of a row: how many, and elements of each but the last one */
    int sums_by_block;     /* of rows that have several, each relative to its own max: see blocks.h */
    int in_place;          /* vertical groups whose rows are neighbours stay where they lie: see long_columns.h */
    int overlaps;          /* horizontal groups go through their phases together: see overlap.h */
    int overlaps_rows;     /* of blocks: rows overlap as well, as what waits to be written stays in the caches */
    int streamed;          /* outputs of horizontal groups go past the caches */
    int writes_panels;     /* elements are written and lie as panels do; else they are scattered by group */
    int streams_panels;    /* the outputs of panels go past the caches */
    int fetches_panels;    /* the next panel is asked for while one is summed */
    ptrdiff_t skew;        /* the first group has so many rows less: the next ones' outputs are aligned */
    ptrdiff_t group_rows;  /* at most */
    ptrdiff_t ahead;       /* reals from a row of x to that of the next group, fetched where groups do not overlap */
    ptrdiff_t strip_bytes; /* of one strip of scratch memory */
    ptrdiff_t waiting_bytes;  /* of a streamed row's exponentials, behind the strips */
    ptrdiff_t waiting_groups; /* of whose rows there are some at once */
    ptrdiff_t batch_groups;        /* at most BATCH_GROUPS: they go through each phase one after the other, or together
                                    * where they stay in_place */
    ptrdiff_t panel_groups;        /* read together, and written where writes_panels: see panel.h; 0: none are */
    ptrdiff_t group_scratch_bytes; /* of each of them */
    ptrdiff_t blocks_bytes, blocks_at; /* of what is kept of a group's blocks; from a thread's scratch memory to it */
    ptrdiff_t scratch_bytes;       /* of a thread */
};

/* What the strips in a group's scratch memory are for; behind them all is room for the whole rows that wait. */
enum strip_use { STRIP_X, STRIP_SECOND, STRIP_HESSIAN, WHOLE_ROWS };

static inline int has(const struct plan *plan, enum fsm_operand_name name) { return plan->operands >> name & 1; }

static inline int writes_elements(const struct plan *plan)
{
    return has(plan, FSM_OUT) && plan->operation != FSM_SELECT;
}

/* The gradient through softmax alone asks for no exponential. */
static inline int needs_max(const struct plan *plan) { return plan->operation != FSM_SOFTMAX_VJP; }

struct group; /* one group's state: opaque memory of group_bytes, aligned to 64 */

/* A phase of blocks [first, end) of a group. */
typedef void blocks_function(const struct plan *plan, struct group *group, ptrdiff_t first, ptrdiff_t end,
                             void *scratch);

struct kernels {
    ptrdiff_t lanes;
    /* Rows below these lengths go in vertical groups: any number of them (but a single one), or enough (and twice as
     * long where no elements are written): see run.c. */
    ptrdiff_t short_row, transposed_row;
    int overlap; /* whether horizontal groups can */
    int streams; /* whether there are stores that go past the caches */
    size_t group_bytes;
    ptrdiff_t block_fields; /* reals that are kept of a block, for each row */
    /* Rows [first, last); writes their losses to `losses` where the job sums them. */
    void (*rows)(const struct plan *plan, ptrdiff_t first, ptrdiff_t last, void *losses, void *scratch);
    /* A group's rows; what is to be kept of their blocks goes to `blocks`. */
    void (*begin)(const struct plan *plan, struct group *group, ptrdiff_t first, ptrdiff_t last, void *blocks);
    blocks_function *max_of_blocks; /* not where sums go by block */
    void (*end_max_of_blocks)(const struct plan *plan, struct group *group);
    blocks_function *sum_of_blocks;
    void (*end_sum_of_blocks)(const struct plan *plan, struct group *group, void *losses);
    blocks_function *write_blocks;
};

/* Set by dispatch.c, each for float32 and float64. */
extern const struct kernels *chosen_kernels[2], *narrow_kernels[2];
/* A core's; 0 or less where the system does not tell. */
extern ptrdiff_t second_level_cache_bytes;

/* Bytes from an operand's first row to the row of this number. */
static inline ptrdiff_t row_offset(const struct fsm_job *job, const struct fsm_operand *operand, ptrdiff_t row)
{
    if (job->dimensions == 1) return row * operand->strides[0];
    ptrdiff_t offset = 0;
    for (int d = job->dimensions - 1; d >= 0; d--) {
        offset += row % job->shape[d] * operand->strides[d];
        row /= job->shape[d];
    }
    return offset;
}

#endif
