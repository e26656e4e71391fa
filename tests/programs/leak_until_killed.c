// Leaks at a pace, until somebody kills it: COUNT blocks of 64 KiB at once, then, after a line on its input, one after each PAUSE
// microseconds. Without a PAUSE it only waits.
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

enum { BLOCK = 64 << 10 };

static void *volatile kept;

__attribute__((noipa)) void forget(void) {
    kept = malloc(BLOCK);
    if (!kept) abort();
    memset(kept, 1, BLOCK);
}

int main(int argc, char **argv) {
    if (argc != 3) return 2;
    for (int i = atoi(argv[1]); i > 0; i--) forget();
    puts("ready");
    fflush(stdout);
    useconds_t pause = (useconds_t)atoi(argv[2]);
    char line[64];
    if (read(0, line, sizeof line) <= 0) return 0;
    for (;;) {
        if (pause) forget();
        usleep(pause ? pause : 1000000);
    }
}
