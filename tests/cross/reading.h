/* reading.h: what the smaller drivers share: their file's arrays, and a mode in which nobody should compute. A driver
   defines DRIVER, its name, first. */

#include <stdio.h>
#include <stdlib.h>

/* Flush subnormals and round upwards. */
#if defined(__SSE2__)
enum { HOSTILE = 0xDFC0 };
#else
enum { HOSTILE = 1 << 24 | 1 << 22 };
#endif

static void give_up(const char *what)
{
    fprintf(stderr, DRIVER ": %s\n", what);
    exit(2);
}

static void *read_array(FILE *file, int64_t count, size_t item)
{
    void *array = malloc((size_t)count * item + 1);
    if (!array || fread(array, item, (size_t)count, file) != (size_t)count)
        give_up("the file ends within a case");
    return array;
}
