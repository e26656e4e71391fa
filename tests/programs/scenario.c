// Programs whose truth is known: what grows, how, and whether it is a leak. The argument names the scenario; a second one the library
// that one of them loads.
//
// Says `worked` when it has done enough to be judged, and works on until a line comes: whatever ends the window, it ends while the
// program is at work.
#define _GNU_SOURCE
#include <dlfcn.h>
#include <fcntl.h>
#include <poll.h>
#include <pthread.h>
#include <sys/mman.h>
#include <time.h>

#include "protocol.h"

#define MEBIBYTE (1UL << 20)
#define TICK_MS 10
#define ENOUGH_TICKS 750

static long long now_ms(void) {
    struct timespec now;
    clock_gettime(CLOCK_MONOTONIC, &now);
    return now.tv_sec * 1000LL + now.tv_nsec / 1000000;
}

static void pause_ms(long ms) {
    struct timespec pause = {ms / 1000, ms % 1000 * 1000000};
    nanosleep(&pause, NULL);
}

static void *filled(void *block, size_t size) {
    if (!block) _exit(107);
    memset(block, 1, size);
    return block;
}

CALLER void *leaked(size_t size) { return KEEP(filled(malloc(size), size)); }
CALLER void *cached(size_t size) { return KEEP(filled(malloc(size), size)); }
CALLER void *passing(size_t size) { return KEEP(filled(malloc(size), size)); }
CALLER void *batch(size_t size) { return KEEP(filled(malloc(size), size)); }
CALLER void *queued(size_t size) { return KEEP(filled(malloc(size), size)); }
CALLER void *fragment(size_t size) { return KEEP(filled(malloc(size), size)); }

