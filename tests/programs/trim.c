// Frees most of what it has, and says what `malloc_trim(0)` then gives back: `trimmed BYTES`.
#include <fcntl.h>
#include <malloc.h>

#include "protocol.h"

enum { BLOCKS = 16384, SIZE = 4000, HELD = 64 };

static size_t resident(void) {
    char text[128] = {0};
    int statm = open("/proc/self/statm", O_RDONLY);
    if (statm < 0 || read(statm, text, sizeof text - 1) <= 0) _exit(1);
    close(statm);
    char *second = strchr(text, ' ');
    return second ? strtoul(second, NULL, 10) * 4096 : 0;
}

CALLER static void work(void) {
    static void *blocks[BLOCKS];
    for (int i = 0; i < BLOCKS; i++) {
        blocks[i] = malloc(SIZE);
        memset(blocks[i], 1, SIZE);
    }
    // The last one is held, so that not all of it is behind the last block.
    for (int i = 0; i < BLOCKS; i++) {
        if (i % HELD != HELD - 1) free(blocks[i]);
    }
}

int main(void) {
    KEEP(malloc(24));
    expect_native("work", "malloc", BLOCKS / HELD, SIZE);
    expect_freed(BLOCKS - BLOCKS / HELD, (unsigned long)(BLOCKS - BLOCKS / HELD) * SIZE);
    ready();
    work();
    say("worked");
    await_line();
    size_t before = resident();
    malloc_trim(0);
    char line[64];
    snprintf(line, sizeof line, "trimmed %zu", before - resident());
    say(line);
    done();
}
