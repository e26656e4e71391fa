// What `pairs.js` allocates with: pairs(MILLISECONDS) makes pairs of malloc and free for that long, and returns how many.
#include <node_api.h>
#include <stdlib.h>
#include <time.h>

enum { SIZE = 40, BATCH = 64 };

static double now_ms(void) {
    struct timespec now;
    clock_gettime(CLOCK_MONOTONIC, &now);
    return now.tv_sec * 1e3 + now.tv_nsec / 1e6;
}

static napi_value pairs(napi_env env, napi_callback_info info) {
    size_t count = 1;
    napi_value argument, result = NULL;
    double milliseconds = 0, made = 0;
    napi_get_cb_info(env, info, &count, &argument, NULL, NULL);
    napi_get_value_double(env, argument, &milliseconds);
    for (double until = now_ms() + milliseconds; now_ms() < until; made += BATCH)
        for (int i = 0; i < BATCH; i++) {
            void *volatile block = malloc(SIZE);
            free(block);
        }
    napi_create_double(env, made, &result);
    return result;
}

static napi_value init(napi_env env, napi_value exports) {
    napi_value function;
    napi_create_function(env, "pairs", NAPI_AUTO_LENGTH, pairs, NULL, &function);
    napi_set_named_property(env, exports, "pairs", function);
    return exports;
}

NAPI_MODULE(pairs, init)
