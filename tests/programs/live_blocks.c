// As many live blocks as the first argument says, all freed again but for those that the second argument says.
#include "protocol.h"

enum { SIZE = 48 };

static void **blocks;
static unsigned long count, leaked;

CALLER void make_blocks(void) { for (unsigned long i = 0; i < count; i++) blocks[i] = malloc(SIZE); }
CALLER void free_blocks(void) { for (unsigned long i = leaked; i < count; i++) free(blocks[i]); }

int main(int arguments, char **argument) {
    if (arguments < 3) return 2;
    count = strtoul(argument[1], NULL, 10);
    leaked = strtoul(argument[2], NULL, 10);
    blocks = calloc(count, sizeof *blocks);
    memset(blocks, 1, count * sizeof *blocks);
    expect_native("make_blocks", "malloc", leaked, SIZE);
    expect_freed(count - leaked, (count - leaked) * SIZE);
    ready();
    make_blocks();
    free_blocks();
    done();
}
