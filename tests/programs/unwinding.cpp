// Stacks at allocations around C++ exceptions. Each case allocates a size of its own; unwinding.rs knows the chains.
#include <algorithm>
#include <exception>
#include <functional>
#include <vector>

#include "protocol.h"

namespace {

CALLER void allocate(size_t size) { KEEP(malloc(size)); }

// Allocates while an exception passes through the function that it lives in.
struct Guard {
    size_t size;
    CALLER ~Guard() { KEEP(malloc(size)); }
};

// The copy that is thrown allocates.
struct Failure {
    Failure() = default;
    CALLER Failure(const Failure &) { KEEP(malloc(203)); }
};

CALLER void throws_number() { throw 7; }

CALLER void passed_through(size_t size) {
    Guard guard{size};
    throws_number();
}

CALLER void catches_and_allocates() {
    try {
        passed_through(201);
    } catch (int) {
        allocate(202);
    }
}

CALLER void throws_copy(const Failure &failure) { throw failure; }

CALLER void catches_copy() {
    try {
        throws_copy(Failure());
    } catch (const Failure &) {
    }
}

// The destructor runs in a function that no longer has a caller of its kind: the exception passes two.
CALLER void passed_twice() {
    Guard outer{204};
    passed_through(205);
}

CALLER void rethrows() {
    try {
        passed_twice();
    } catch (...) {
        allocate(206);
        throw;
    }
}

CALLER void catches_rethrown() {
    try {
        rethrows();
    } catch (int) {
        allocate(207);
    }
}

struct Shape {
    virtual ~Shape() = default;
    virtual void draw() const = 0;
};

struct Circle : Shape {
    CALLER void draw() const override { KEEP(malloc(208)); }
};

CALLER void draws(const Shape &shape) {
    shape.draw();
    __asm__ volatile("" ::: "memory");
}

CALLER bool before(int a, int b) {
    static bool called;
    if (!called) KEEP(malloc(209));
    called = true;
    return a < b;
}

// A template of the library, compiled into the program, calls back.
CALLER void sorts(std::vector<int> &numbers) {
    std::function<bool(int, int)> less = before;
    std::stable_sort(numbers.begin(), numbers.end(), less);
}

}  // namespace

int main() {
    std::vector<int> numbers{5, 3, 9, 1};
    catches_and_allocates();  // whatever the unwinder allocates at first is allocated now
    expect_native("Guard::~Guard", "malloc", 3, 0);
    expected.leaks[0].bytes = expected.leaks[0].weight = 201 + 204 + 205;
    struct expectation allocates = {"allocate", "malloc", "native", 3, 202 + 206 + 207, 202 + 206 + 207};
    expect(allocates);
    expect_native("Circle::draw", "malloc", 1, 208);
    expect_native("before", "malloc", 1, 209);
    expect_unknown_frees();
    ready();

    catches_and_allocates();
    catches_copy();
    catches_rethrown();
    draws(Circle());
    sorts(numbers);
    done();
}
