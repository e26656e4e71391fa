// A family of processes, each of which leaks by itself: parent, child, grandchild, a child in its parent's memory (vfork), an orphan, and
// the program that a child executes.
//
// usage: family [leave]     "leave": without the protocol's waiting, for launched commands
//        family executed    what the child executes
//        family crowd N     N children that leak 100 bytes each, one after the other
#include <sched.h>
#include <signal.h>
#include <sys/mman.h>
#include <sys/wait.h>

#include "protocol.h"

enum { PAGE = 4096 };

static void *shared, *mapped;
static int leaves;

CALLER void leak_in_parent(void) { for (int i = 0; i < 3; i++) KEEP(malloc(1000)); }
CALLER void leak_shared(void) { KEEP(shared = malloc(700)); }
CALLER void map_shared(void) { mapped = mmap(NULL, 16 * PAGE, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0); }
CALLER void leak_in_child(void) { for (int i = 0; i < 40; i++) KEEP(malloc(960)); }
CALLER void leak_in_grandchild(void) { for (int i = 0; i < 5; i++) KEEP(malloc(333)); }
CALLER void leak_in_vfork(void) { for (int i = 0; i < 2; i++) KEEP(malloc(50)); }
CALLER void leak_as_orphan(void) { for (int i = 0; i < 9; i++) KEEP(malloc(99)); }
CALLER void leak_when_executed(void) { for (int i = 0; i < 7; i++) KEEP(malloc(111)); }
CALLER void leak_in_crowd(void) { KEEP(malloc(100)); }

CALLER void map_in_child(void) {
    char *memory = mmap(NULL, 8 * PAGE, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    if (memory == MAP_FAILED) _exit(105);
    kept = memory;
}

static void wait_for(pid_t child) {
    int status;
    if (waitpid(child, &status, 0) != child || status != 0) _exit(102);
}

static pid_t forked(void) {
    pid_t child = fork();
    if (child < 0) _exit(103);
    return child;
}

// Until the input ends, so that the others can be looked at.
static void stay(void) {
    char byte;
    while (!leaves && read(0, &byte, 1) == 1) continue;
    _exit(0);
}

static void grandchild(void) {
    leak_in_grandchild();
    _exit(0);
}

// Outlives whoever made it.
static void orphan(pid_t parent) {
    while (getppid() == parent) sched_yield();
    leak_as_orphan();
    say("orphaned");
    stay();
}

// What the child got from its parent is not its own: it frees it all the same.
static void child(void) {
    leak_in_child();
    map_in_child();
    free(shared);
    munmap(mapped, 16 * PAGE);
    pid_t pid = forked();
    if (pid == 0) grandchild();
    wait_for(pid);
    pid = getpid();
    if (forked() == 0) orphan(pid);
    _exit(0);
}

static void executed(void) {
    prctl(PR_SET_NAME, "successor");
    leak_when_executed();
    say("executed");
    stay();
}

static void crowd(int members) {
    for (int i = 0; i < members; i++) {
        pid_t pid = forked();
        if (pid == 0) {
            leak_in_crowd();
            _exit(0);
        }
        wait_for(pid);
    }
    _exit(0);
}

int main(int count, char **arguments) {
    const char *role = count > 1 ? arguments[1] : "";
    leaves = count > 2 || strcmp(role, "leave") == 0;
    if (strcmp(role, "executed") == 0) executed();
    if (strcmp(role, "crowd") == 0) crowd(atoi(arguments[2]));
    expect_native("leak_in_parent", "malloc", 3, 1000);
    expect_native("leak_shared", "malloc", 1, 700);
    expect_native("leak_in_child", "malloc", 40, 960);
    expect_native("leak_in_grandchild", "malloc", 5, 333);
    expect_native("leak_in_vfork", "malloc", 2, 50);
    expect_native("leak_as_orphan", "malloc", 9, 99);
    expect_native("leak_when_executed", "malloc", 7, 111);
    expect_mapping("map_in_child", "mmap", 1, 8 * PAGE, 0);
    expect_mapping("map_shared", "mmap", 1, 16 * PAGE, 0);
    if (!leaves) ready();
    leak_in_parent();
    leak_shared();
    map_shared();
    pid_t pid = forked();
    if (pid == 0) child();
    wait_for(pid);
    pid = vfork();
    if (pid == 0) {
        leak_in_vfork();
        _exit(0);
    }
    wait_for(pid);
    pid = forked();
    if (pid == 0) {
        execl("/proc/self/exe", "family", "executed", leaves ? "leave" : NULL, NULL);
        _exit(104);
    }
    if (leaves) {
        wait_for(pid);
        _exit(0);
    }
    done();
}
