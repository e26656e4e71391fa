// As many processes of one program as the argument says, each of which leaks by itself. They are called herd and the number of their
// parent, which only makes them and waits.
#include <signal.h>
#include <sys/wait.h>

#include "protocol.h"

enum { SIZE = 100 };

CALLER void leak_in_each(void) { KEEP(malloc(SIZE)); }

static void live(pid_t parent, int start, int end) {
    char name[16], byte;
    snprintf(name, sizeof name, "herd%d", parent);
    prctl(PR_SET_NAME, name);
    prctl(PR_SET_PDEATHSIG, SIGKILL);
    if (getppid() != parent) _exit(0);
    if (write(end, "", 1) != 1) _exit(101);
    if (read(start, &byte, 1) != 0) _exit(102);
    leak_in_each();
    if (write(end, "", 1) != 1) _exit(101);
    for (;;) pause();
}

// Each has written a byte.
static void all(int members, int end) {
    char byte;
    for (int i = 0; i < members; i++)
        if (read(end, &byte, 1) != 1) _exit(103);
}

int main(int count, char **arguments) {
    int members = count > 1 ? atoi(arguments[1]) : 1, start[2], end[2];
    if (pipe(start) != 0 || pipe(end) != 0) return 1;
    pid_t parent = getpid();
    for (int i = 0; i < members; i++) {
        pid_t pid = fork();
        if (pid < 0) _exit(104);
        if (pid == 0) {
            close(start[1]);
            live(parent, start[0], end[1]);
        }
    }
    all(members, end[0]);
    expect_native("leak_in_each", "malloc", members, SIZE);
    ready();
    close(start[1]);
    all(members, end[0]);
    done();
}
