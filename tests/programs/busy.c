// Allocates, checks and frees without end, on two threads, until its input ends: a target that would not survive being
// harmed. Every block is filled and read back. One block in a thousand is kept. "done" comes at once.
#include <poll.h>
#include <pthread.h>

#include "protocol.h"

enum { SLOTS = 512, KEPT_EVERY = 1000 };

static void fail(void) {
    say("corrupt");
    _exit(105);
}

CALLER void leak_slowly(void) { KEEP(malloc(16)); }

CALLER void exercise(void **slots, unsigned long turn) {
    unsigned slot = turn * 2654435761u % SLOTS;
    unsigned char *block = slots[slot];
    size_t size = 16 + turn % 300;
    if (block && block[0] != (unsigned char)slot) fail();
    if (turn % 3 == 0) {
        block = realloc(block, size);
    } else {
        free(block);
        block = turn % 2 ? malloc(size) : calloc(1, size);
    }
    if (!block) fail();
    memset(block, (int)slot, size);
    slots[slot] = block;
    if (turn % KEPT_EVERY == 0) leak_slowly();
}

static void *run(void *unused) {
    static _Thread_local void *slots[SLOTS];
    for (unsigned long turn = 1;; turn++) exercise(slots, turn);
    return unused;
}

int main(void) {
    pthread_t thread;
    ready();
    pthread_create(&thread, NULL, run, NULL);
    pthread_create(&thread, NULL, run, NULL);
    done();
}
