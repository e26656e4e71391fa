// Eight threads make four million pairs of malloc and free in all, or as many a thread as the argument says, and leak a known set.
#include <pthread.h>

#include "protocol.h"

enum { THREADS = 8, LEAK_EVERY = 1000, SIZE = 40, LEAKED_SIZE = 24 };

static unsigned long pairs = 500000;
static pthread_barrier_t start, end;

CALLER void churn(void) {
    for (unsigned long i = 0; i < pairs; i++) {
        void *volatile block = malloc(SIZE);
        free(block);
    }
}

CALLER void leak_some(void) {
    for (unsigned long i = 0; i < pairs / LEAK_EVERY; i++) KEEP(malloc(LEAKED_SIZE));
}

static void *run(void *unused) {
    free(malloc(SIZE));
    pthread_barrier_wait(&start);
    pthread_barrier_wait(&start);
    churn();
    leak_some();
    pthread_barrier_wait(&end);
    pause();
    return unused;
}

int main(int arguments, char **argument) {
    if (arguments > 1) pairs = strtoul(argument[1], NULL, 10);
    pthread_barrier_init(&start, NULL, THREADS + 1);
    pthread_barrier_init(&end, NULL, THREADS + 1);
    for (int i = 0; i < THREADS; i++) {
        pthread_t thread;
        pthread_create(&thread, NULL, run, NULL);
    }
    pthread_barrier_wait(&start);

    expect_native("leak_some", "malloc", THREADS * (pairs / LEAK_EVERY), LEAKED_SIZE);
    expect_freed(THREADS * pairs, THREADS * pairs * SIZE);
    ready();
    pthread_barrier_wait(&start);
    pthread_barrier_wait(&end);
    done();
}
