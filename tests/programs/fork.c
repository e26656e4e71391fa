// Children of the target, made in the window by fork, vfork and posix_spawn: what they do is not the target's.
#include <spawn.h>
#include <sys/wait.h>

#include "protocol.h"

extern char **environ;

enum { CHILDREN = 5, SIZE = 480, CHILD_SIZE = 960 };

static void *shared[CHILDREN];

CALLER void leak_in_parent(int i) { KEEP(shared[i] = malloc(SIZE)); }
CALLER void leak_in_child(void) { for (int i = 0; i < 40; i++) KEEP(malloc(CHILD_SIZE)); }

// The child has a copy of the parent's block: freeing it is nothing to the parent.
static void run_child(int i) {
    leak_in_child();
    free(shared[i]);
    _exit(0);
}

static void wait_for(pid_t child) {
    int status;
    if (waitpid(child, &status, 0) != child || status != 0) _exit(102);
}

static pid_t spawn(void) {
    char *arguments[] = {(char *)"true", NULL};
    pid_t child;
    if (posix_spawn(&child, "/bin/true", NULL, NULL, arguments, environ) != 0) _exit(103);
    return child;
}

int main(void) {
    wait_for(spawn());
    expect_native("leak_in_parent", "malloc", CHILDREN, SIZE);
    expect_unknown_frees();  // posix_spawn maps a stack for the child
    ready();
    for (int i = 0; i < CHILDREN; i++) {
        leak_in_parent(i);
        pid_t child = fork();
        if (child == 0) run_child(i);
        wait_for(child);
        child = vfork();
        if (child == 0) {
            execl("/bin/true", "true", NULL);
            _exit(104);
        }
        wait_for(child);
        wait_for(spawn());
    }
    done();
}
