// Blocks made by one thread and freed by others. The threads exist before the window and end after it.
#include <pthread.h>

#include "protocol.h"

enum { BLOCKS = 2000, THREADS = 4, SIZE = 72, KEPT_EVERY = 10 };

static void *blocks[BLOCKS];
static pthread_barrier_t warm, made, freed;

CALLER void make_blocks(int from) {
    for (int i = from; i < BLOCKS; i += THREADS) blocks[i] = malloc(SIZE);
}

// Frees what the neighbour made, but for every tenth block.
CALLER void free_blocks(int from) {
    for (int i = from; i < BLOCKS; i += THREADS) {
        if (i % KEPT_EVERY != 0) free(blocks[i]);
    }
}

static void *run(void *argument) {
    int number = (int)(long)argument;
    free(malloc(SIZE));
    pthread_barrier_wait(&warm);
    pthread_barrier_wait(&warm);  // go
    make_blocks(number);
    pthread_barrier_wait(&made);
    free_blocks((number + 1) % THREADS);
    pthread_barrier_wait(&freed);
    pause();
    return NULL;
}

int main(void) {
    pthread_barrier_init(&warm, NULL, THREADS + 1);
    pthread_barrier_init(&made, NULL, THREADS);
    pthread_barrier_init(&freed, NULL, THREADS + 1);
    for (long i = 0; i < THREADS; i++) {
        pthread_t thread;
        pthread_create(&thread, NULL, run, (void *)i);
    }
    pthread_barrier_wait(&warm);

    expect_native("make_blocks", "malloc", BLOCKS / KEPT_EVERY, SIZE);
    expect_freed(BLOCKS - BLOCKS / KEPT_EVERY, (BLOCKS - BLOCKS / KEPT_EVERY) * SIZE);
    ready();
    pthread_barrier_wait(&warm);
    pthread_barrier_wait(&freed);
    done();
}
