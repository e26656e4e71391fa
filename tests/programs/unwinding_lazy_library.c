// The library of unwinding_lazy.c that calls what is not bound yet.
#include "protocol.h"

// In another library, which this one does not name.
void leak(size_t size);

CALLER void needs_another(size_t size) {
    leak(size);
    __asm__ volatile("");  // no tail call
}

static void implementation(void) {}

#define CHOOSES(number)                                                            \
    static void (*resolver_##number(void))(void) {                                 \
        KEEP(malloc(700 + number));                                                \
        return implementation;                                                     \
    }                                                                              \
    void chosen_##number(void) __attribute__((ifunc("resolver_" #number)));        \
    CALLER void chooses_##number(size_t size) {                                    \
        (void)size;                                                                \
        chosen_##number();                                                         \
        __asm__ volatile("");                                                      \
    }

CHOOSES(1)
CHOOSES(2)
CHOOSES(3)
CHOOSES(4)
