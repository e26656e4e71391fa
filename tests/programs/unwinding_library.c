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

#ifdef FUNCTIONS
// So many that the unwind tables of a few such libraries fill the room there is.
__asm__(".text\n"
        ".rept " FUNCTIONS "\n"
        ".cfi_startproc\n push %rbx\n .cfi_adjust_cfa_offset 8\n nop\n pop %rbx\n .cfi_adjust_cfa_offset -8\n ret\n .cfi_endproc\n"
        ".endr");
#endif
