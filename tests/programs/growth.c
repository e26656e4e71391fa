// Makes its own memory grow in every way that growth mode tells apart, each through a function of its own, by a known number of
// pages.
#include <fcntl.h>
#include <sys/mman.h>

#include "protocol.h"

enum { PAGE = 4096 };

static char *map(size_t pages) {
    return mmap(NULL, pages * PAGE, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
}

CALLER static void fill(char *memory, size_t pages) { memset(memory, 1, pages * PAGE); }

CALLER static void grow_heap(void) {
    for (int i = 0; i < 500; i++) {
        char *block = malloc(unforeseen(4080));
        memset(block, 1, 4080);
        KEEP(block);
    }
}
CALLER static void grow_old(char *old) { fill(old, 300), KEEP(old); }
CALLER static void grow_own(void) {
    char *own = map(100);
    fill(own, 50);
    KEEP(own);
}
CALLER static void grow_by_read(char *old, int zero) { KEEP((void *)read(zero, old, 40 * PAGE)); }
CALLER static void drop(char *old) {
    fill(old, 64);
    KEEP((void *)(long)madvise(old, 64 * PAGE, MADV_DONTNEED));
}
CALLER static void give_back(char *old) {
    fill(old, 32);
    KEEP((void *)(long)munmap(old, 32 * PAGE));
}
CALLER static void touch_again(char *old) {
    for (int i = 0; i < 3; i++) {
        fill(old, 16);
        KEEP((void *)(long)madvise(old, 16 * PAGE, i < 2 ? MADV_DONTNEED : MADV_NORMAL));
    }
}
CALLER static void only_read(char *old) {
    for (int i = 0; i < 20; i++) KEEP((void *)(long)((volatile char *)old)[i * PAGE]);
}

int main(void) {
    char *old = map(1024);
    int zero = open("/dev/zero", O_RDONLY);
    ready();
    grow_heap();
    grow_old(old);
    grow_own();
    grow_by_read(old + 310 * PAGE, zero);
    drop(old + 400 * PAGE);
    give_back(old + 500 * PAGE);
    touch_again(old + 600 * PAGE);
    only_read(old + 700 * PAGE);
    done();
}
