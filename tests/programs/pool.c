// An allocator under names of its own, in memory of its own, so that no other allocator sees its calls.
#include <string.h>

#include "pool.h"

enum { ARENA = 4 << 20 };

static _Alignas(16) unsigned char arena[ARENA];
static size_t used;

static void *carve(size_t size) {
    size_t room = (size + 31) & ~(size_t)15;
    if (size > ARENA || used + room > ARENA) return NULL;
    size_t *block = (size_t *)(arena + used);
    used += room;
    *block = size;
    return block + 2;
}

static void *move(void *old, size_t size) {
    void *block = carve(size);
    if (block && old) {
        size_t had = ((size_t *)old)[-2];
        memcpy(block, old, had < size ? had : size);
    }
    return block;
}

static void give_back(void *block) { __asm__ volatile("" : : "r"(block) : "memory"); }

struct pool *pool_default;

void *pool_get(size_t size) { return carve(size); }
void *pool_zget(size_t count, size_t size) { return carve(count * size); }
void *pool_grow(void *block, size_t size) { return move(block, size); }
void pool_put(void *block) { give_back(block); }
void *pool_get_from(struct pool *pool, size_t size) { return give_back(pool), carve(size); }
void pool_put_to(struct pool *pool, void *block) { give_back(pool), give_back(block); }

void *my_malloc(size_t size) { return carve(size); }
void *my_calloc(size_t count, size_t size) { return carve(count * size); }
void *my_realloc(void *block, size_t size) { return move(block, size); }
void my_free(void *block) { give_back(block); }
void my_free_sized(void *block, size_t size) { (void)size, give_back(block); }