CALLER char *mapped(size_t size, int protection) {
    char *at = mmap(NULL, size, protection, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
    if (at == MAP_FAILED) _exit(108);
    KEEP(at);
    return at;
}

// 64 KiB every 10 ms.
static void steady_leak(int tick) {
    (void)tick;
    for (int i = 0; i < 16; i++) leaked(4096);
}

// One block in 10,000 stays; the others live for a moment.
static void slow_leak(int tick) {
    static void *ring[1000];
    static unsigned long made;
    (void)tick;
    for (int i = 0; i < 1000; i++, made++) {
        void **slot = &ring[made % 1000];
        free(*slot);
        *slot = passing(200);
        if (made % 10000 == 0) leaked(20000);
    }
}

// 16 MiB in the first second.
static void cache(int tick) {
    if (tick < 100)
        for (int i = 0; i < 40; i++) cached(4096);
}

// 5 MiB in batches of one and a half seconds. It rests at the peak, so that the window's end is there, too.
static void sawtooth(int tick) {
    static void *blocks[2000];
    static int count;
    if (tick >= ENOUGH_TICKS) return;
    if (tick % 140 == 50)
        while (count > 0) free(blocks[--count]);
    for (int i = 0; i < 10; i++) blocks[count++] = batch(4096);
}

// 256 MiB, of which every other block is freed.
static void fragmentation(int tick) {
    enum { COUNT = 64 << 10 };
    static void *blocks[COUNT];
    if (tick != 100) return;
    for (int i = 0; i < COUNT; i++) blocks[i] = fragment(4080);
    for (int i = 0; i < COUNT; i += 2) free(blocks[i]);
}

// Each block lives for 40 seconds, four times as long as anybody looks. They are there when the window opens.
enum { QUEUED = 16000 };
static void *queue_blocks[QUEUED];

static void fill_queue(void) {
    for (int i = 0; i < QUEUED; i++) queue_blocks[i] = queued(4096);
}

static void queue(int tick) {
    for (int i = 0; i < 4; i++) {
        void **oldest = &queue_blocks[(4 * tick + i) % QUEUED];
        free(*oldest);
        *oldest = queued(4096);
    }
}

// Fifty threads that make and free blocks all the time; one of them keeps some.
static void *turnover(void *number) {
    void *ring[100] = {0};
    for (int made = 0; ; made++) {
        void **slot = &ring[made % 100];
        free(*slot);
        *slot = passing(500);
        if (number == (void *)17) leaked(16 * 1024);
        pause_ms(5);
    }
    return NULL;
}

static void one_of_fifty(int tick) {
    pthread_t thread;
    if (tick > 0) return;
    for (long i = 0; i < 50; i++)
        if (pthread_create(&thread, NULL, turnover, (void *)i) != 0) _exit(110);
}

// Thirty threads that each need 4 MiB for a moment, and keep a block that was made last: it pins the rest.
static void *a_moment(void *unused) {
    enum { COUNT = 4096 };
    static _Thread_local void *blocks[COUNT];
    for (int i = 0; i < COUNT; i++) blocks[i] = fragment(1000);
    for (int i = 0; i < COUNT - 1; i++) free(blocks[i]);
    for (;;) pause_ms(1000);
    return unused;
}

static void arenas(int tick) {
    pthread_t thread;
    if (tick % 10 == 0 && tick < 300 && pthread_create(&thread, NULL, a_moment, NULL) != 0) _exit(110);
}

// A file of 64 MiB is read through its mapping.
static void file(int tick) {
    enum { STEP = 128 * 1024, STEPS = 512 };
    static volatile char *at;
    static volatile long sum;
    if (tick == 0) {
        int fd = open(".", O_TMPFILE | O_RDWR, 0600);
        if (fd < 0) fd = fileno(tmpfile());
        if (fd < 0 || posix_fallocate(fd, 0, (off_t)STEP * STEPS) != 0) _exit(111);
        at = mmap(NULL, (size_t)STEP * STEPS, PROT_READ, MAP_SHARED, fd, 0);
        if (at == MAP_FAILED) _exit(112);
    }
    for (size_t i = 0; tick < STEPS && i < STEP; i += 4096) sum += at[(size_t)tick * STEP + i];
}

// 64 KiB every 10 ms.
static void mapping_leak(int tick) {
    (void)tick;
    filled(mapped(16 * 4096, PROT_READ | PROT_WRITE), 16 * 4096);
}

// 1 GiB of addresses, of which 16 MiB are used in the first two seconds.
static void reservation(int tick) {
    static char *at;
    static const size_t step = MEBIBYTE / 8;
    if (tick == 0) at = mapped(1024 * MEBIBYTE, PROT_NONE);
    if (tick >= 128) return;
    if (mprotect(at + (size_t)tick * step, step, PROT_READ | PROT_WRITE) != 0) _exit(109);
    memset(at + (size_t)tick * step, 1, step);
}

// What this program allocates through, which no table knows: five callers free what they get, one does not.
CALLER void *procure(size_t size) { return KEEP(filled(malloc(size), size)); }

#define PASSING_CALLER(name)                \
    CALLER void name(void) {                \
        void *block = procure(2000);        \
        __asm__ volatile("" ::: "memory"); \
        free(block);                        \
    }
PASSING_CALLER(read_header)
PASSING_CALLER(read_body)
PASSING_CALLER(parse_line)
PASSING_CALLER(write_log)
PASSING_CALLER(answer)
CALLER void remember(void) { KEEP(procure(4000)); }

static void wrapper(int tick) {
    (void)tick;
    for (int i = 0; i < 8; i++) read_header(), read_body(), parse_line(), write_log(), answer(), remember();
}

// An object of three parts, to which 256 ways lead.
CALLER void make_head(void) { KEEP(filled(malloc(1000), 1000)); }
CALLER void make_body(void) { KEEP(filled(malloc(2000), 2000)); }
CALLER void make_tail(void) { KEEP(filled(malloc(3000), 3000)); }
CALLER void make_object(void) {
    make_head();
    make_body();
    make_tail();
    __asm__ volatile("" ::: "memory");
}

CALLER void left(int depth, int way);
CALLER void right(int depth, int way);
static void step(int depth, int way) {
    if (depth == 8) make_object();
    else if (way & 1) right(depth + 1, way >> 1);
    else left(depth + 1, way >> 1);
}
void left(int depth, int way) {
    step(depth, way);
    __asm__ volatile("" ::: "memory");
}
void right(int depth, int way) {
    step(depth, way);
    __asm__ volatile("nop" ::: "memory");
}

static void ways(int tick) {
    for (int i = 0; i < 4; i++) step(0, (4 * tick + i) % 256);
}

// One block of 16 MiB in 1.2 s, and small ones that go again.
static void big_rare(int tick) {
    if (tick % 120 == 60) leaked(16 * MEBIBYTE);
    for (int i = 0; i < 4; i++) free(passing(4096));
}

// What a library leaks that the second argument names.
static const char *library_path;
static void (*library_open)(void);
static void load_library(void) {
    void *handle = library_path ? dlopen(library_path, RTLD_NOW) : NULL;
    if (handle) library_open = (void (*)(void))dlsym(handle, "library_open");
    if (!library_open) _exit(113);
}
static void library(int tick) {
    (void)tick;
    for (int i = 0; i < 8; i++) library_open();
}

static const struct {
    const char *name;
    void (*work)(int tick);
    void (*prepare)(void);
} scenarios[] = {
    {"steady_leak", steady_leak}, {"slow_leak", slow_leak},       {"cache", cache},
    {"sawtooth", sawtooth},       {"fragmentation", fragmentation}, {"mapping_leak", mapping_leak},
    {"reservation", reservation}, {"one_of_fifty", one_of_fifty}, {"arenas", arenas},
    {"file", file},               {"queue", queue, fill_queue},
    {"wrapper", wrapper},         {"ways", ways},                 {"big_rare", big_rare},
    {"library", library, load_library},
};

int main(int count, char **arguments) {
    for (size_t i = 0; count >= 2 && i < sizeof scenarios / sizeof *scenarios; i++) {
        if (strcmp(arguments[1], scenarios[i].name) != 0) continue;
        expect_unknown_frees();
        library_path = arguments[2];
        if (scenarios[i].prepare) scenarios[i].prepare();
        ready();
        long long started = now_ms();
        struct pollfd input = {0, POLLIN, 0};
        for (int tick = 0; poll(&input, 1, 0) == 0; tick++) {
            scenarios[i].work(tick);
            if (tick + 1 == ENOUGH_TICKS) say("worked");
            // What was missed is made up for.
            long long rest = started + (long long)TICK_MS * (tick + 1) - now_ms();
            if (rest > 0) pause_ms((long)rest);
        }
        await_line();
        done();
    }
    return 2;
}
