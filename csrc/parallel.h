/* Sharing work out among threads. */
#ifndef FASTSOFTMAX_PARALLEL_H
#define FASTSOFTMAX_PARALLEL_H

#include <stddef.h>

/* Items [first, last) of the work, run by thread number `thread`. */
typedef void work_function(void *context, ptrdiff_t first, ptrdiff_t last, int thread);

/* A team for one job: how many threads it has, the calling one included. Give it back. */
int claim_team(int wanted);
void release_team(int team);

/* Does all of [0, count), run by run. */
void share_out(int team, ptrdiff_t count, work_function *work, void *context);

#endif
