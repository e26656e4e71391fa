// Allocates between any two instructions of a call through the procedure linkage table: the processor traps after each, and
// the handler allocates. The first call goes through the loader, which finds the function. unwinding.rs knows the chain.
#define _GNU_SOURCE
#include <signal.h>
#include <time.h>
#include <ucontext.h>

#include "protocol.h"

// Says what it does to the stack, as the compiler does of its own code.
#define SET_FLAGS(change)                                                                                         \
    __asm__ volatile("pushfq\n .cfi_adjust_cfa_offset 8\n " change "\n popfq\n .cfi_adjust_cfa_offset -8" :: \
                         : "memory", "cc")

static long steps;
static struct timespec now;

CALLER void on_step(int number) {
    (void)number;
    steps++;
    KEEP(malloc(401));
}

CALLER long stepped(const char *number) {
    SET_FLAGS("orl $0x100, (%%rsp)");
    long first = strtol(number, NULL, 10);   // resolved by the loader
    long second = strtol(number, NULL, 10);  // goes straight through
    clock_gettime(CLOCK_MONOTONIC, &now);    // in the vdso
    SET_FLAGS("andl $~0x100, (%%rsp)");
    return first + second;
}

int main(void) {
    signal(SIGTRAP, on_step);
    expected.freed_unknown = expected.unmatched_unknown = 1;
    ready();
    if (stepped("42") != 84) abort();
    if (steps < 100) abort();
    done();
}
