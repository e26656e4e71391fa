// Stacks of many shapes. Each case allocates a size of its own, from the bottom of a chain of functions that the test knows.
//
// The order of the cases is that of unwinding.rs. Every function has a frame of its own (CALLER), and every call of one is
// followed by something (STAY), so that it is no jump.
#define _GNU_SOURCE
#include <alloca.h>
#include <pthread.h>
#include <signal.h>
#include <sys/mman.h>
#include <sys/syscall.h>
#include <ucontext.h>

#include "protocol.h"

#define STAY __asm__ volatile("" ::: "memory")
#define ALLOCATE(size) \
    do {               \
        KEEP(malloc(size)); \
        STAY;          \
    } while (0)

// --- Plain calls ---------------------------------------------------------------------------------------------------------

CALLER void plain_leaf(void) { ALLOCATE(101); }

CALLER void plain(void) {
    plain_leaf();
    STAY;
}

CALLER long many_arguments(long a, long b, long c, long d, long e, long f, long g, long h, long i) {
    ALLOCATE(102);
    return a + b + c + d + e + f + g + h + i;
}

// --- Stack frames whose size the compiler does not know ------------------------------------------------------------------

CALLER void with_alloca(size_t size) {
    volatile char *room = alloca(size);
    room[0] = 1;
    ALLOCATE(103);
    room[size - 1] = room[0];
}

CALLER void with_vla(size_t size) {
    volatile char room[size];
    room[0] = 1;
    ALLOCATE(104);
    room[size - 1] = room[0];
}

// Realigns its stack: its CFA is found through a saved pointer.
CALLER void realigned(size_t size) {
    __attribute__((aligned(64))) volatile char lines[128];
    volatile char *room = alloca(size);
    lines[0] = room[0] = 1;
    ALLOCATE(105);
    room[size - 1] = lines[0];
}

// --- Recursion -----------------------------------------------------------------------------------------------------------

CALLER void recursive(int depth, size_t size) {
    volatile char room[40];
    room[0] = (char)depth;
    if (depth == 0)
        ALLOCATE(size);
    else
        recursive(depth - 1, size);
    room[1] = room[0];
}

// --- Code of the C library in between ------------------------------------------------------------------------------------

CALLER int compare(const void *a, const void *b) {
    static int called;
    if (!called++) ALLOCATE(107);
    return *(const int *)a - *(const int *)b;
}

CALLER void sorted(void) {
    volatile int items[64];
    for (int i = 0; i < 64; i++) items[i] = 64 - i;
    qsort((void *)items, 64, sizeof *items, compare);
    STAY;
}

// --- Signal handlers -----------------------------------------------------------------------------------------------------

CALLER void on_user_signal(int number) {
    (void)number;
    ALLOCATE(108);
}

CALLER void raised(void) {
    raise(SIGUSR1);
    STAY;
}

// The first instruction of a function: there is no byte before it that belongs to it. `ud2` is 2 bytes long.
void interrupted(void);
__asm__(".text\n.globl interrupted\n.type interrupted, @function\n"
        "interrupted: .cfi_startproc\n ud2\n ret\n .cfi_endproc\n.size interrupted, .-interrupted\n");

static size_t size_in_handler;

CALLER void on_bad_instruction(int number, siginfo_t *info, void *context) {
    (void)number, (void)info;
    ALLOCATE(size_in_handler);
    ((ucontext_t *)context)->uc_mcontext.gregs[REG_RIP] += 2;
}

CALLER void interrupts(size_t size, int flags) {
    struct sigaction action = {.sa_sigaction = on_bad_instruction, .sa_flags = SA_SIGINFO | flags};
    sigaction(SIGILL, &action, NULL);
    size_in_handler = size;
    interrupted();
    STAY;
}

// --- Other stacks --------------------------------------------------------------------------------------------------------

static char coroutine_stack[1 << 16] __attribute__((aligned(16)));

#ifdef __GLIBC__  // musl has no contexts
static ucontext_t resumer, resumed;

CALLER void in_coroutine(void) { ALLOCATE(111); }

CALLER void coroutine(void) {
    in_coroutine();
    STAY;
}

CALLER void switches(void) {
    getcontext(&resumed);
    resumed.uc_stack.ss_sp = coroutine_stack;
    resumed.uc_stack.ss_size = sizeof coroutine_stack;
    resumed.uc_link = &resumer;
    makecontext(&resumed, coroutine, 0);
    swapcontext(&resumer, &resumed);
    STAY;
}
#endif

