// A server that runs for days, for `cargo xtask bench soak`: 25,000 blocks a second are made and as many freed, 100,000 are
// live at any time, and one block in fifty comes from a stack that there has never been (500 a second). Nothing leaks.
//
// Says `ready PID`, waits for a line, and works until its input ends.
#include <poll.h>
#include <stdio.h>
#include <stdlib.h>
#include <time.h>
#include <unistd.h>

enum { LIVE = 100000, STEPS_A_SECOND = 500, BLOCKS_A_STEP = 50, DEPTH = 20 };

static void *blocks[LIVE];
static unsigned long made;

__attribute__((noipa)) static void replace(void) {
    unsigned long slot = made * 2654435761UL % LIVE;
    free(blocks[slot]);
    blocks[slot] = malloc(32 + made % 200);
    made++;
}

__attribute__((noipa)) static void left(int depth, unsigned long way);
__attribute__((noipa)) static void right(int depth, unsigned long way);

static void step(int depth, unsigned long way) {
    if (depth == DEPTH) return replace();
    if (way & 1) right(depth + 1, way >> 1);
    else left(depth + 1, way >> 1);
}

// They do something after the call, each its own: otherwise the compiler makes them one, and a loop.
static void left(int depth, unsigned long way) {
    step(depth, way);
    __asm__ volatile("");
}

static void right(int depth, unsigned long way) {
    step(depth, way);
    __asm__ volatile("nop");
}

int main(void) {
    printf("ready %d\n", getpid());
    fflush(stdout);
    getchar();
    struct pollfd input = {.fd = 0, .events = POLLIN};
    char line[256];
    struct timespec next;
    clock_gettime(CLOCK_MONOTONIC, &next);
    for (unsigned long way = 0; poll(&input, 1, 0) == 0 || read(0, line, sizeof line) > 0; way++) {
        next.tv_nsec += 1000000000L / STEPS_A_SECOND;
        if (next.tv_nsec >= 1000000000L) next.tv_sec++, next.tv_nsec -= 1000000000L;
        clock_nanosleep(CLOCK_MONOTONIC, TIMER_ABSTIME, &next, NULL);
        for (int i = 1; i < BLOCKS_A_STEP; i++) replace();
        step(0, way);
    }
    return 0;
}
