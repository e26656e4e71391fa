// A program that brings an allocator, and an `operator new` that does not call its malloc, as of a tcmalloc that is linked statically.
#include <new>

#include "arena_allocator.c"

void *operator new(std::size_t size) {
    if (void *block = take(size)) return block;
    throw std::bad_alloc();
}

void operator delete(void *block) noexcept { free(block); }
void operator delete(void *block, std::size_t) noexcept { free(block); }

int main() {
    expect_unknown_frees();
    ready();
    free(malloc(unforeseen(20)));
    delete new char;
    done();
}
