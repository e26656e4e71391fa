// C++: each form of `operator new` with its `operator delete`, and requests that fail by an exception that is caught.
#include <cstdint>
#include <new>

#include "protocol.h"

namespace {

constexpr std::align_val_t ALIGNED{64};
// What no optimiser sees through.
void *volatile taken;

template <typename New, typename Delete> void pair(New make, Delete give_back) {
    for (int i = 0; i < 2000; i++) {
        taken = make(unforeseen(1 + i % 500));
        give_back(taken, 1 + i % 500);
    }
}

int caught;

#ifndef THROWS
#define THROWS 1
#endif

template <typename New> void fails(New make) {
    for (int i = 0; i < 300; i++) {
        if (!THROWS) {
            caught++;
            continue;
        }
        try {
            taken = make(unforeseen(HUGE_SIZE));
        } catch (const std::bad_alloc &) {
            caught++;
        }
    }
}

void work() {
    pair([](size_t size) { return operator new(size); }, [](void *block, size_t) { operator delete(block); });
    pair([](size_t size) { return operator new[](size); }, [](void *block, size_t) { operator delete[](block); });
    pair([](size_t size) { return operator new(size, std::nothrow); },
         [](void *block, size_t) { operator delete(block, std::nothrow); });
    pair([](size_t size) { return operator new[](size, std::nothrow); },
         [](void *block, size_t) { operator delete[](block, std::nothrow); });
    pair([](size_t size) { return operator new(size); }, [](void *block, size_t size) { operator delete(block, size); });
    pair([](size_t size) { return operator new[](size); },
         [](void *block, size_t size) { operator delete[](block, size); });
    pair([](size_t size) { return operator new(size, ALIGNED); },
         [](void *block, size_t) { operator delete(block, ALIGNED); });
    pair([](size_t size) { return operator new[](size, ALIGNED); },
         [](void *block, size_t size) { operator delete[](block, size, ALIGNED); });
    pair([](size_t size) { return operator new(size, ALIGNED, std::nothrow); },
         [](void *block, size_t) { operator delete(block, ALIGNED, std::nothrow); });
    fails([](size_t size) { return operator new(size); });
    fails([](size_t size) { return operator new[](size); });
    fails([](size_t size) { return operator new(size, ALIGNED); });
}

CALLER void leak_new() {
    for (int i = 0; i < 50000; i++) KEEP(operator new(200));
}

}  // namespace

extern "C" void work_in_library() { work(); }

int main(int count, char **) {
    if (count > 1) {
        work();
        return caught == 900 ? 0 : 1;
    }
    expect_native("leak_new", "malloc|operator new", 50000, 200);
    expected.failed_unknown = 1;
    expect_unknown_frees();
    ready();
    work();
    if (caught != 900) return 1;
    leak_new();
    done();
}
