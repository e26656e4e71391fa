// Leaks from a pool that tells of its blocks itself (told.h), and from malloc, of which nobody tells.
#include "protocol.h"
#include "told.h"

enum { KEPT = 4000, PUT_BACK = 2000, SIZE = 100, LARGE = 40000, LARGE_SIZE = 3 << 20 };

static void *blocks[KEPT + PUT_BACK];

CALLER void keep_blocks(void) { for (int i = 0; i < KEPT; i++) KEEP(blocks[i] = pool_get(SIZE)); }
CALLER void put_blocks_back(void) {
    for (int i = 0; i < PUT_BACK; i++) KEEP(blocks[i] = pool_get(SIZE + 1));
    for (int i = 0; i < PUT_BACK; i++) pool_put(blocks[i]);
}
CALLER void keep_large(void) { for (int i = 0; i < 4; i++) KEEP(pool_get(LARGE_SIZE)); }
CALLER void leak_malloc(void) { for (int i = 0; i < 100; i++) KEEP(malloc(1 << 20)); }

int main(void) {
    struct expectation pool[] = {
        {"keep_blocks", "otel_memory:alloc", "native", KEPT, KEPT * SIZE, KEPT * SIZE},
        {"keep_large", "otel_memory:alloc", "native", 4, 4UL * LARGE_SIZE, 4UL * LARGE_SIZE},
    };
    expect(pool[0]);
    expect(pool[1]);
    expect_freed(PUT_BACK, PUT_BACK * (SIZE + 1));
    ready();
    keep_blocks();
    put_blocks_back();
    keep_large();
    leak_malloc();
    done();
}
