// Loads the library that the first argument names, and lets it leak through the function that the second one names
// (malloc). With "late" as the third it does so in the window, and waits for a line before the library does anything.
#include <dlfcn.h>

#include "protocol.h"

typedef void leaker(int, size_t);

static leaker *load(const char *path) {
    void *plugin = dlopen(path, RTLD_NOW);
    leaker *leak = plugin ? (leaker *)dlsym(plugin, "plugin_leak") : NULL;
    if (!leak) _exit(3);
    return leak;
}

int main(int count, char **arguments) {
    if (count < 2) return 2;
    const char *api = count > 2 ? arguments[2] : "malloc";
    int late = count > 3 && strcmp(arguments[3], "late") == 0;
    leaker *leak = late ? NULL : load(arguments[1]);
    expect_native("plugin_leak", api, 13, 131);
    if (late) expect_unknown_frees();  // the loader's
    ready();
    if (late) {
        leak = load(arguments[1]);
        say("loaded");
        await_line();
    }
    leak(13, 131);
    done();
}
