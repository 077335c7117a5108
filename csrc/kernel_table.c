/* kernel_table.c: one row a kernel, slowest first. */

#include "tile.h"

static const struct kernel *const table[] = {
    &refmoe_portable,
#if defined(__x86_64__)
    &refmoe_avx2,
    &refmoe_avx512,
#endif
#if defined(__aarch64__)
    &refmoe_neon,
#endif
};

int refmoe_kernel_count(void) { return (int)(sizeof table / sizeof *table); }

static const struct kernel *row(int index)
{
    return index >= 0 && index < refmoe_kernel_count() ? table[index] : NULL;
}

const char *refmoe_kernel_name(int index) { return row(index) ? row(index)->name : NULL; }
const char *refmoe_kernel_needs(int index) { return row(index) ? row(index)->needs : NULL; }
int refmoe_kernel_runs_here(int index) { return row(index) && row(index)->runs_here(); }

const struct kernel *refmoe_kernel(int index) { return refmoe_kernel_runs_here(index) ? row(index) : NULL; }

static const struct tile *tile(int index, int profile)
{
    return row(index) && profile >= 0 && profile < NUM_PROFILES ? &row(index)->tile[profile] : NULL;
}

int refmoe_tile_rows(int index, int profile) { return tile(index, profile) ? tile(index, profile)->rows : 0; }
int refmoe_tile_cols(int index, int profile) { return tile(index, profile) ? tile(index, profile)->cols : 0; }

const char *refmoe_compiler(void)
{
#if defined(__clang__)
    return "clang " __clang_version__;
#elif defined(__GNUC__)
    return "gcc " __VERSION__;
#else
    return "unknown";
#endif
}

int refmoe_openmp(void)
{
#if defined(_OPENMP)
    return _OPENMP;
#else
    return 0;
#endif
}
