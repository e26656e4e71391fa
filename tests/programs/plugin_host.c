// Loads the library that the first argument names, before the window, and lets it leak.
#include <dlfcn.h>

#include "protocol.h"

int main(int count, char **arguments) {
    if (count < 2) return 2;
    void *plugin = dlopen(arguments[1], RTLD_NOW);
    void (*leak)(int, size_t) = plugin ? (void (*)(int, size_t))dlsym(plugin, "plugin_leak") : NULL;
    if (!leak) return 3;
    expect_native("plugin_leak", "malloc", 13, 131);
    ready();
    leak(13, 131);
    done();
}
