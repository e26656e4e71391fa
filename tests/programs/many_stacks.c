// Ever new stacks: each of 200,000 ways through a recursion allocates a block and frees it, and the last one leaves one. The
// table of stacks has room for 131,072.
#include <time.h>

#include "protocol.h"

#define WAYS 200000
#define DEPTH 18
#define BATCH 200

static int keep;

CALLER void at_the_end(void) {
    void *block = KEEP(malloc(100));
    if (!keep) free(block);
}

CALLER int left(int depth, unsigned long way);
CALLER int right(int depth, unsigned long way);

static int step(int depth, unsigned long way) {
    if (depth == DEPTH) {
        at_the_end();
        return 0;
    }
    return way & 1 ? right(depth + 1, way >> 1) : left(depth + 1, way >> 1);
}

// They do something after the call, each its own: otherwise the compiler makes them one, and a loop.
int left(int depth, unsigned long way) {
    int found = step(depth, way);
    __asm__ volatile("" : "+r"(found));
    return found;
}

int right(int depth, unsigned long way) {
    int found = step(depth, way);
    __asm__ volatile("nop" : "+r"(found));
    return found;
}

int main(void) {
    struct timespec pause = {0, 10000000};
    expect_native("at_the_end", "malloc", 1, 100);
    expect_freed(WAYS, WAYS * 100);
    ready();
    // 20,000 ways a second at most, which leaves the tracer time to name them.
    for (unsigned long way = 0; way < WAYS; way++) {
        left(0, way);
        if (way % BATCH == 0) nanosleep(&pause, NULL);
        if (way == 3 * WAYS / 8) say("retiring");
    }
    keep = 1;
    right(0, WAYS);
    done();
}
