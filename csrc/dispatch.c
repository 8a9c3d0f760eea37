/* Which instruction set runs: the compiled ones, best first, each with its CPU test. */
#include "kernels.h"

#include <string.h>

#if defined(__x86_64__) || defined(_M_X64)
extern const struct kernels kernels_f32_avx512, kernels_f64_avx512, kernels_f32_avx2, kernels_f64_avx2;

/* Exactly the features that setup.py compiles with; the test covers the registers that the
 * operating system saves, too. */
static int has_avx512(void)
{
    return __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512dq") &&
           __builtin_cpu_supports("avx512bw") && __builtin_cpu_supports("avx512vl") &&
           __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma");
}
static int has_avx2(void) { return __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma"); }
#endif

#if defined(__aarch64__) || defined(_M_ARM64)
extern const struct kernels kernels_f32_neon, kernels_f64_neon;
#endif

extern const struct kernels kernels_f32_scalar, kernels_f64_scalar;
static int always(void) { return 1; }

static const struct {
    const char *name;
    int (*supported)(void);
    const struct kernels *kernels[2];
} instruction_sets[] = {
#if defined(__x86_64__) || defined(_M_X64)
    {"avx512", has_avx512, {&kernels_f32_avx512, &kernels_f64_avx512}},
    {"avx2", has_avx2, {&kernels_f32_avx2, &kernels_f64_avx2}},
#endif
#if defined(__aarch64__) || defined(_M_ARM64)
    {"neon", always, {&kernels_f32_neon, &kernels_f64_neon}},
#endif
    {"scalar", always, {&kernels_f32_scalar, &kernels_f64_scalar}},
};
#define COUNT ((int)(sizeof instruction_sets / sizeof *instruction_sets))

const struct kernels *chosen_kernels[2];

const char *const *fsm_instruction_sets(void)
{
    static const char *names[COUNT + 1];
    for (int i = 0; i < COUNT; i++) names[i] = instruction_sets[i].name;
    return names;
}

static int find(const char *name)
{
    for (int i = 0; i < COUNT; i++)
        if (strcmp(instruction_sets[i].name, name) == 0) return i;
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
    for (int is_double = 0; is_double < 2; is_double++)
        chosen_kernels[is_double] = instruction_sets[find(instruction_set)].kernels[is_double];
    return 1;
}
