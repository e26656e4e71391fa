// Allocates through code whose mapping was split: one page of it may be written, too.
#include <stdint.h>
#include <sys/mman.h>

#include "protocol.h"

// Far enough apart to be in different pages.
#define APART CALLER __attribute__((aligned(8192)))

APART void in_third(size_t size) {
    volatile char room[100];
    room[0] = 1;
    KEEP(malloc(size));
    room[99] = room[0];
}

APART void in_second(size_t size) {
    volatile char room[200];
    room[0] = 1;
    in_third(size);
    room[199] = room[0];
}

APART void in_first(size_t size) {
    volatile char room[300];
    room[0] = 1;
    in_second(size);
    room[299] = room[0];
}

int main(void) {
    if (mprotect((void *)((uintptr_t)in_second & ~4095UL), 4096, PROT_READ | PROT_WRITE | PROT_EXEC)) return 7;
    expect_native("in_third", "malloc", 1, 501);
    ready();
    in_first(501);
    done();
}
