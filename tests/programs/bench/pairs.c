// Pairs of malloc and free for `cargo xtask bench overhead`, made by as many threads as the first argument says.
//
// Says `ready PID`. For each line on its input, `DEPTH MILLISECONDS`, makes pairs for that long from a function called at about
// that depth, and answers with the nanoseconds of CPU time that one pair took. Ends with its input.
#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <time.h>
#include <unistd.h>

// Frames above `pairs`: `work` and the thread's start.
enum { SIZE = 40, BATCH = 64, FRAMES_ABOVE = 3 };

static pthread_barrier_t start, end;
static int depth;
static long until_ns;
static unsigned long made;

static long now_ns(clockid_t clock) {
    struct timespec now;
    clock_gettime(clock, &now);
    return now.tv_sec * 1000000000L + now.tv_nsec;
}

__attribute__((noinline)) static unsigned long pairs(void) {
    unsigned long count = 0;
    for (; now_ns(CLOCK_MONOTONIC) < until_ns; count += BATCH)
        for (int i = 0; i < BATCH; i++) {
            void *volatile block = malloc(SIZE);
            free(block);
        }
    return count;
}

__attribute__((noinline, noclone)) static unsigned long descend(int frames) {
    if (frames <= 0) return pairs();
    unsigned long count = descend(frames - 1);
    __asm__ volatile("" : "+r"(count)); // keeps the compiler from making a loop of it
    return count;
}

static void *work(void *unused) {
    for (;;) {
        pthread_barrier_wait(&start);
        __atomic_fetch_add(&made, descend(depth - FRAMES_ABOVE), __ATOMIC_RELAXED);
        pthread_barrier_wait(&end);
    }
    return unused;
}

int main(int arguments, char **argument) {
    int threads = arguments > 1 ? atoi(argument[1]) : 1;
    pthread_barrier_init(&start, NULL, threads + 1);
    pthread_barrier_init(&end, NULL, threads + 1);
    for (int i = 0; i < threads; i++) {
        pthread_t thread;
        pthread_create(&thread, NULL, work, NULL);
    }
    printf("ready %d\n", getpid());
    fflush(stdout);
    for (int milliseconds; scanf("%d %d", &depth, &milliseconds) == 2; fflush(stdout)) {
        made = 0;
        long began_ns = now_ns(CLOCK_PROCESS_CPUTIME_ID);
        until_ns = now_ns(CLOCK_MONOTONIC) + milliseconds * 1000000L;
        pthread_barrier_wait(&start);
        pthread_barrier_wait(&end);
        printf("%f\n", (double)(now_ns(CLOCK_PROCESS_CPUTIME_ID) - began_ns) / made);
    }
    return 0;
}
