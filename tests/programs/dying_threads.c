// Threads that end inside an allocator, as one that is killed there does: more of them than can be inside one at a time. Then the
// program leaks.
#include <pthread.h>
#include <sys/syscall.h>

#include "protocol.h"

enum { ROUNDS = 160, AT_ONCE = 64, BLOCKS = 1000, SIZE = 96 };

// An allocator that no table knows. A thread that asks for one byte ends in it, without unwinding.
__attribute__((noinline)) void *dying_malloc(size_t size) {
    if (size == 1) syscall(SYS_exit, 0);
    return (void *)(0x1000 * size);
}

static void *run(void *work) {
    if (work) KEEP(dying_malloc(unforeseen(1)));
    return NULL;
}

static void round_of_threads(void *work) {
    pthread_t threads[AT_ONCE];
    for (int i = 0; i < AT_ONCE; i++) pthread_create(&threads[i], NULL, run, work);
    for (int i = 0; i < AT_ONCE; i++) pthread_join(threads[i], NULL);
}

CALLER void leak(void) { for (int i = 0; i < BLOCKS; i++) KEEP(malloc(unforeseen(SIZE))); }

static void *leak_in_thread(void *unused) {
    for (int i = 0; i < BLOCKS; i++) KEEP(malloc(unforeseen(SIZE)));
    return unused;
}

int main(void) {
    round_of_threads(NULL);
    expect_native("leak", "malloc", BLOCKS, SIZE);
    expect_native("leak_in_thread", "malloc", AT_ONCE * BLOCKS, SIZE);
    ready();
    for (int i = 0; i < ROUNDS; i++) round_of_threads((void *)1);
    leak();
    pthread_t threads[AT_ONCE];
    for (int i = 0; i < AT_ONCE; i++) pthread_create(&threads[i], NULL, leak_in_thread, NULL);
    for (int i = 0; i < AT_ONCE; i++) pthread_join(threads[i], NULL);
    done();
}
