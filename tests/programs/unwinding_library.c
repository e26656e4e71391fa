// A library for unwinding_loads.c. Its functions have stack frames of ROOM bytes, so that the unwind table of another such
// library, at the same address, is wrong for it.
#include "protocol.h"

CALLER void NAME(size_t size) {
    volatile char room[ROOM];
    room[0] = 1;
    KEEP(malloc(size));
    room[ROOM - 1] = room[0];
}

CALLER void leak(size_t size) {
    volatile char room[2 * ROOM];
    room[0] = 1;
    NAME(size);
    room[2 * ROOM - 1] = room[0];
}
