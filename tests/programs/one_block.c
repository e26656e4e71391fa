// An allocator with one block: one thread is always inside of malloc, and waits there for another thread to free the block.
#include <pthread.h>
#include <sched.h>
#include <stdatomic.h>

#include "protocol.h"

enum { SIZE = 72 };

static _Alignas(16) char block[SIZE], others[1 << 16];
static atomic_size_t others_end;
static atomic_int is_free = 1;
static _Atomic(void *) handed;

CALLER void *malloc(size_t size) {
    if (size != SIZE) return others + atomic_fetch_add(&others_end, (size + 15) / 16 * 16);
    while (!atomic_exchange(&is_free, 0)) sched_yield();
    return block;
}

CALLER void free(void *address) {
    if (address == block) is_free = 1;
}

static void *release(void *unused) {
    for (;;) {
        void *taken = atomic_exchange(&handed, NULL);
        if (taken) free(taken);
        else sched_yield();
    }
    return unused;
}

static void *allocate(void *unused) {
    for (;;) handed = malloc(SIZE);
    return unused;
}

int main(void) {
    pthread_t thread;
    expect_unknown_frees();
    ready();
    if (nice(10) < 0 || pthread_create(&thread, NULL, release, NULL) || pthread_create(&thread, NULL, allocate, NULL)) return 1;
    done();
}
