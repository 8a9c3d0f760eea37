/* The only file that knows OpenMP, and all there is to know about threads.
 *
 * A call runs on the calling thread alone wherever more could do harm: in the child of a
 * fork (the parent's workers are not there, and GNU's runtime would wait for them for
 * ever), inside somebody's parallel region, and while another call's team is at work (two
 * callers would otherwise fight for the same processors). */
#if defined(__linux__) && !defined(_GNU_SOURCE)
#define _GNU_SOURCE /* sched_getaffinity */
#endif
#include "parallel.h"
#include "fastsoftmax.h"

#include <stdatomic.h>
#include <stdlib.h>

#ifdef _OPENMP
#include <omp.h>
#endif
#ifndef _WIN32
#include <pthread.h>
#include <unistd.h>
#endif
#ifdef __linux__
#include <sched.h>
#endif

static atomic_int teams_at_work;
static atomic_int requested;       /* set_num_threads; 0 where never called */
static int environment_limit;      /* OMP_NUM_THREADS and the container's quota, at import */
static _Thread_local int calling_thread_limit; /* num_threads; 0 outside */

#ifdef _OPENMP
static int openmp_default = 1; /* what OpenMP's own limit is while nobody changed it */
static _Thread_local int raised_default; /* the same where fsm_request_threads raised it */
static int in_forked_child;
static _Thread_local int proved_team = 1; /* the team that the calling thread led last */
#endif

int fsm_processor_count(void)
{
#ifdef __linux__
    cpu_set_t affinity;
    if (sched_getaffinity(0, sizeof affinity, &affinity) == 0) return CPU_COUNT(&affinity);
#endif
#ifdef _OPENMP
    return omp_get_num_procs();
#else
    return 1;
#endif
}

const char *fsm_openmp_runtime(void)
{
#if !defined(_OPENMP)
    return NULL;
#elif defined(__clang__)
    return "libomp";
#else
    return "libgomp";
#endif
}

#if defined(_OPENMP) && !defined(_WIN32)
static void note_fork(void) { in_forked_child = 1; }
#endif

void fsm_initialise_threads(int limit, int openmp_limit)
{
    environment_limit = limit;
#ifdef _OPENMP
    openmp_default = openmp_limit;
#ifndef _WIN32
    static int registered;
    if (!registered) pthread_atfork(NULL, NULL, note_fork);
    registered = 1;
#endif
#else
    (void)openmp_limit;
#endif
}

#ifdef _OPENMP
static int unchanged_openmp_limit(void) { return raised_default ? raised_default : openmp_default; }
#endif

/* Where more threads are asked for than OpenMP's own limit, that is raised for the calling
 * thread: else a later limit equal to the default could not be told from the default. (It is the
 * default again where somebody took the raised one back: threadpoolctl at the end of a block.) */
void fsm_request_threads(int threads)
{
    atomic_store(&requested, threads);
#ifdef _OPENMP
    int limit = omp_get_max_threads();
    if (threads <= limit || (limit != unchanged_openmp_limit() && limit != openmp_default)) return;
    omp_set_num_threads(threads);
    raised_default = threads;
#endif
}

int fsm_limit_calling_thread(int threads)
{
    int before = calling_thread_limit;
    calling_thread_limit = threads;
    return before;
}

int fsm_thread_limit(void)
{
#ifdef _OPENMP
    if (in_forked_child) return 1;
    int limit = atomic_load(&requested);
    if (limit == 0) {
        limit = fsm_processor_count();
        if (environment_limit && environment_limit < limit) limit = environment_limit;
    }
    if (calling_thread_limit && calling_thread_limit < limit) limit = calling_thread_limit;
    /* Somebody (threadpoolctl, omp_set_num_threads) changed the calling thread's limit. */
    int openmp_limit = omp_get_max_threads();
    if (openmp_limit != unchanged_openmp_limit() && openmp_limit < limit) limit = openmp_limit;
    if (omp_get_thread_limit() < limit) limit = omp_get_thread_limit();
    if (omp_in_parallel()) limit = 1;
    return limit > 0 ? limit : 1;
#else
    return 1;
#endif
}

#if defined(_OPENMP) && !defined(_WIN32)
/* GNU's runtime ends the process where it cannot start a thread. So before a calling thread
 * leads a larger team than the last one, of which the runtime keeps the threads and no others,
 * as many threads are started here, all at once. */
struct rehearsal {
    pthread_mutex_t mutex;
    pthread_cond_t over;
    int is_over;
};

static void *wait_for_the_others(void *context)
{
    struct rehearsal *rehearsal = context;
    pthread_mutex_lock(&rehearsal->mutex);
    while (!rehearsal->is_over) pthread_cond_wait(&rehearsal->over, &rehearsal->mutex);
    pthread_mutex_unlock(&rehearsal->mutex);
    return NULL;
}

