// The service without Node.js: serves requests to itself, and says each second what it uses; ends with its input, or
// after ten minutes.
#include <poll.h>
#include <unistd.h>

#include <chrono>
#include <cstdio>

#include "session_cache.h"

namespace {

constexpr size_t kSessionBytes = 16 * 1024;
constexpr int kTickMs = 5;  // a request each
constexpr std::chrono::minutes kLongest{10};

session::Cache cache;

CALLER void handle_request() {
    session::Session *session = cache.Open(kSessionBytes);
    if (session == nullptr) return;
    cache.Render(session);
    cache.Close(session);
}

double resident_mib() {
    long pages = 0;
    if (FILE *file = std::fopen("/proc/self/statm", "r")) {
        if (std::fscanf(file, "%*d %ld", &pages) != 1) pages = 0;
        std::fclose(file);
    }
    return static_cast<double>(pages * sysconf(_SC_PAGESIZE)) / (1024 * 1024);
}

// Whether the input ended, after waiting for that for one tick.
bool ended() {
    struct pollfd input = {0, POLLIN, 0};
    char bytes[64];
    return poll(&input, 1, kTickMs) > 0 && read(0, bytes, sizeof bytes) <= 0;
}

}  // namespace

int main() {
    using Clock = std::chrono::steady_clock;
    const auto start = Clock::now();
    auto next_line = start;
    int requests = 0;
    while (!ended() && Clock::now() - start < kLongest) {
        if (Clock::now() >= next_line) {
            std::printf("%d requests, resident %.1f MiB\n", requests, resident_mib());
            std::fflush(stdout);
            next_line += std::chrono::seconds{1};
        }
        handle_request();
        requests++;
    }
}
