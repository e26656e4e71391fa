// Makes blocks and mappings, waits for a line, before which a mark is to be set, and makes others. What it says that it will leak is what
// counts from the mark on.
#include <sys/mman.h>

#include "protocol.h"

enum { OLD = 10, OLD_SIZE = 100, NEW = 5, NEW_SIZE = 200, GROWN = 300, SHORT = 6, SHORT_SIZE = 77, MAP = 64 << 10 };

// Larger than what the live table takes: it is in the map beside it.
enum { HUGE = 20 << 20 };

static void *old[OLD], *huge, *old_map;

static void *map(void) {
    void *at = mmap(NULL, MAP, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    memset(at, 1, MAP);
    return at;
}

CALLER void make_old(void) {
    for (int i = 0; i < OLD; i++) old[i] = malloc(OLD_SIZE);
    huge = malloc(unforeseen(HUGE));
}
CALLER void map_old(void) { old_map = map(); KEEP(map()); }
CALLER void make_new(void) { for (int i = 0; i < NEW; i++) KEEP(malloc(NEW_SIZE)); }
CALLER void map_new(void) { KEEP(map()); KEEP(map()); }
CALLER void make_short(void) { for (int i = 0; i < SHORT; i++) { KEEP(malloc(SHORT_SIZE)); free(kept); } }
CALLER void grow(void *block) { KEEP(realloc(block, GROWN)); }
CALLER void fail_to_grow(void *block) { if (realloc(block, HUGE_SIZE)) abort(); }

int main(void) {
    expect_native("make_new", "malloc", NEW, NEW_SIZE);
    expect_native("grow", "realloc", 1, GROWN);
    expect_mapping("map_new", "mmap", 2, 2 * MAP, 2 * MAP);
    expect_freed(SHORT, SHORT * SHORT_SIZE);
    expect_failed(1);
    // Four blocks, one that is grown, the huge one and what `free` unmaps of it, and a mapping.
    expect_unmatched(8);
    ready();
    make_old();
    map_old();
    say("marked?");
    await_line();
    for (int i = 0; i < 4; i++) free(old[i]);
    grow(old[4]);
    fail_to_grow(old[5]);
    free(huge);
    munmap(old_map, MAP);
    make_short();
    make_new();
    map_new();
    done();
}
