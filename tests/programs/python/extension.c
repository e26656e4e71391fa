// A C extension of Python that leaks what it is asked to.
#include <stdlib.h>
#include <string.h>

static void *volatile kept;

__attribute__((noipa)) void *leaked(size_t size) {
    void *block = malloc(size);
    if (block) memset(block, 1, size);
    return kept = block;
}

int leak(size_t size) { return leaked(size) != NULL; }
