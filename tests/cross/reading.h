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

/* Hands the file that the command line names to `next`, which reads a case, checks and forgets it, and returns how many
   that makes, 0 at the file's end. */
static int replay_file(int count, char **argument, int (*next)(FILE *file))
{
    long cases = 0;
    FILE *file = count > 1 ? fopen(argument[1], "rb") : NULL;
    if (!file)
        give_up("no such file");
    for (int more = next(file); more; more = next(file))
        cases += more;
    fclose(file);
    if (cases == 0)
        give_up("the file holds no case");
    printf("ok   " DRIVER ": %ld cases\n", cases);
    return 0;
}
