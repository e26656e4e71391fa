// The sessions of a small web service, with the bug that a user of tracer looks for. The Node.js addon and the plain
// C++ service share it.
#ifndef SESSION_CACHE_H
#define SESSION_CACHE_H

#include <cstddef>
#include <cstdint>
#include <cstdlib>
#include <cstring>

// A function that shows in stacks under its own name, with its own frame.
#define CALLER __attribute__((noipa))

namespace session {

// One request's session; its payload follows it in the same block.
struct Session {
    uint64_t id;
    size_t payload_size;
};

// The bytes of the block that holds a session.
constexpr size_t block_size(size_t payload_size) { return sizeof(Session) + payload_size; }

class Cache {
public:
    // Opens the session of a request.
    CALLER Session *Open(size_t payload_size) {
        auto *session = static_cast<Session *>(std::malloc(block_size(payload_size)));
        if (session == nullptr) return nullptr;
        *session = {++last_id_, payload_size};
        std::memset(session + 1, 0x5a, payload_size);
        open_++;
        return session;
    }

    // Closes it. This is the leak: the count goes down, and nothing ever frees the session.
    CALLER void Close(Session *session) {
        if (session != nullptr) open_--;
    }

    // A checksum over a copy of a session, which is freed again: as many bytes as Open takes, and no leak.
    CALLER uint64_t Render(const Session *session) {
        size_t size = block_size(session->payload_size);
        auto *copy = static_cast<unsigned char *>(std::malloc(size));
        if (copy == nullptr) return 0;
        std::memcpy(copy, session, size);
        uint64_t sum = 0;
        for (size_t i = 0; i < size; i++) sum = sum * 31 + copy[i];
        std::free(copy);
        return sum;
    }

    size_t open() const { return open_; }

private:
    uint64_t last_id_ = 0;
    size_t open_ = 0;
};

}  // namespace session

#endif
