/* Stacks of many shapes. Each case ends in `here`, where the debugger records them. */
#define _GNU_SOURCE
#include <alloca.h>
#include <pthread.h>
#include <signal.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <ucontext.h>

#define APART __attribute__((noinline, noclone))
/* Keeps the call before it from becoming a jump. */
#define STAY __asm__ volatile("" ::: "memory")

volatile int sink;

APART void here(void) {
    sink++;
    STAY;
}

APART static int compare(const void *a, const void *b) {
    here();
    return *(const int *)a - *(const int *)b;
}

APART static void sorted(void) {
    int items[] = {2, 1};
    qsort(items, 2, sizeof *items, compare);
    sink += items[0];
}

APART static void recursive(int depth) {
    volatile char room[40];
    room[0] = (char)depth;
    if (depth == 0)
        here();
    else
        recursive(depth - 1);
    sink += room[0];
}

APART static void dynamic(size_t size) {
    volatile char *room = alloca(size);
    room[0] = 1;
    here();
    sink += room[0];
}

/* Realigns its stack: its CFA is found through a saved pointer. */
APART static void realigned(size_t size) {
    _Alignas(64) volatile char wide[64];
    volatile char *room = alloca(size);
    wide[0] = room[0] = 1;
    here();
    sink += wide[0] + room[0] + (int)((uintptr_t)wide & 63);
}

APART static void many_arguments(int a, int b, int c, int d, int e, int f, int g, int h, int i) {
    here();
    sink += a + b + c + d + e + f + g + h + i;
}

APART static void handler(int number) {
    here();
    sink += number;
}

APART static void raised(void) {
    raise(SIGUSR1);
    STAY;
}

/* A fault: the interrupted address is the first of no call, and must be looked up as it is. */
APART static void faulted(volatile int *where) {
    *where = 1;
    STAY;
}

static char alternate[1 << 16];

static void *mapped_fault;

APART static void repair(int number, siginfo_t *info, void *context) {
    here();
    /* Skips the store: `movl $1, (%rdi)` at any optimisation is found by its length of 6. */
    greg_t *registers = ((ucontext_t *)context)->uc_mcontext.gregs;
    (void)number;
    (void)info;
    const unsigned char *code = (const unsigned char *)registers[REG_RIP];
    registers[REG_RIP] += code[0] == 0xc7 ? 6 : 2;
}

static char coroutine_stack[1 << 16];
static ucontext_t resumer, resumed;

APART static void coroutine(void) {
    here();
    STAY;
}

APART static void switched(void) {
    getcontext(&resumed);
    resumed.uc_stack.ss_sp = coroutine_stack;
    resumed.uc_stack.ss_size = sizeof coroutine_stack;
    resumed.uc_link = &resumer;
    makecontext(&resumed, coroutine, 0);
    swapcontext(&resumer, &resumed);
    STAY;
}

APART static void *threaded(void *argument) {
    here();
    STAY;
    return argument;
}

/* Its call is the last instruction: the return address is that of the next function. */
APART __attribute__((noreturn)) static void leaves(void) {
    here();
    exit(0);
}

APART __attribute__((noreturn)) static void last_call(void) {
    leaves();
}

int main(void) {
    sorted();
    recursive(3);
    recursive(200);
    dynamic((size_t)(sink + 100));
    realigned((size_t)(sink + 100));
    many_arguments(1, 2, 3, 4, 5, 6, 7, 8, 9);
    signal(SIGUSR1, handler);
    raised();
    stack_t stack = {.ss_sp = alternate, .ss_size = sizeof alternate};
    sigaltstack(&stack, NULL);
    struct sigaction action = {.sa_sigaction = repair, .sa_flags = SA_SIGINFO | SA_ONSTACK};
    sigaction(SIGSEGV, &action, NULL);
    faulted(mapped_fault);
    switched();
    pthread_t thread;
    pthread_create(&thread, NULL, threaded, NULL);
    pthread_join(thread, NULL);
    atexit(here);
    last_call();
}
