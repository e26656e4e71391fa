// Eight threads that call every function of the malloc family at random, and check what their blocks hold; threads that come and go;
// children of fork and vfork; a signal every millisecond. Everything is freed in the end.
//
//     sampled_churn CALLS      in each thread, times 1,000
#define _GNU_SOURCE
#include <errno.h>
#include <malloc.h>
#include <pthread.h>
#include <signal.h>
#include <stdint.h>
#include <sys/time.h>
#include <sys/wait.h>

#include "protocol.h"

enum { THREADS = 8, HELD = 200 };

struct block { unsigned char *at; size_t size; unsigned char fill; };

static int rounds;
static volatile sig_atomic_t signals;
// Blocks that one thread makes and another frees.
static struct block passed[64];
static pthread_mutex_t passing = PTHREAD_MUTEX_INITIALIZER;

static void on_signal(int number) { (void)number; signals++; }

static void fail(const char *why) {
    write_all(why, strlen(why));
    _exit(99);
}

static void fill(struct block *block, uint64_t random) {
    if (!block->at) { block->size = 0; return; }
    if (malloc_usable_size(block->at) < block->size) fail("a block is too small\n");
    block->fill = (unsigned char)random;
    memset(block->at, block->fill, block->size);
}

static void check(const struct block *block, size_t size) {
    for (size_t i = 0; i < size; i++)
        if (block->at[i] != block->fill) fail("a block has changed\n");
}

static uint64_t next(uint64_t *state) {
    *state ^= *state << 13, *state ^= *state >> 7, *state ^= *state << 17;
    return *state;
}

static size_t some_size(uint64_t random) {
    size_t size = random % 200;
    if (random % 64 == 0) size = random % 70000;
    if (random % 4096 == 0) size = random % (1 << 20);
    return size;
}

static void release(struct block *block) {
    if (!block->at) return;
    check(block, block->size);
    free(block->at);
    block->at = NULL;
}

static void replace(struct block *block, uint64_t *state) {
    uint64_t random = next(state);
    size_t size = some_size(random >> 8), old = block->size;
    void *at = NULL;
    errno = 77;
    if (random % 16 < 4 && block->at) {
        check(block, old);
        at = random % 2 ? realloc(block->at, size + 1) : reallocarray(block->at, size / 4 + 1, 4);
        if (!at) fail("realloc failed\n");
        block->at = at;
        block->size = size + 1;
        check(block, old < block->size ? old : block->size);
        fill(block, random >> 40);
        return;
    }
    release(block);
    switch (random % 8) {
        case 0: at = calloc(size / 8 + 1, 8); break;
        case 1: at = memalign(64, size); break;
        case 2: at = aligned_alloc(32, size); break;
        case 3: if (posix_memalign(&at, 128, size)) at = NULL; break;
        case 4: at = realloc(NULL, size); break;
        default: at = malloc(size); break;
    }
    if (at && errno != 77) fail("errno was changed\n");
    if (random % 8 == 0)
        for (size_t i = 0; i < size; i++) if (((char *)at)[i]) fail("calloc gave a block that is not zero\n");
    if (random % 8 == 3 && (uintptr_t)at % 128) fail("a block is not aligned\n");
    *block = (struct block){at, size, 0};
    fill(block, random >> 40);
}

static void pass(struct block *block, uint64_t random) {
    pthread_mutex_lock(&passing);
    struct block *place = &passed[random % 64], mine = *block;
    *block = *place;
    *place = mine;
    pthread_mutex_unlock(&passing);
}

static void must_fail(uint64_t random) {
    void *block = malloc(random % 100);
    struct block mine = {block, random % 100, 0};
    fill(&mine, random);
    if (realloc(block, HUGE_SIZE)) fail("there is no such memory\n");
    if (malloc(HUGE_SIZE) || calloc(HUGE_SIZE, 2) || reallocarray(block, HUGE_SIZE, 16)) fail("nor such\n");
    release(&mine);
}

static void *short_lived(void *argument) { free(malloc((size_t)argument)); return NULL; }

static void beget(int number) {
    if (number % 2) {
        pid_t child = vfork();
        if (child == 0) { execl("/bin/true", "true", (char *)NULL); _exit(1); }
        int status;
        if (child < 0 || waitpid(child, &status, 0) != child || status) fail("a child of vfork failed\n");
        return;
    }
    pid_t child = fork();
    if (child == 0) {
        uint64_t state = (uint64_t)number + 17;
        struct block block = {0};
        for (int i = 0; i < 2000; i++) replace(&block, &state);
        release(&block);
        _exit(0);
    }
    int status;
    if (child < 0 || waitpid(child, &status, 0) != child || status) fail("a child of fork failed\n");
}

static void *churn(void *argument) {
    uint64_t state = 88172645463325252ULL + (uint64_t)(uintptr_t)argument;
    struct block held[HELD] = {0};
    for (int i = 0; i < rounds; i++) {
        struct block *block = &held[next(&state) % HELD];
        replace(block, &state);
        if (i % 64 == 0) pass(block, next(&state));
        if (i % 1000 == 0) must_fail(next(&state));
        if (i % 2000 == 0) {
            pthread_t thread;
            if (pthread_create(&thread, NULL, short_lived, (void *)(size_t)i) == 0) pthread_join(thread, NULL);
        }
    }
    for (int i = 0; i < HELD; i++) release(&held[i]);
    return NULL;
}

static void run(void) {
    pthread_t threads[THREADS];
    for (size_t i = 0; i < THREADS; i++)
        if (pthread_create(&threads[i], NULL, churn, (void *)(i + 1))) fail("no thread\n");
    for (int i = 0; i < 20; i++) beget(i);
    for (size_t i = 0; i < THREADS; i++) pthread_join(threads[i], NULL);
    for (int i = 0; i < 64; i++) release(&passed[i]);
}

int main(int count, char **arguments) {
    rounds = (count > 1 ? atoi(arguments[1]) : 100) * 1000;
    struct sigaction action = {.sa_handler = on_signal, .sa_flags = SA_RESTART};
    struct itimerval timer = {{0, 1000}, {0, 1000}};
    sigaction(SIGALRM, &action, NULL);
    if (count > 2) {  // on its own
        setitimer(ITIMER_REAL, &timer, NULL);
        run();
        return signals ? 0 : 1;
    }
    expect_unknown_frees();
    expected.failed_unknown = 1;
    ready();
    setitimer(ITIMER_REAL, &timer, NULL);
    run();
    timer = (struct itimerval){0};
    setitimer(ITIMER_REAL, &timer, NULL);
    done();
}
