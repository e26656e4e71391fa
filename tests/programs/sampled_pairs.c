// A hundred million pairs of malloc and free, of 1 to 2,000 bytes, in eight threads. Each holds 64 blocks at a time, and everything is
// freed in the end.
#include <pthread.h>
#include <stdint.h>

#include "protocol.h"

enum { THREADS = 8, PAIRS = 12500000, HELD = 64, LARGEST = 2000 };

CALLER void *pair(void *old, size_t size) {
    free(old);
    void *block = malloc(size);
    __asm__ volatile("" : "+r"(block));  // or it were a jump, and no frame
    return block;
}

static void *churn(void *number) {
    uint64_t state = 88172645463325252ULL + (uintptr_t)number;
    void *held[HELD] = {0};
    for (int i = 0; i < PAIRS; i++) {
        state ^= state << 13, state ^= state >> 7, state ^= state << 17;
        void **place = &held[(state >> 32) % HELD];
        *place = pair(*place, 1 + state % LARGEST);
    }
    for (int i = 0; i < HELD; i++) free(held[i]);
    return NULL;
}

int main(void) {
    ready();
    pthread_t threads[THREADS];
    for (size_t i = 0; i < THREADS; i++)
        if (pthread_create(&threads[i], NULL, churn, (void *)(i + 1))) _exit(103);
    for (size_t i = 0; i < THREADS; i++) pthread_join(threads[i], NULL);
    done();
}
