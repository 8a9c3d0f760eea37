/* Stands in for GNU's OpenMP runtime in ThreadSanitizer builds. libgomp is not instrumented,
 * so its barriers are invisible to the sanitizer and every correct program seems to race;
 * here a team is started and joined with pthreads, which it understands. csrc/parallel.c is
 * compiled as ever, by GCC with -fopenmp: only what it calls is replaced. */
#include <omp.h>
#include <pthread.h>
#include <stdlib.h>

static _Thread_local int thread_number, team_size = 1, most_threads = 4;

struct member {
    pthread_t thread;
    void (*work)(void *);
    void *context;
    int number, size;
};

static void *run_member(void *context)
{
    struct member *member = context;
    thread_number = member->number;
    team_size = member->size;
    member->work(member->context);
    return NULL;
}

/* What GCC makes of `#pragma omp parallel num_threads(size)`. */
void GOMP_parallel(void (*work)(void *), void *context, unsigned size, unsigned flags);
void GOMP_parallel(void (*work)(void *), void *context, unsigned size, unsigned flags)
{
    (void)flags;
    struct member *members = calloc(size, sizeof *members);
    if (!members) abort();
    for (unsigned i = 1; i < size; i++) {
        members[i] = (struct member){.work = work, .context = context, .number = (int)i, .size = (int)size};
        if (pthread_create(&members[i].thread, NULL, run_member, &members[i]) != 0) abort();
    }
    int outer_number = thread_number, outer_size = team_size;
    thread_number = 0;
    team_size = (int)size;
    work(context);
    thread_number = outer_number;
    team_size = outer_size;
    for (unsigned i = 1; i < size; i++) pthread_join(members[i].thread, NULL);
    free(members);
}

int omp_get_thread_num(void) { return thread_number; }
int omp_get_num_threads(void) { return team_size; }
int omp_in_parallel(void) { return team_size > 1; }
int omp_get_max_threads(void) { return most_threads; }
void omp_set_num_threads(int threads) { most_threads = threads; }
int omp_get_thread_limit(void) { return 64; }
int omp_get_num_procs(void) { return 4; }
