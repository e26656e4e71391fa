// An allocator that is linked into the program, under a prefix that nobody knows, and keeps what was freed: each round needs blocks of
// another size, which it makes of new memory. All but the first block of a round are freed again.
//
// With `before` all memory was mapped before the window, and is only touched in it.
#include <errno.h>
#include <stdint.h>
#include <sys/mman.h>

#include "protocol.h"

enum { CLASSES = 24, CHUNK = 1 << 20, ROUNDS = 8, ROUND_BYTES = 8 << 20, MOST = 1 << 14, ROOM = 256 << 20 };

struct block {
    size_t class;
    struct block *next;
};

static struct block *kept_back[CLASSES];
static unsigned char *fresh, *fresh_end, *reserve, *reserve_end;

CALLER static void *vault_chunk(size_t bytes) {
    if (reserve + bytes <= reserve_end) {
        reserve += bytes;
        return reserve - bytes;
    }
    void *chunk = mmap(NULL, bytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    return chunk == MAP_FAILED ? NULL : chunk;
}

CALLER void *vault_malloc(size_t size) {
    size_t class = 0;
    while (((size_t)64 << class) < size + sizeof(struct block)) class++;
    struct block *block = kept_back[class];
    if (block) {
        kept_back[class] = block->next;
        return block + 1;
    }
    size_t bytes = (size_t)64 << class;
    if (fresh + bytes > fresh_end) {
        size_t chunk = bytes > CHUNK ? bytes : CHUNK;
        fresh = vault_chunk(chunk);
        if (!fresh) return NULL;
        fresh_end = fresh + chunk;
    }
    block = (struct block *)fresh;
    fresh += bytes;
    block->class = class;
    return block + 1;
}

CALLER void vault_free(void *address) {
    if (!address) return;
    struct block *block = (struct block *)address - 1;
    block->next = kept_back[block->class];
    kept_back[block->class] = block;
}

CALLER void *vault_calloc(size_t count, size_t size) {
    void *volatile block = vault_malloc(count * size);
    return block ? memset(block, 0, count * size) : NULL;
}

CALLER void *vault_realloc(void *old, size_t size) {
    void *volatile block = vault_malloc(size);
    if (!old || !block) return block;
    size_t had = ((size_t)64 << ((struct block *)old - 1)->class) - sizeof(struct block);
    memcpy(block, old, had < size ? had : size);
    vault_free(old);
    return block;
}

CALLER int vault_posix_memalign(void **result, size_t alignment, size_t size) {
    if (alignment > 16) return EINVAL;
    *result = vault_malloc(size);
    return *result ? 0 : ENOMEM;
}

// What is asked for in a round, so that each has a class of its own.
static size_t size_of(int round) { return ((size_t)1024 << round) - sizeof(struct block); }
static size_t count_of(int round) { return (size_t)ROUND_BYTES / ((size_t)1024 << round); }

CALLER static void work(void) {
    static void *blocks[MOST];
    for (int round = 0; round < ROUNDS; round++) {
        for (size_t i = 0; i < count_of(round); i++) {
            blocks[i] = vault_malloc(size_of(round));
            memset(blocks[i], 1, size_of(round));
        }
        for (size_t i = round == 0 ? 1 : 0; i < count_of(round); i++) vault_free(blocks[i]);
    }
}

int main(int argc, char **argv) {
    if (argc > 1 && strcmp(argv[1], "before") == 0) {
        reserve = mmap(NULL, ROOM, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
        if (reserve == MAP_FAILED) return 1;
        reserve_end = reserve + ROOM;
    }
    // All functions are used, so that the compiler keeps them.
    void *block = NULL;
    if (vault_posix_memalign(&block, 16, 10)) return 1;
    vault_free(vault_realloc(block, 10));
    vault_free(vault_calloc(1, 10));
    expect_native("work", "vault_malloc", 1, size_of(0));
    size_t objects = 0, bytes = 0;
    for (int round = 0; round < ROUNDS; round++) {
        objects += count_of(round);
        bytes += count_of(round) * size_of(round);
    }
    expect_freed(objects - 1, bytes - size_of(0));
    ready();
    work();
    say("worked");
    done();
}
