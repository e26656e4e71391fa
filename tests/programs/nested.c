// Calls that call each other inside the allocator (own_allocator.c): the outermost one is the allocation. And calls that
// never return: left by siglongjmp out of a signal handler, or by the end of their thread. Neither may blind the thread.
#include <pthread.h>
#include <setjmp.h>
#include <signal.h>

#include "protocol.h"

extern void (*volatile own_allocator_interrupt)(void);

enum { JUMPS = 50 };

static sigjmp_buf home;

static void on_signal(int number) { (void)number, siglongjmp(home, 1); }
static void interrupt_by_signal(void) { raise(SIGUSR1); }
static void interrupt_by_exit(void) { pthread_exit(NULL); }

CALLER void leak_calloc(void) { for (int i = 0; i < 6; i++) KEEP(calloc(10, 25)); }
CALLER void leak_realloc(void) { KEEP(realloc(malloc(77), 770)); }
CALLER void leak_after_jumps(void) { KEEP(malloc(1717)); }
CALLER void leak_after_exit(void) { KEEP(malloc(1818)); }

CALLER void leak_posix_memalign(void) {
    void *block;
    for (int i = 0; i < 3; i++)
        if (posix_memalign(&block, 64, 500) == 0) KEEP(block);
}

// The outer call is as good as never made; its frame is below that of the next one.
CALLER void jump_out(void) {
    own_allocator_interrupt = interrupt_by_signal;
    if (sigsetjmp(home, 1) == 0) KEEP(calloc(1, 999));
    own_allocator_interrupt = NULL;
}

// Deeper in the stack than the calls that follow.
CALLER void jump_out_from_below(int depth) {
    char room[512];
    KEEP(room);
    if (depth > 0) jump_out_from_below(depth - 1);
    else jump_out();
    KEEP(NULL);
}

// Far below the frame that was left, with a hole between that nothing is written to: what was left there stays.
CALLER void leak_below(int depth) {
    char hole[4096];
    kept = hole;
    if (depth > 0) leak_below(depth - 1);
    else KEEP(malloc(1919));
    KEEP(NULL);
}

static void *end_inside_malloc(void *unused) {
    KEEP(malloc(888));
    return unused;
}

static pthread_barrier_t barrier;

static void *ending_thread(void *unused) {
    pthread_barrier_wait(&barrier);
    pthread_barrier_wait(&barrier);
    own_allocator_interrupt = interrupt_by_exit;
    return end_inside_malloc(unused);
}

int main(int count, char **arguments) {
    int deep = count > 1 && strcmp(arguments[1], "deep") == 0;
    signal(SIGUSR1, on_signal);
    pthread_t thread;
    pthread_barrier_init(&barrier, NULL, 2);
    pthread_create(&thread, NULL, ending_thread, NULL);
    pthread_barrier_wait(&barrier);
    // The first pthread_exit of a process loads the unwinder, which allocates.
    pthread_t warm;
    pthread_create(&warm, NULL, (void *(*)(void *))pthread_exit, NULL);
    pthread_join(warm, NULL);

    expect_native("leak_calloc", "calloc", 6, 250);
    expect_native("leak_realloc", "realloc", 1, 770);
    expect_native("leak_posix_memalign", "posix_memalign", 3, 500);
    expect_native("leak_after_jumps", "malloc", 1, 1717);
    expect_native("leak_after_exit", "malloc", 1, 1818);
    expect_native("leak_below", "malloc", deep ? 1 : 0, 1919);
    expect_unknown_frees();
    ready();
    if (deep) {
        jump_out();
        leak_below(3);
    }
    leak_calloc();
    leak_realloc();
    leak_posix_memalign();
    for (int i = 0; i < JUMPS; i++) jump_out_from_below(i % 7);
    leak_after_jumps();
    pthread_barrier_wait(&barrier);
    pthread_join(thread, NULL);
    own_allocator_interrupt = NULL;
    leak_after_exit();
    done();
}
