// Computes, and at the end of a hundred calls resizes its only block now and then: a walk of its stack takes several times what the
// probes of a call do. It goes on until its input ends. "done" comes at once.
#include <pthread.h>

#include "protocol.h"

enum { DEPTH = 120, WORK = 20000 };

CALLER void compute(void) {
    volatile unsigned result = 0;
    for (int step = 0; step < WORK; step++) result = result * 2654435761u + step;
}

CALLER void *descend(int calls, void *block, size_t size) {
    block = calls ? descend(calls - 1, block, size) : realloc(block, size);
    // Not the last thing that it does, or this would be a loop.
    KEEP(block);
    return block;
}

static void *run(void *unused) {
    void *block = NULL;
    for (size_t turn = 0;; turn++) {
        compute();
        block = descend(DEPTH, block, 1000 + turn % 2 * 16);
    }
    return unused;
}

int main(void) {
    pthread_t thread;
    ready();
    pthread_create(&thread, NULL, run, NULL);
    done();
}
