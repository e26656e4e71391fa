// A library that is loaded with dlopen and leaks.
#include "protocol.h"

CALLER void plugin_leak(int blocks, size_t size) {
    for (int i = 0; i < blocks; i++) KEEP(malloc(size));
}
