// Threads that start and end inside the window, each leaking and freeing. Their stacks come from glibc's cache, which
// the warm-up has filled, so they map nothing.
#include <pthread.h>

#include "protocol.h"

enum { ROUNDS = 25, AT_ONCE = 4, BLOCKS = 8, SIZE = 96 };

CALLER void leak_in_thread(void) {
    for (int i = 0; i < BLOCKS; i++) {
        KEEP(malloc(SIZE));
        free(malloc(unforeseen(2 * SIZE)));
    }
}

static void *run(void *work) {
    if (work) leak_in_thread();
    return NULL;
}

static void round_of_threads(void *work) {
    pthread_t threads[AT_ONCE];
    for (int i = 0; i < AT_ONCE; i++) pthread_create(&threads[i], NULL, run, work);
    for (int i = 0; i < AT_ONCE; i++) pthread_join(threads[i], NULL);
}

int main(void) {
    round_of_threads(NULL);
    expect_native("leak_in_thread", "malloc", ROUNDS * AT_ONCE * BLOCKS, SIZE);
    expect_unknown_frees();  // a thread that ends gives its cache back through free
    ready();
    for (int i = 0; i < ROUNDS; i++) round_of_threads((void *)1);
    done();
}
