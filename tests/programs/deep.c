// Computes, and allocates and frees now and then at the end of a hundred calls: a walk of its stack takes many times what a probe
// does. It goes on until its input ends. "done" comes at once.
#include <pthread.h>

#include "protocol.h"

enum { DEPTH = 110, WORK = 30000, THREADS = 4 };

CALLER void compute(void) {
    volatile unsigned result = 0;
    for (int step = 0; step < WORK; step++) result = result * 2654435761u + step;
}

CALLER void *descend(int calls) {
    void *block = calls ? descend(calls - 1) : malloc(1024);
    // Not the last thing that it does, or this would be a loop.
    KEEP(block);
    return block;
}

static void *run(void *unused) {
    for (;;) {
        compute();
        free(descend(DEPTH));
    }
    return unused;
}

int main(void) {
    pthread_t thread;
    ready();
    for (int started = 0; started < THREADS; started++) pthread_create(&thread, NULL, run, NULL);
    done();
}
