// How a C or C++ program tells what it will leak: see README.md of this package.
//
//     expect_native("leak_malloc", "malloc", 7, 1001);   // 7 blocks of 1001 bytes
//     ready();                                           // prints the expectations, waits for "go"
//     ... the work ...
//     done();                                            // prints "done", waits for the end of its input
//
// Between ready() and done() nothing but the work allocates: both speak through read(2) and write(2).
#ifndef PROTOCOL_H
#define PROTOCOL_H

#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/prctl.h>
#include <sys/uio.h>
#include <unistd.h>

// A function that shows in stacks under its own name, with its own frame.
#define CALLER __attribute__((noipa))
// A function that is not called in every program.
#define OPTIONAL __attribute__((unused)) static

// What a block's address is given to, so that the compiler neither removes the allocation nor makes a tail call of it.
static void *volatile kept;
#define KEEP(block) (kept = (block))

// A number that the compiler does not know: it warns about absurd sizes and folds their failure.
OPTIONAL CALLER size_t unforeseen(size_t number) { return number; }

#define HUGE_SIZE unforeseen(0x7fffffffffffff00)

struct expectation {
    const char *function, *api, *kind;
    unsigned long objects, bytes, weight;
};

static struct {
    struct expectation leaks[64];
    int count;
    unsigned long freed_objects, freed_bytes, failed, unmatched;
    int freed_unknown, failed_unknown, unmatched_unknown;
} expected;

OPTIONAL void expect(struct expectation leak) {
    if (expected.count == 64) abort();
    expected.leaks[expected.count++] = leak;
}

// `function` will leak `objects` blocks of `size` bytes each.
OPTIONAL void expect_native(const char *function, const char *api, unsigned long objects, unsigned long size) {
    struct expectation leak = {function, api, "native", objects, objects * size, objects * size};
    expect(leak);
}

// `function` will leave `objects` mappings of `bytes` in all, of which `resident` have memory behind them.
OPTIONAL void expect_mapping(const char *function, const char *api, unsigned long objects, unsigned long bytes,
                             unsigned long resident) {
    struct expectation leak = {function, api, "mapping", objects, bytes, resident};
    expect(leak);
}

// Blocks that are both made and freed in the window.
OPTIONAL void expect_freed(unsigned long objects, unsigned long bytes) {
    expected.freed_objects += objects;
    expected.freed_bytes += bytes;
}

OPTIONAL void expect_failed(unsigned long calls) { expected.failed += calls; }
OPTIONAL void expect_unmatched(unsigned long frees) { expected.unmatched += frees; }

// For work through code that allocates and frees as it likes (threads that end, posix_spawn).
OPTIONAL void expect_unknown_frees(void) { expected.freed_unknown = expected.unmatched_unknown = 1; }

static void write_all(const char *text, size_t length) {
    while (length > 0) {
        ssize_t written = write(1, text, length);
        if (written < 0) _exit(101);
        text += written;
        length -= (size_t)written;
    }
}

// In one piece: its children may be writing, too.
OPTIONAL void say(const char *line) {
    struct iovec pieces[] = {{(void *)line, strlen(line)}, {(void *)"\n", 1}};
    if (writev(1, pieces, 2) != (ssize_t)pieces[0].iov_len + 1) _exit(101);
}

// Waits for a line; without one, the test is over.
OPTIONAL void await_line(void) {
    char byte = 0;
    while (byte != '\n') {
        if (read(0, &byte, 1) != 1) _exit(0);
    }
}

// States what will happen and waits for "go". Huge pages are off, so that what is touched is what is resident.
OPTIONAL void ready(void) {
    static char text[16384];
    size_t at = 0;
    prctl(PR_SET_THP_DISABLE, 1, 0, 0, 0);
#define ADD(...) at += (size_t)snprintf(text + at, sizeof text - at, __VA_ARGS__)
    ADD("{\"pid\":%d,\"expect\":{\"leaks\":[", getpid());
    for (int i = 0; i < expected.count; i++) {
        struct expectation *leak = &expected.leaks[i];
        ADD("%s{\"function\":\"%s\",\"api\":\"%s\",\"kind\":\"%s\",\"objects\":%lu,\"bytes\":%lu,\"weight\":%lu}",
            i ? "," : "", leak->function, leak->api, leak->kind, leak->objects, leak->bytes, leak->weight);
    }
    ADD("]");
    if (!expected.freed_unknown)
        ADD(",\"freed\":{\"objects\":%lu,\"bytes\":%lu}", expected.freed_objects, expected.freed_bytes);
    if (!expected.failed_unknown) ADD(",\"failed\":%lu", expected.failed);
    if (!expected.unmatched_unknown) ADD(",\"unmatched_frees\":%lu", expected.unmatched);
    ADD("}}\n");
#undef ADD
    write_all(text, at);
    await_line();
}

// Says that the work is done and stays until the end of its input; then leaves without running exit handlers' frees.
OPTIONAL void done(void) {
    char byte;
    say("done");
    while (read(0, &byte, 1) == 1) continue;
    _exit(0);
}

#endif
