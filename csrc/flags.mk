# The lists that every build of the kernels shares: make reads them as they stand, csrc/build.py with a regular
# expression.
SOURCES := grouped_matmul.c threads.c feed_forward.c workspace.c cut.c pack.c unit.c lanes.c lanes_rows.c \
           lanes_direct.c outputs.c outputs_copy.c decide.c few.c codes.c rounding.c grid.c compensated.c \
           accumulator.c kernel_table.c \
           tile_portable.c tile_neon.c tile_avx2.c tile_avx512.c few_avx2.c few_avx512.c pairs.c pairs_avx512.c \
           doubles.c doubles_avx512.c formulas.c formulas_again.c formulas_portable.c formulas_neon.c formulas_avx2.c \
           formulas_avx512.c sums.c sums_portable.c sums_avx2.c sums_avx512.c written.c attention.c dots.c dispatch.c
# Of the Python module alone: what `refmoe bench` measures the machine with.
MEASURES := limits.c limits_pairs.c
# Bits depend on these: no fused multiply-add that is not written, no reordering, no excess precision. Where
# nobody asks for errno a square root is an instruction and no symbol of libm.
ARITHMETIC := -std=c11 -ffp-contract=off -fno-fast-math -fexcess-precision=standard -fno-math-errno
OTHER := -O3 -Wall -Wextra -fvisibility=hidden
