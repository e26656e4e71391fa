// Leaves in the window: by exit, by exec of another program (which allocates too), or by a crash.
#include <signal.h>

#include "protocol.h"

CALLER void leak_before_leaving(void) { for (int i = 0; i < 9; i++) KEEP(malloc(555)); }

int main(int count, char **arguments) {
    const char *way = count > 1 ? arguments[1] : "exit";
    expect_native("leak_before_leaving", "malloc", 9, 555);
    ready();
    leak_before_leaving();
    if (strcmp(way, "exec") == 0) execl("/proc/self/exe", "leave", "wait", NULL);
    if (strcmp(way, "wait") == 0) done();
    if (strcmp(way, "crash") == 0) raise(SIGKILL);
    _exit(0);
}
