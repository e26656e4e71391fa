// Allocates while the dynamic linker looks for a function at its first call: in the function that chooses between
// implementations (an IFUNC's resolver), and in the linker itself, which notes that one loaded library now needs another.
//
//     unwinding_lazy PROVIDING_LIBRARY CALLING_LIBRARY
#include <dlfcn.h>

#include "protocol.h"

typedef void calls(size_t);

CALLER void *load(const char *path, int flags, const char *name) {
    void *library = dlopen(path, flags);
    void *function = library ? dlsym(library, name) : NULL;
    if (!function) _exit(3);
    return function;
}

// On a stack that is aligned in another way each time.
CALLER void aligned(calls *function, size_t size, int words) {
    volatile char room[8 * words];
    room[0] = 1;
    function(size);
    room[8 * words - 1] = room[0];
}

int main(int count, char **arguments) {
    if (count != 3) return 2;
    load(arguments[1], RTLD_LAZY | RTLD_GLOBAL, "leak");
    calls *needs_another = load(arguments[2], RTLD_LAZY, "needs_another");
    calls *chooses[] = {load(arguments[2], RTLD_LAZY, "chooses_1"), load(arguments[2], RTLD_LAZY, "chooses_2"),
                        load(arguments[2], RTLD_LAZY, "chooses_3"), load(arguments[2], RTLD_LAZY, "chooses_4")};
    expect_unknown_frees();
    // The resolver goes by the name of what it is asked for.
    expect_native("chosen_1", "malloc", 1, 701);
    expect_native("chosen_2", "malloc", 1, 702);
    expect_native("chosen_3", "malloc", 1, 703);
    expect_native("chosen_4", "malloc", 1, 704);
    ready();
    needs_another(705);
    for (int i = 0; i < 4; i++) aligned(chooses[i], 0, 2 * i + 1);
    done();
}
