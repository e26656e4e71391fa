// Eight threads, each of which makes so many blocks of random sizes, checks what they hold, and frees them: all but those of
// `leak_blocks`. Before "done" it says what each function has allocated: `allocated {FUNCTION: [objects, bytes], …}`.
//
//     gated_pairs PAIRS        in each thread
#include <pthread.h>
#include <stdint.h>

#include "protocol.h"

enum { THREADS = 8, HELD = 64, LARGEST = 2000, LEAKED = 300, LEAKED_SIZE = 5000 };
enum role { MALLOC, CALLOC, REALLOC, ALIGNED, ROLES };

struct block { unsigned char *at; size_t size; unsigned char fill; };

static long pairs;
static struct { unsigned long objects, bytes; } allocated[ROLES];

static void fail(const char *why) { say(why); _exit(99); }

CALLER void *make_malloc(size_t size) { void *block = malloc(size); __asm__ volatile("" : "+r"(block)); return block; }
CALLER void *make_calloc(size_t size) { void *block = calloc(1, size); __asm__ volatile("" : "+r"(block)); return block; }
CALLER void *make_realloc(void *old, size_t size) { void *block = realloc(old, size); __asm__ volatile("" : "+r"(block)); return block; }
CALLER void *make_aligned(size_t size) { void *block; if (posix_memalign(&block, 128, size)) block = NULL; return block; }
CALLER void leak_blocks(void) { for (int i = 0; i < LEAKED; i++) KEEP(malloc(unforeseen(LEAKED_SIZE))); }

struct step { struct block *block; enum role role; size_t size; unsigned char fill; };

static struct step next(uint64_t *state, struct block *held) {
    *state ^= *state << 13, *state ^= *state >> 7, *state ^= *state << 17;
    struct block *block = &held[*state >> 32 & (HELD - 1)];
    enum role role = (enum role)(*state >> 40 & 3);
    if (*state >> 42 & 1) role = MALLOC;
    // What is resized must be there.
    if (role == REALLOC && !block->size) role = MALLOC;
    return (struct step){block, role, 1 + (*state & 0xffff) % LARGEST, (unsigned char)(*state >> 48)};
}

static void check(const struct block *block, size_t bytes) {
    for (size_t i = 0; i < bytes; i++) if (block->at[i] != block->fill) fail("corrupt");
}

static uint64_t seed(size_t number) { return 88172645463325252ULL + number; }

static void *work(void *number) {
    uint64_t state = seed((size_t)number);
    struct block held[HELD] = {{0}};
    for (long i = 0; i < pairs; i++) {
        struct step step = next(&state, held);
        struct block *block = step.block;
        if (block->at) check(block, block->size);
        if (step.role != REALLOC) free(block->at);
        switch (step.role) {
        case MALLOC: block->at = make_malloc(step.size); break;
        case CALLOC: block->at = make_calloc(step.size); block->fill = 0; check(block, step.size); break;
        case REALLOC: block->at = make_realloc(block->at, step.size); check(block, step.size < block->size ? step.size : block->size); break;
        default: block->at = make_aligned(step.size); if ((uintptr_t)block->at % 128) fail("not aligned"); break;
        }
        if (!block->at) fail("no memory");
        block->size = step.size;
        memset(block->at, block->fill = step.fill, step.size);
    }
    for (int i = 0; i < HELD; i++) {
        if (held[i].at) check(&held[i], held[i].size);
        free(held[i].at);
    }
    leak_blocks();
    return NULL;
}

static void foresee(void) {
    for (size_t number = 1; number <= THREADS; number++) {
        uint64_t state = seed(number);
        struct block held[HELD] = {{0}};
        for (long i = 0; i < pairs; i++) {
            struct step step = next(&state, held);
            step.block->size = step.size;
            allocated[step.role].objects++;
            allocated[step.role].bytes += step.size;
        }
    }
    // Not by stdio, which allocates.
    static char text[512];
    snprintf(text, sizeof text,
             "allocated {\"make_malloc\":[%lu,%lu],\"make_calloc\":[%lu,%lu],\"make_realloc\":[%lu,%lu],\"make_aligned\":[%lu,%lu]}",
             allocated[0].objects, allocated[0].bytes, allocated[1].objects, allocated[1].bytes, allocated[2].objects,
             allocated[2].bytes, allocated[3].objects, allocated[3].bytes);
    say(text);
}

static pthread_barrier_t begun, leave;

static void *thread(void *number) {
    pthread_barrier_wait(&begun);
    work(number);
    pthread_barrier_wait(&leave);
    return NULL;
}

int main(int arguments, char **argument) {
    pairs = arguments > 1 ? atol(argument[1]) : 100000;
    expect_native("leak_blocks", "malloc", THREADS * LEAKED, LEAKED_SIZE);
    expect_unknown_frees();
    pthread_t threads[THREADS];
    // Of such stacks the C library keeps all.
    pthread_attr_t small;
    pthread_attr_init(&small);
    pthread_attr_setstacksize(&small, 256 << 10);
    pthread_barrier_init(&begun, NULL, THREADS + 1);
    pthread_barrier_init(&leave, NULL, THREADS + 1);
    for (size_t i = 0; i < THREADS; i++)
        if (pthread_create(&threads[i], &small, thread, (void *)(i + 1))) _exit(103);
    ready();
    pthread_barrier_wait(&begun);
    pthread_barrier_wait(&leave);
    for (int i = 0; i < THREADS; i++) pthread_join(threads[i], NULL);
    foresee();
    done();
}
