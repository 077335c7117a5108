/* example.c: two experts, three tokens, from C alone.

     make lib && export PKG_CONFIG_PATH=$PWD/out/lib/lib/pkgconfig LD_LIBRARY_PATH=$PWD/out/lib/lib
     cc csrc/example.c $(pkg-config --cflags --libs refmoe_kernels) -o example && ./example              */

#include <refmoe_kernels.h>
#include <stdio.h>

enum { EXPERTS = 2, ROWS = 3, OUT = 2, IN = 3 };

int main(void)
{
    const int64_t offsets[EXPERTS + 1] = {0, 2, 3}; /* expert 0 owns rows 0 and 1, expert 1 row 2 */
    const float x[ROWS][IN] = {{1, 2, 3}, {1e8f, 1, -1e8f}, {4, 5, 6}};
    const float w[EXPERTS][OUT][IN] = {{{1, 1, 1}, {1, 0, 2}}, {{0, 1, 0}, {-1, -1, -1}}};
    const char *const profile_name[] = {"exact", "chain"};
    int best = 0; /* slowest first: the last that runs here is the natural choice */
    for (int kernel = 0; kernel < refmoe_kernel_count(); kernel++)
        best = refmoe_kernel_runs_here(kernel) ? kernel : best;
    for (int profile = REFMOE_EXACT; profile <= REFMOE_CHAIN; profile++) {
        float y[ROWS][OUT];
        const refmoe_how how = {.kernel = best, .threads = 2, .profile = profile, .format = REFMOE_FLOAT32};
        int status = refmoe_grouped_matmul_f32(&how, EXPERTS, ROWS, OUT, IN, offsets, *x, **w, NULL, NULL, *y, NULL);
        if (status != REFMOE_OK)
            return status;
        for (int n = 0; n < ROWS; n++)
            printf("%s row %d: %.9g %.9g\n", profile_name[profile], n, y[n][0], y[n][1]);
    }
    return 0;
}
