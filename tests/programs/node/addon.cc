// A native addon for Node.js that leaks outside of the JavaScript heap: JavaScript sees numbers, the memory is malloc's.
//
//     handle(bytes)      serves a request whose session holds that many bytes; returns a checksum
//     blockSize(bytes)   the bytes that one such request leaks
//     open()             how many sessions the cache believes to be open
#include <node_api.h>

#include "session_cache.h"

namespace {

session::Cache cache;

// The first argument as a size; 0 when there is none.
size_t size_argument(napi_env env, napi_callback_info info) {
    size_t count = 1;
    napi_value argument;
    int64_t size = 0;
    if (napi_get_cb_info(env, info, &count, &argument, nullptr, nullptr) != napi_ok || count < 1) return 0;
    if (napi_get_value_int64(env, argument, &size) != napi_ok || size < 0) return 0;
    return static_cast<size_t>(size);
}

napi_value number(napi_env env, uint64_t value) {
    napi_value result = nullptr;
    napi_create_double(env, static_cast<double>(value), &result);
    return result;
}

CALLER napi_value Handle(napi_env env, napi_callback_info info) {
    session::Session *session = cache.Open(size_argument(env, info));
    if (session == nullptr) {
        napi_throw_error(env, nullptr, "no memory for a session");
        return nullptr;
    }
    uint64_t checksum = cache.Render(session);
    cache.Close(session);
    return number(env, checksum >> 11);  // what a double holds exactly
}

napi_value BlockSize(napi_env env, napi_callback_info info) {
    return number(env, session::block_size(size_argument(env, info)));
}

napi_value Open(napi_env env, napi_callback_info) { return number(env, cache.open()); }

napi_value Init(napi_env env, napi_value exports) {
    struct {
        const char *name;
        napi_callback callback;
    } const functions[] = {{"handle", Handle}, {"blockSize", BlockSize}, {"open", Open}};
    for (const auto &function : functions) {
        napi_value value;
        if (napi_create_function(env, function.name, NAPI_AUTO_LENGTH, function.callback, nullptr, &value) != napi_ok ||
            napi_set_named_property(env, exports, function.name, value) != napi_ok)
            return nullptr;
    }
    return exports;
}

}  // namespace

NAPI_MODULE(session_cache, Init)
