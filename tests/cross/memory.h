/* memory.h: watches the scratch memory of the kernels. The linker sends their aligned_alloc here (--wrap). */

#include <stdint.h>
#include <stdlib.h>

static int64_t taken_bytes;                 /* since it was last set to 0 */
static int allocations_allowed = INT32_MAX; /* after these, memory is refused */

void *__real_aligned_alloc(size_t alignment, size_t bytes);
void *__wrap_aligned_alloc(size_t alignment, size_t bytes);

void *__wrap_aligned_alloc(size_t alignment, size_t bytes)
{
    if (allocations_allowed-- <= 0)
        return NULL;
    taken_bytes += (int64_t)bytes;
    return __real_aligned_alloc(alignment, bytes);
}