static int rehearse(int team)
{
    struct rehearsal rehearsal = {PTHREAD_MUTEX_INITIALIZER, PTHREAD_COND_INITIALIZER, 0};
    pthread_t *threads = malloc(sizeof *threads * (size_t)team);
    if (!threads) return 1;
    int started = 0;
    while (started < team - 1 && pthread_create(&threads[started], NULL, wait_for_the_others, &rehearsal) == 0)
        started++;
    pthread_mutex_lock(&rehearsal.mutex);
    rehearsal.is_over = 1;
    pthread_cond_broadcast(&rehearsal.over);
    pthread_mutex_unlock(&rehearsal.mutex);
    for (int i = 0; i < started; i++) pthread_join(threads[i], NULL);
    free(threads);
    return started + 1;
}
#endif

int claim_team(int wanted)
{
#ifdef _OPENMP
    if (wanted <= 1 || atomic_fetch_add(&teams_at_work, 1) > 0) {
        if (wanted > 1) atomic_fetch_sub(&teams_at_work, 1);
        return 1;
    }
#ifndef _WIN32
    if (wanted > proved_team) {
        int started = rehearse(wanted);
        /* Where not all can be had the runtime may have no memory of its own left either. */
        if (started < wanted) wanted = proved_team;
    }
#endif
    if (wanted <= 1) atomic_fetch_sub(&teams_at_work, 1);
    return wanted;
#else
    (void)wanted;
    return 1;
#endif
}

void release_team(int team)
{
    if (team > 1) atomic_fetch_sub(&teams_at_work, 1);
}

#ifdef _OPENMP
/* Each thread begins with a run of its own, the same from call to call, so that it finds again
 * what its caches hold. It takes the run in steps, and then helps with the others' runs: who
 * comes late finds the work done. (OpenMP's region still ends only when every thread has come.)
 * A step is what is left of the thread's own run but for a quarter of the items after the first, as
 * the groups of rows at its ends do not overlap with others (overlap.h); but no less than an eighth of
 * a run, as it takes of others' runs, whose own threads may come yet. (Four rows of 32,000 float64 at
 * once take 0.92 of the time of three and one, all of any run at once 0.97 to 1.05.) */
#define MOST_RUNS 64

struct run_of_items {
    _Alignas(64) _Atomic ptrdiff_t next; /* a cache line each */
    ptrdiff_t last;
};

static void cut_into_runs(struct run_of_items *runs, ptrdiff_t number, ptrdiff_t count)
{
    ptrdiff_t share = count / number, extra = count % number, first = 0;
    for (ptrdiff_t r = 0; r < number; r++) {
        atomic_init(&runs[r].next, first);
        first += share + (r < extra);
        runs[r].last = first;
    }
}

/* The next step of a run; returns its length, 0 where nothing is left. */
static ptrdiff_t take_step(struct run_of_items *run, ptrdiff_t least, int is_own, ptrdiff_t *first)
{
    *first = atomic_load_explicit(&run->next, memory_order_relaxed);
    for (;;) {
        ptrdiff_t left = run->last - *first, step = is_own ? left - (left - 1) / 4 : least;
        if (step < least) step = least;
        if (step > left) step = left;
        if (step <= 0 || atomic_compare_exchange_weak_explicit(&run->next, first, *first + step, memory_order_relaxed,
                                                               memory_order_relaxed))
            return step;
    }
}

static void work_off(struct run_of_items *runs, ptrdiff_t number, ptrdiff_t least_step, int thread,
                     work_function *work, void *context)
{
    for (ptrdiff_t turn = 0; turn < number; turn++) {
        struct run_of_items *run = &runs[(thread + turn) % number];
        for (ptrdiff_t first, step; (step = take_step(run, least_step, turn == 0, &first)) > 0;)
            work(context, first, first + step, thread);
    }
}
#endif

void share_out(int team, ptrdiff_t count, work_function *work, void *context)
{
#ifdef _OPENMP
    if (team > 1 && count > 1) {
        struct run_of_items runs[MOST_RUNS];
        ptrdiff_t number = team < MOST_RUNS ? team : MOST_RUNS;
        ptrdiff_t least_step = count / number / 8;
        if (least_step < 1) least_step = 1;
        cut_into_runs(runs, number, count);
#pragma omp parallel num_threads(team)
        work_off(runs, number, least_step, omp_get_thread_num(), work, context);
        proved_team = team;
        return;
    }
#endif
    (void)team;
    if (count > 0) work(context, 0, count, 0);
}
