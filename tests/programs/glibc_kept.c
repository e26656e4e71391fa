// Leaves every other block free in the arenas of glibc's malloc, its own and those of threads, and says by how much glibc
// finds more free than before (`free BYTES`).
#include <malloc.h>
#include <pthread.h>

#include "protocol.h"

#if __GLIBC_PREREQ(2, 33)
#define mallinfo mallinfo2
#endif

enum { THREADS = 3, MOST = 1 << 15 };

static pthread_barrier_t fragmented;

// Fast lists (of the versions that have them), small ones, and large ones.
static const struct {
    size_t size, count;
} kinds[] = {{24, 1 << 15}, {500, 4096}, {1100, 2048}, {4080, 512}, {30000, 64}};

static void fragment(void **blocks) {
    for (size_t kind = 0; kind < sizeof kinds / sizeof *kinds; kind++) {
        for (size_t i = 0; i < kinds[kind].count; i++) {
            blocks[i] = malloc(kinds[kind].size);
            memset(blocks[i], 1, kinds[kind].size);
        }
        for (size_t i = 0; i < kinds[kind].count; i += 2) free(blocks[i]);
    }
}

static void *run(void *blocks) {
    fragment(blocks);
    pthread_barrier_wait(&fragmented);
    for (;;) pause();
    return NULL;
}

int main(void) {
    static void *blocks[THREADS + 1][MOST];
    pthread_barrier_init(&fragmented, NULL, THREADS + 1);
    KEEP(malloc(24));  // the first arena is there before the window
    expect_unknown_frees();
    ready();
    size_t before = (size_t)mallinfo().fordblks;
    for (int i = 1; i <= THREADS; i++) {
        pthread_t thread;
        if (pthread_create(&thread, NULL, run, blocks[i]) != 0) return 1;
    }
    fragment(blocks[0]);
    pthread_barrier_wait(&fragmented);
    char line[64];
    snprintf(line, sizeof line, "free %zu", (size_t)mallinfo().fordblks - before);
    say(line);
    done();
}
