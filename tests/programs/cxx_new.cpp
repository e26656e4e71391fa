// C++: every form of operator new leaking, and operator new that throws, many times, before one that succeeds.
#include <cstdlib>
#include <new>

#include "protocol.h"

namespace {
struct alignas(64) Aligned {
    char bytes[192];
};
enum { THROWS = 200 };
}

CALLER void leak_new() { for (int i = 0; i < 5; i++) KEEP(::operator new(unforeseen(120))); }
CALLER void leak_array() { for (int i = 0; i < 4; i++) KEEP(new char[unforeseen(130)]); }
CALLER void leak_nothrow() { for (int i = 0; i < 3; i++) KEEP(::operator new(unforeseen(140), std::nothrow)); }
CALLER void leak_aligned() { for (int i = 0; i < 2; i++) KEEP(new Aligned); }
CALLER void leak_after_throws() { KEEP(::operator new(unforeseen(150))); }

namespace pool {
// A templated method, for its name.
template <typename T> struct Session {
    CALLER static void open(T count) { for (T i = 0; i < count; i++) KEEP(std::malloc(unforeseen(160))); }
};
}

CALLER void throw_and_catch() {
    try {
        KEEP(::operator new(HUGE_SIZE));
    } catch (const std::bad_alloc &) {
        KEEP(nullptr);
    }
}

CALLER void release() {
    ::operator delete(::operator new(unforeseen(170)));
    delete new Aligned;
}

int main() {
    throw_and_catch();  // the first throw of a process loads the unwinder's tables

    // Traced is malloc, which operator new calls: the caller is operator new.
    expect_native("operator new", "malloc", 5 + 4 + 3 + 1, 0);
    expected.leaks[0].bytes = expected.leaks[0].weight = 5 * 120 + 4 * 130 + 3 * 140 + 150;
    expect_native("operator new", "memalign|aligned_alloc", 2, sizeof(Aligned));
    expect_native("pool::Session<int>::open", "malloc", 6, 160);
    expected.freed_unknown = 1;   // the exceptions themselves
    expect_failed(THROWS);
    ready();
    leak_new();
    leak_array();
    leak_nothrow();
    leak_aligned();
    pool::Session<int>::open(6);
    for (int i = 0; i < THROWS; i++) throw_and_catch();
    leak_after_throws();
    release();
    done();
}
