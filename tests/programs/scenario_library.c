// A library that leaks: what it exports calls a function of its own, which has no name once the library is stripped, and allocates at
// two places.
#include "protocol.h"

static CALLER void own(void) {
    void *small = KEEP(malloc(1000)), *large = KEEP(malloc(3000));
    if (!small || !large) _exit(101);
    memset(small, 1, 1000);
    memset(large, 1, 3000);
}

CALLER void library_open(void) {
    own();
    __asm__ volatile("" ::: "memory");
}
