// C++ over an allocator that brings its own operator new and delete (tcmalloc, jemalloc, mimalloc, preloaded): every form
// leaking and, with the argument `throw`, throwing many times before one that succeeds.
#include <cstdlib>
#include <cstring>
#include <new>

#include "protocol.h"

namespace {
struct alignas(64) Aligned {
    char bytes[192];
};
enum { THROWS = 100 };
}

CALLER void leak_new() { for (int i = 0; i < 500; i++) KEEP(::operator new(unforeseen(120))); }
CALLER void leak_large() { for (int i = 0; i < 3; i++) KEEP(::operator new(unforeseen(3 << 20))); }
CALLER void leak_array() { for (int i = 0; i < 4; i++) KEEP(new char[unforeseen(130)]); }
CALLER void leak_nothrow() { for (int i = 0; i < 3; i++) KEEP(::operator new(unforeseen(140), std::nothrow)); }
CALLER void leak_aligned() { for (int i = 0; i < 2; i++) KEEP(new Aligned); }
CALLER void leak_malloc() { for (int i = 0; i < 6; i++) KEEP(std::malloc(unforeseen(150))); }
CALLER void leak_after_throws() { KEEP(::operator new(unforeseen(160))); }

CALLER void throw_and_catch() {
    try {
        KEEP(::operator new(HUGE_SIZE));
    } catch (const std::bad_alloc &) {
        KEEP(nullptr);
    }
}

// What comes of `new` as if it had been used: without that, compilers leave out pairs of new and delete.
template <typename T> CALLER T *used(T *block) {
    KEEP(block);
    return block;
}

CALLER void release() {
    ::operator delete(used(::operator new(unforeseen(170))));
    delete used(new Aligned);
    delete[] used(new char[unforeseen(180)]);
    std::free(used(std::calloc(unforeseen(2), 95)));
}

int main(int argc, char **argv) {
    bool throws = argc > 1 && std::strcmp(argv[1], "throw") == 0;
    if (throws) throw_and_catch();  // the first throw of a process loads the unwinder's tables

    expect_native("leak_new", "operator new", 500, 120);
    expect_native("leak_large", "operator new", 3, 3 << 20);
    // Some allocators have one function for both.
    expect_native("leak_array", "operator new|operator new[]", 4, 130);
    expect_native("leak_nothrow", "operator new", 3, 140);
    expect_native("leak_aligned", "operator new", 2, sizeof(Aligned));
    expect_native("leak_malloc", "malloc", 6, 150);
    if (throws) {
        expect_native("leak_after_throws", "operator new", 1, 160);
        expect_failed(THROWS);
        expected.freed_unknown = expected.unmatched_unknown = 1;  // the exceptions themselves
    } else {
        expect_freed(4, 170 + sizeof(Aligned) + 180 + 190);
    }
    ready();
    leak_new();
    leak_large();
    leak_array();
    leak_nothrow();
    leak_aligned();
    leak_malloc();
    release();
    if (throws) {
        for (int i = 0; i < THROWS; i++) throw_and_catch();
        leak_after_throws();
    }
    done();
}
