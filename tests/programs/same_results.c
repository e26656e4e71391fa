// Uses every function of the malloc family on two threads, in rounds of which each computes the same checksum, under signals: a target
// that notices when a probe changes anything. Every block is filled and read back; the registers that a call must keep, and errno, go
// into the checksum. For each line of its input it says when both threads have made two whole rounds more.
#define _GNU_SOURCE
#include <errno.h>
#include <malloc.h>
#include <pthread.h>
#include <signal.h>
#include <stdint.h>
#include <sys/mman.h>
#include <sys/time.h>

#include "protocol.h"

enum { THREADS = 2, SLOTS = 64, STEPS = 10000, LARGEST = 3000 };

struct worker {
    struct slot {
        unsigned char *block;
        size_t size;
        unsigned char fill;
    } slots[SLOTS];
    uint64_t random, sum;
};

static pthread_mutex_t lock = PTHREAD_MUTEX_INITIALIZER;
static pthread_cond_t round_over = PTHREAD_COND_INITIALIZER;
static unsigned long rounds[THREADS];
static uint64_t right;
static volatile sig_atomic_t signals;

static uint64_t next(struct worker *worker) {
    worker->random ^= worker->random << 13;
    worker->random ^= worker->random >> 7;
    worker->random ^= worker->random << 17;
    return worker->random;
}

static void mix(struct worker *worker, uint64_t value) {
    worker->sum = (worker->sum ^ value) * 0x100000001b3;
}

// The handler uses the stack that the interrupted function has, and every kind of register.
static void on_signal(int number) {
    volatile char room[600];
    volatile double value = number;
    for (unsigned i = 0; i < sizeof room; i++) room[i] = (char)i;
    for (int i = 0; i < 20; i++) value = value * 1.5 + room[i];
    signals++;
}

// What a call must leave as it was and what no result shows: the mask of signals, how floating-point numbers are rounded, and which way
// strings are copied.
static void mix_state(struct worker *worker) {
    sigset_t mask;
    unsigned long flags;
    pthread_sigmask(SIG_SETMASK, NULL, &mask);
    mix(worker, (uint64_t)sigismember(&mask, SIGALRM) + 2 * (uint64_t)sigismember(&mask, SIGUSR1));
    mix(worker, __builtin_ia32_stmxcsr() & 0xffff);
    __asm__ volatile("pushfq; popq %0" : "=r"(flags));
    mix(worker, flags & 0x400);
}

static void *obtain(unsigned function, void *old, size_t size) {
    void *block = NULL;
    switch (function) {
        case 0: return malloc(size);
        case 1: return calloc(1, size);
        case 2: return realloc(old, size);
        case 3: return reallocarray(old, size, 1);
        case 4: return posix_memalign(&block, 256, size) == 0 ? block : NULL;
        case 5: return aligned_alloc(64, (size + 63) & ~(size_t)63);
        case 6: return memalign(128, size);
        default: return valloc(size);
    }
}

static void read_back(struct worker *worker, struct slot *slot, size_t size) {
    for (size_t at = 0; at < size; at++)
        if (slot->block[at] != slot->fill) mix(worker, at);
    mix(worker, slot->fill);
}

static void step(struct worker *worker) {
    uint64_t choice = next(worker);
    struct slot *slot = &worker->slots[choice % SLOTS];
    unsigned function = (unsigned)(choice >> 8) % 9;
    size_t size = 1 + (choice >> 16) % LARGEST;
    int resizes = function == 2 || function == 3;
    if (slot->block) read_back(worker, slot, slot->size);
    if (!resizes || function == 8) {
        free(slot->block);
        slot->block = NULL;
        if (function == 8) return;
    }
    size_t kept = slot->block && slot->size < size ? slot->size : size;
    int resized = resizes && slot->block;
    errno = 77;
    unsigned char *block = obtain(function, slot->block, size);
    mix(worker, errno == 77);
    if (!block) _exit(106);
    slot->block = block;
    if (resized) read_back(worker, slot, kept);
    for (size_t at = 0; function == 1 && at < size; at++) mix(worker, block[at]);
    if (function >= 4) mix(worker, (uintptr_t)block % 64);
    slot->size = size;
    slot->fill = (unsigned char)choice;
    memset(block, slot->fill, size);
}

static void fail_once(struct worker *worker) {
    errno = 0;
    mix(worker, malloc(HUGE_SIZE) == NULL);
    mix(worker, (uint64_t)errno);
    char *mapping = mmap(NULL, 8192, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    if (mapping == MAP_FAILED) _exit(107);
    mapping[4096] = 1;
    mix(worker, (uint64_t)munmap(mapping, 8192));
}

static uint64_t whole_round(struct worker *worker) {
    worker->random = 0x9e3779b97f4a7c15;
    worker->sum = 0xcbf29ce484222325;
    for (int i = 0; i < STEPS; i++) {
        step(worker);
        if (i % 500 == 0) fail_once(worker);
        if (i % 50 == 0) mix_state(worker);
    }
    for (int i = 0; i < SLOTS; i++) {
        if (worker->slots[i].block) read_back(worker, &worker->slots[i], worker->slots[i].size);
        free(worker->slots[i].block);
        worker->slots[i].block = NULL;
    }
    return worker->sum;
}

static void *work(void *number) {
    static struct worker workers[THREADS];
    for (;;) {
        if (whole_round(&workers[(intptr_t)number]) != right) {
            say("wrong");
            _exit(105);
        }
        pthread_mutex_lock(&lock);
        rounds[(intptr_t)number]++;
        pthread_cond_broadcast(&round_over);
        pthread_mutex_unlock(&lock);
    }
    return NULL;
}

// The one that is under way counts for neither.
static void await_two_rounds(void) {
    unsigned long enough[THREADS];
    pthread_mutex_lock(&lock);
    for (int i = 0; i < THREADS; i++) enough[i] = rounds[i] + 3;
    for (int i = 0; i < THREADS; i++)
        while (rounds[i] < enough[i]) pthread_cond_wait(&round_over, &lock);
    pthread_mutex_unlock(&lock);
}

int main(void) {
    static struct worker first;
    right = whole_round(&first);
    expect_unknown_frees();
    expected.failed_unknown = 1;
    ready();
    struct sigaction action = {.sa_handler = on_signal, .sa_flags = SA_RESTART};
    sigaction(SIGALRM, &action, NULL);
    for (intptr_t i = 0; i < THREADS; i++) {
        pthread_t thread;
        if (pthread_create(&thread, NULL, work, (void *)i) != 0) _exit(103);
    }
    sigset_t alarms;
    sigemptyset(&alarms);
    sigaddset(&alarms, SIGALRM);
    pthread_sigmask(SIG_BLOCK, &alarms, NULL);
    struct itimerval every = {{0, 2000}, {0, 2000}};
    setitimer(ITIMER_REAL, &every, NULL);
    for (;;) {
        await_two_rounds();
        say(signals > 0 ? "two rounds" : "no signal came");
        await_line();
    }
}
