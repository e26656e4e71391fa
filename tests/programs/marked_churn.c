// Two threads that make, grow and free blocks without a pause until a line comes, so that marks and snapshots fall into running calls. Then
// they free what they have, and leak a known set.
#include <pthread.h>

#include "protocol.h"

enum { THREADS = 2, KEPT = 64, LEAKED = 700, LEAKED_SIZE = 24 };

static volatile int stop;
static pthread_barrier_t start, churning, end;

CALLER void churn(void **blocks, unsigned round) {
    void **block = &blocks[round % KEPT];
    switch (round / KEPT % 4) {
    case 0: *block = malloc(40); break;
    case 1: *block = realloc(*block, 80 + round % 64); break;
    // It fails, and the block stays.
    case 2: if (realloc(*block, HUGE_SIZE)) abort(); break;
    case 3: free(*block); *block = NULL; break;
    }
}

CALLER void leak_some(void) { for (int i = 0; i < LEAKED; i++) KEEP(malloc(LEAKED_SIZE)); }

static void *run(void *unused) {
    void *blocks[KEPT] = {0};
    pthread_barrier_wait(&start);
    pthread_barrier_wait(&start);
    for (unsigned round = 0; !stop; round++) {
        churn(blocks, round);
        if (round == 4 * KEPT) pthread_barrier_wait(&churning);
    }
    for (int i = 0; i < KEPT; i++) free(blocks[i]);
    leak_some();
    pthread_barrier_wait(&end);
    pause();
    return unused;
}

int main(void) {
    pthread_barrier_init(&start, NULL, THREADS + 1);
    pthread_barrier_init(&churning, NULL, THREADS + 1);
    pthread_barrier_init(&end, NULL, THREADS + 1);
    for (int i = 0; i < THREADS; i++) {
        pthread_t thread;
        pthread_create(&thread, NULL, run, NULL);
    }
    pthread_barrier_wait(&start);
    expect_native("leak_some", "malloc", THREADS * LEAKED, LEAKED_SIZE);
    expect_unknown_frees();
    expected.failed_unknown = 1;
    ready();
    pthread_barrier_wait(&start);
    pthread_barrier_wait(&churning);
    say("churning");
    await_line();
    stop = 1;
    pthread_barrier_wait(&end);
    done();
}
