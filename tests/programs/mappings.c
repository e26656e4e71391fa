// Anonymous mappings, made and changed in every way the kernel knows, through libc and past it.
#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>
#include <sys/mman.h>
#include <sys/syscall.h>

#include "protocol.h"

#define PAGES(n) ((size_t)(n) * 4096)
#define TEBIBYTE (1UL << 40)

static void fail(void) {
    say("a system call did not do what the test needs");
    _exit(106);
}

// A system call without libc, so that its caller is the function that this stands in.
static inline __attribute__((always_inline)) long raw(long number, long a, long b, long c, long d, long e, long f) {
    register long r10 __asm__("r10") = d;
    register long r8 __asm__("r8") = e;
    register long r9 __asm__("r9") = f;
    long result;
    __asm__ volatile("syscall"
                     : "=a"(result)
                     : "a"(number), "D"(a), "S"(b), "d"(c), "r"(r10), "r"(r8), "r"(r9)
                     : "rcx", "r11", "memory");
    return result;
}

static void touch(char *from, size_t bytes) {
    for (size_t at = 0; at < bytes; at += 4096) ((volatile char *)from)[at] = 1;
}

// Always through libc, inlined, so that the caller is the function that this stands in.
static inline __attribute__((always_inline)) char *map(size_t bytes) {
    char *at = mmap(NULL, bytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    if (at == MAP_FAILED) fail();
    return at;
}

static void unmap(void *at, size_t bytes) {
    if (munmap(at, bytes) != 0) fail();
}

CALLER void map_touched(void) { touch(map(PAGES(64)), PAGES(64)); }
CALLER void map_untouched(void) { KEEP(map(PAGES(64))); }
CALLER void map_partly_touched(void) { touch(map(PAGES(64)) + PAGES(5), PAGES(16)); }

CALLER void map_three(void) {
    for (int i = 0; i < 3; i++) touch(map(PAGES(2)), PAGES(1));
}

CALLER void map_shared(void) {
    char *at = mmap(NULL, PAGES(8), PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
    if (at == MAP_FAILED) fail();
    touch(at, PAGES(8));
}

CALLER void map_past_libc(void) {
    long at = raw(SYS_mmap, 0, PAGES(10), PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    if (at < 0) fail();
    touch((char *)at, PAGES(10));
}

// The kernel rounds lengths up to pages.
CALLER void map_odd_length(void) { KEEP(map(PAGES(3) + 1)); }

CALLER void map_discarded(void) {
    char *at = map(PAGES(20));
    touch(at, PAGES(20));
    if (madvise(at + PAGES(4), PAGES(12), MADV_DONTNEED) != 0) fail();
}

CALLER void map_punched(void) {
    char *at = map(PAGES(32));
    touch(at, PAGES(32));
    unmap(at + PAGES(10), PAGES(8));
}

CALLER void map_trimmed(void) {
    char *at = map(PAGES(32));
    touch(at, PAGES(32));
    unmap(at, PAGES(3));
    unmap(at + PAGES(30), PAGES(2));
}

CALLER char *map_covered(void) {
    char *at = map(PAGES(16));
    touch(at, PAGES(16));
    return at;
}

CALLER void map_over(char *at) {
    void *over = mmap(at, PAGES(4), PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_FIXED, -1, 0);
    if (over != at) fail();
    touch(at, PAGES(1));
}

CALLER void map_reserved(void) {
    void *at = mmap(NULL, TEBIBYTE, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
    if (at == MAP_FAILED) fail();
}

CALLER void map_reserved_then_committed(void) {
    char *at = mmap(NULL, PAGES(1000), PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
    if (at == MAP_FAILED || mprotect(at + PAGES(100), PAGES(50), PROT_READ | PROT_WRITE) != 0) fail();
    touch(at + PAGES(100), PAGES(50));
}

CALLER void remap_grown(void) {
    char *at = map(PAGES(8));
    touch(at, PAGES(8));
    at = mremap(at, PAGES(8), PAGES(64), MREMAP_MAYMOVE);
    if (at == MAP_FAILED) fail();
    touch(at, PAGES(20));
}

CALLER void remap_moved(void) {
    char *from = map(PAGES(16)), *to = map(PAGES(24));
    touch(from, PAGES(16));
    touch(to, PAGES(24));
    // Covers the first 16 of the 24 pages.
    if (mremap(from, PAGES(16), PAGES(16), MREMAP_MAYMOVE | MREMAP_FIXED, to) != to) fail();
}

CALLER void remap_shrunk(void) {
    char *at = map(PAGES(32));
    touch(at, PAGES(32));
    if (mremap(at, PAGES(32), PAGES(9), 0) != at) fail();
}

CALLER void map_kept_by_failures(void) {
    char *at = map(PAGES(6));
    touch(at, PAGES(6));
    if (munmap(at + 1, PAGES(6)) == 0 || errno != EINVAL) fail();
    if (munmap(at, 0) == 0 || errno != EINVAL) fail();
    if (mremap(at, PAGES(6), unforeseen(1UL << 62), MREMAP_MAYMOVE) != MAP_FAILED) fail();
}

CALLER void fail_to_map(void) {
    if (mmap(NULL, unforeseen(1UL << 62), PROT_READ, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0) != MAP_FAILED) fail();
}

CALLER char *map_first_of_two(char *at) {
    void *first = mmap(at, PAGES(4), PROT_READ, MAP_PRIVATE | MAP_ANONYMOUS | MAP_FIXED, -1, 0);
    return first == at ? at : NULL;
}

CALLER char *map_second_of_two(char *at) {
    void *second = mmap(at, PAGES(4), PROT_READ, MAP_PRIVATE | MAP_ANONYMOUS | MAP_FIXED, -1, 0);
    return second == at ? at : NULL;
}

// One munmap takes the end of a mapping and the beginning of its neighbour, in place of one from before the window.
static void unmap_across(char *room) {
    if (!map_first_of_two(room) || !map_second_of_two(room + PAGES(4))) fail();
    unmap(room + PAGES(3), PAGES(2));
}

CALLER void grow_break(void) {
    long end = raw(SYS_brk, 0, 0, 0, 0, 0, 0);
    if (raw(SYS_brk, end + PAGES(16), 0, 0, 0, 0, 0) != end + (long)PAGES(16)) fail();
    touch((char *)end, PAGES(16));
    if (raw(SYS_brk, end + PAGES(12), 0, 0, 0, 0, 0) != end + (long)PAGES(12)) fail();
}

CALLER void map_and_unmap(void) {
    char *at = map(PAGES(11));
    touch(at, PAGES(11));
    unmap(at, PAGES(11));
}

CALLER void map_file(int file) {
    if (mmap(NULL, PAGES(4), PROT_READ, MAP_PRIVATE, file, 0) == MAP_FAILED) fail();
}

int main(void) {
    int file = open("/proc/self/exe", O_RDONLY);
    char *before = map(PAGES(8)), *room = map(PAGES(8));
    // The break may end inside a page; grow_break counts whole ones.
    if (sbrk((intptr_t)(-(unsigned long)sbrk(0) & 4095)) == (void *)-1) fail();

    expect_mapping("map_touched", "mmap", 1, PAGES(64), PAGES(64));
    expect_mapping("map_untouched", "mmap", 1, PAGES(64), 0);
    expect_mapping("map_partly_touched", "mmap", 1, PAGES(64), PAGES(16));
    expect_mapping("map_three", "mmap", 3, PAGES(6), PAGES(3));
    expect_mapping("map_shared", "mmap", 1, PAGES(8), PAGES(8));
    expect_mapping("map_past_libc", "mmap", 1, PAGES(10), PAGES(10));
    expect_mapping("map_odd_length", "mmap", 1, PAGES(4), 0);
    expect_mapping("map_discarded", "mmap", 1, PAGES(20), PAGES(8));
    expect_mapping("map_punched", "mmap", 1, PAGES(24), PAGES(24));
    expect_freed(0, PAGES(8));
    expect_mapping("map_trimmed", "mmap", 1, PAGES(27), PAGES(27));
    expect_freed(0, PAGES(5));
    expect_mapping("map_covered", "mmap", 1, PAGES(12), PAGES(12));
    expect_freed(0, PAGES(4));
    expect_mapping("map_over", "mmap", 1, PAGES(4), PAGES(1));
    expect_mapping("map_reserved", "mmap", 1, TEBIBYTE, 0);
    expect_mapping("map_reserved_then_committed", "mmap", 1, PAGES(1000), PAGES(50));
    expect_mapping("remap_grown", "mremap", 1, PAGES(64), PAGES(20));
    expect_freed(1, PAGES(8));
    expect_mapping("remap_moved", "mremap", 1, PAGES(16), PAGES(16));
    expect_mapping("remap_moved", "mmap", 1, PAGES(8), PAGES(8));
    expect_freed(1, PAGES(16) + PAGES(16));  // where it was, and what it covers
    expect_mapping("remap_shrunk", "mremap", 1, PAGES(9), PAGES(9));
    expect_freed(1, PAGES(32));
    expect_mapping("map_kept_by_failures", "mmap", 1, PAGES(6), PAGES(6));
    expect_mapping("map_first_of_two", "mmap", 1, PAGES(3), 0);
    expect_mapping("map_second_of_two", "mmap", 1, PAGES(3), 0);
    expect_freed(0, PAGES(2));
    expect_mapping("grow_break", "brk", 1, PAGES(12), PAGES(12));
    expect_freed(0, PAGES(4));
    expect_freed(1, PAGES(11));  // map_and_unmap
    expected.failed_unknown = expected.unmatched_unknown = 1;
    ready();

    map_touched();
    map_untouched();
    map_partly_touched();
    map_three();
    map_shared();
    map_past_libc();
    map_odd_length();
    map_discarded();
    map_punched();
    map_trimmed();
    map_over(map_covered() + PAGES(6));
    map_reserved();
    map_reserved_then_committed();
    remap_grown();
    remap_moved();
    remap_shrunk();
    map_kept_by_failures();
    fail_to_map();
    unmap_across(room);
    grow_break();
    map_and_unmap();
    map_file(file);
    unmap(before, PAGES(8));
    done();
}
