// Live blocks for `cargo xtask bench footprint`: as many as the first argument says, at most a million a second, while one more
// is made and freed a thousand times a second until its input ends.
//
// Says `ready PID`, waits for a line, makes the blocks and says `done`. For each further line it frees blocks by chance and makes
// them anew for half a second, and answers with the nanoseconds of CPU time that one took.
#include <poll.h>
#include <stdio.h>
#include <stdlib.h>
#include <time.h>
#include <unistd.h>

enum { SIZE = 48, STEPS_A_SECOND = 1000, BLOCKS_A_STEP = 1000 };

static void step(void) {
    struct timespec pause = {.tv_nsec = 1000000000L / STEPS_A_SECOND};
    nanosleep(&pause, NULL);
    void *volatile block = malloc(SIZE);
    free(block);
}

static double now_s(clockid_t clock) {
    struct timespec now;
    clock_gettime(clock, &now);
    return now.tv_sec + now.tv_nsec / 1e9;
}

static double replace_by_chance(void **blocks, long count) {
    unsigned long made = 0, random = 1;
    double began = now_s(CLOCK_PROCESS_CPUTIME_ID), until = now_s(CLOCK_MONOTONIC) + 0.5;
    for (; now_s(CLOCK_MONOTONIC) < until; made += 64)
        for (int i = 0; i < 64; i++) {
            random = random * 6364136223846793005 + 1442695040888963407;
            void **block = &blocks[(random >> 33) % count];
            free(*block);
            *block = malloc(SIZE);
        }
    return (now_s(CLOCK_PROCESS_CPUTIME_ID) - began) / made * 1e9;
}

int main(int arguments, char **argument) {
    long count = arguments > 1 ? atol(argument[1]) : 0;
    void **blocks = calloc(count, sizeof *blocks);
    printf("ready %d\n", getpid());
    fflush(stdout);
    getchar();
    for (long made = 0; made < count; made++) {
        blocks[made] = malloc(SIZE);
        if (made % BLOCKS_A_STEP == 0) step();
    }
    printf("done\n");
    fflush(stdout);
    struct pollfd input = {.fd = 0, .events = POLLIN};
    char line[256];
    for (;;) {
        step();
        if (poll(&input, 1, 0) == 0) continue;
        if (read(0, line, sizeof line) <= 0) break;
        printf("%f\n", replace_by_chance(blocks, count));
        fflush(stdout);
    }
    return 0;
}
