// Blocks of sizes from 8 B to 8 MiB, each size from a function of its own, every other one freed again; blocks that are
// resized; and frees of blocks from before the window. With an argument: calls that call each other, of an allocator that has such
// (own_allocator.c).
#include "protocol.h"

enum { OLDER = 40000, RESIZED = 50000, NESTED = 80000, MOST = 400000 };

static void *blocks[MOST], *older[OLDER];

static void free_every_other(int count) { for (int i = 1; i < count; i += 2) free(blocks[i]); }

#define SIZES(DO) DO(8, 400000) DO(64, 200000) DO(512, 50000) DO(4096, 20000) DO(32768, 4000) DO(262144, 2000) DO(8388608, 400)

#define DEFINE(SIZE, COUNT) \
    CALLER void leak_##SIZE(void) { for (int i = 0; i < COUNT; i++) blocks[i] = malloc(SIZE); }
SIZES(DEFINE)

CALLER void make_small(void) { for (int i = 0; i < RESIZED; i++) blocks[i] = calloc(1, 100); }
CALLER void leak_resized(void) { for (int i = 0; i < RESIZED; i++) blocks[i] = realloc(blocks[i], 300); }
CALLER void leak_calloc(void) { for (int i = 0; i < NESTED; i++) blocks[i] = calloc(10, 25); }
CALLER void leak_posix_memalign(void) { for (int i = 0; i < NESTED; i++) (void)!posix_memalign(&blocks[i], 64, 100); }

static void nested(void) {
    expect_native("leak_calloc", "calloc", NESTED, 250);
    expect_native("leak_posix_memalign", "posix_memalign", NESTED, 100);
    ready();
    leak_calloc();
    leak_posix_memalign();
    done();
}

CALLER void free_older(void) { for (int i = 0; i < OLDER; i++) free(older[i]); }

int main(int arguments, char **argument) {
    (void)argument;
    if (arguments > 1) nested();
    for (int i = 0; i < OLDER; i++) older[i] = malloc(100);
#define EXPECT(SIZE, COUNT) \
    expect_native("leak_" #SIZE, "malloc", COUNT / 2, SIZE); \
    expect_freed(COUNT / 2, COUNT / 2 * (unsigned long)SIZE);
    SIZES(EXPECT)
    expect_native("leak_resized", "realloc", RESIZED, 300);
    expect_freed(RESIZED, RESIZED * 100);
    expect_unmatched(OLDER);
    ready();
#define WORK(SIZE, COUNT) leak_##SIZE(), free_every_other(COUNT);
    SIZES(WORK)
    make_small();
    leak_resized();
    free_older();
    done();
}
