/* Which instruction set runs: the compiled ones, best first, each with its CPU test. */
#include "kernels.h"

#include <string.h>
#ifndef _WIN32
#include <unistd.h>
#endif

#if defined(__x86_64__) || defined(_M_X64)
extern const struct kernels kernels_f32_avx512, kernels_f64_avx512, kernels_f32_avx2, kernels_f64_avx2;

/* Exactly the features that setup.py compiles with; the test covers the registers that the
 * operating system saves, too. (Not every C runtime asks the CPU before it is first needed here.) */
static int has_avx512(void)
{
    __builtin_cpu_init();
    return __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512dq") &&
           __builtin_cpu_supports("avx512bw") && __builtin_cpu_supports("avx512vl") &&
           __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma");
}
static int has_avx2(void)
{
    __builtin_cpu_init();
    return __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma");
}
#endif

#if defined(__aarch64__) || defined(_M_ARM64)
extern const struct kernels kernels_f32_neon, kernels_f64_neon;
#endif

extern const struct kernels kernels_f32_scalar, kernels_f64_scalar;
static int always(void) { return 1; }

struct instruction_set {
    int (*supported)(void);
    const struct kernels *kernels[2];
    const struct kernels *narrow[2]; /* for few rows: with vectors half as wide where the CPU has them */
};

#if defined(__x86_64__) || defined(_M_X64)
static const char *const names[] = {"avx512", "avx2", "scalar", NULL};
static const struct instruction_set instruction_sets[] = {
    {has_avx512, {&kernels_f32_avx512, &kernels_f64_avx512}, {&kernels_f32_avx2, &kernels_f64_avx2}},
    {has_avx2, {&kernels_f32_avx2, &kernels_f64_avx2}, {&kernels_f32_avx2, &kernels_f64_avx2}},
    {always, {&kernels_f32_scalar, &kernels_f64_scalar}, {&kernels_f32_scalar, &kernels_f64_scalar}},
};
#elif defined(__aarch64__) || defined(_M_ARM64)
static const char *const names[] = {"neon", "scalar", NULL};
static const struct instruction_set instruction_sets[] = {
    {always, {&kernels_f32_neon, &kernels_f64_neon}, {&kernels_f32_neon, &kernels_f64_neon}},
    {always, {&kernels_f32_scalar, &kernels_f64_scalar}, {&kernels_f32_scalar, &kernels_f64_scalar}},
};
#else
static const char *const names[] = {"scalar", NULL};
static const struct instruction_set instruction_sets[] = {
    {always, {&kernels_f32_scalar, &kernels_f64_scalar}, {&kernels_f32_scalar, &kernels_f64_scalar}},
};
#endif

const struct kernels *chosen_kernels[2], *narrow_kernels[2];
ptrdiff_t second_level_cache_bytes;

const char *const *fsm_instruction_sets(void) { return names; }

static int find(const char *name)
{
    for (int i = 0; names[i]; i++)
        if (strcmp(names[i], name) == 0) return i;
    return -1;
}

int fsm_cpu_has(const char *instruction_set)
{
    int i = find(instruction_set);
    return i >= 0 && instruction_sets[i].supported();
}

int fsm_choose_instruction_set(const char *instruction_set)
{
    if (!fsm_cpu_has(instruction_set)) return 0;
    const struct instruction_set *chosen = &instruction_sets[find(instruction_set)];
    for (int is_double = 0; is_double < 2; is_double++) {
        chosen_kernels[is_double] = chosen->kernels[is_double];
        narrow_kernels[is_double] = chosen->narrow[is_double];
    }
#ifdef _SC_LEVEL2_CACHE_SIZE
    second_level_cache_bytes = sysconf(_SC_LEVEL2_CACHE_SIZE);
#endif
    return 1;
}