// Calls a function on another stack, and tells nobody how to get back from there: under the function stands a word that is
// no code's address.
void call_on(void (*function)(void), void *top);
__asm__(".text\n.globl call_on\n.type call_on, @function\n"
        "call_on: push %rbx\n mov %rsp, %rbx\n mov %rsi, %rsp\n call *%rdi\n mov %rbx, %rsp\n pop %rbx\n ret\n"
        ".size call_on, .-call_on\n");

CALLER void on_own_stack(void) { ALLOCATE(112); }

CALLER void calls_on_own_stack(void) {
    call_on(on_own_stack, coroutine_stack + sizeof coroutine_stack - 64);
    STAY;
}

// --- Threads -------------------------------------------------------------------------------------------------------------

CALLER void *thread(void *argument) {
    ALLOCATE(113);
    return argument;
}

// --- Mappings ------------------------------------------------------------------------------------------------------------

#define PAGES(number) ((size_t)(number) << 12)

CALLER void maps(size_t size) {
    KEEP(mmap(NULL, size, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0));
    STAY;
}

CALLER void maps_without_libc(size_t size) {
    register long flags __asm__("r10") = MAP_PRIVATE | MAP_ANONYMOUS, file __asm__("r8") = -1, offset __asm__("r9") = 0;
    long result = SYS_mmap;
    __asm__ volatile("syscall"
                     : "+a"(result)
                     : "D"(0), "S"(size), "d"(PROT_READ | PROT_WRITE), "r"(flags), "r"(file), "r"(offset)
                     : "rcx", "r11", "memory");
    KEEP((void *)result);
}

CALLER void maps_in_room(size_t room_size) {
    volatile char *room = alloca(room_size);
    room[0] = 1;
    maps(PAGES(23));
    room[room_size - 1] = 1;
}

// Its call is the last instruction: the return address is that of the next function.
CALLER __attribute__((noreturn)) void leaves(void) {
    ALLOCATE(114);
    done();
    abort();
}

CALLER __attribute__((noreturn)) void last_call(void) { leaves(); }

int main(void) {
    static char handler_stack[1 << 16];
    stack_t alternate = {.ss_sp = handler_stack, .ss_size = sizeof handler_stack};
    sigaltstack(&alternate, NULL);
    signal(SIGUSR1, on_user_signal);
    pthread_t started;
    size_t some = unforeseen(100);

    expect_native("plain_leaf", "malloc", 1, 101);
    expect_native("many_arguments", "malloc", 1, 102);
    expect_native("with_alloca", "malloc", 1, 103);
    expect_native("with_vla", "malloc", 1, 104);
    expect_native("realigned", "malloc", 1, 105);
    struct expectation recursions = {"recursive", "malloc", "native", 2, 106 + 206, 106 + 206};
    expect(recursions);
    expect_native("compare", "malloc", 1, 107);
    expect_native("on_user_signal", "malloc", 1, 108);
    struct expectation handlers = {"on_bad_instruction", "malloc", "native", 2, 109 + 110, 109 + 110};
    expect(handlers);
#ifdef __GLIBC__
    expect_native("in_coroutine", "malloc", 1, 111);
#endif
    expect_native("on_own_stack", "malloc", 1, 112);
    expect_native("thread", "malloc", 1, 113);
    expect_native("leaves", "malloc", 1, 114);
    expect_mapping("maps", "mmap", 2, PAGES(21) + PAGES(23), 0);
    expect_mapping("maps_without_libc", "mmap", 1, PAGES(22), 0);
    ready();

    plain();
    many_arguments(1, 2, 3, 4, 5, 6, 7, 8, 9);
    with_alloca(some);
    with_vla(some);
    realigned(some);
    recursive(20, 106);
    recursive(200, 206);
    sorted();
    raised();
    interrupts(109, 0);
    interrupts(110, SA_ONSTACK);
#ifdef __GLIBC__
    switches();
#endif
    calls_on_own_stack();
    pthread_create(&started, NULL, thread, NULL);
    pthread_join(started, NULL);
    maps(PAGES(21));
    maps_without_libc(PAGES(22));
    maps_in_room(some);
    last_call();
}
