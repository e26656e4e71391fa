// Live blocks for `cargo xtask bench footprint`: as many as the first argument says, at most a million a second, while one more
// is made and freed a thousand times a second until its input ends.
//
// Says `ready PID`, waits for a line, makes the blocks and says `done`.
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
    while (poll(&input, 1, 0) == 0 || read(0, line, sizeof line) > 0) step();
    return 0;
}
