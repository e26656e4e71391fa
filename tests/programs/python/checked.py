"""Works, and compares each result with what it must be, while a tracer does something to the process that works.

    checked.py                    works itself, in three threads
    checked.py redis SOCKET       has a server work: its pid is the one that it says
    checked.py http SOCKET PID
    checked.py postgres SOCKET

For each line on its input it says "alive" when each thread has got two more right results. It ends with its input."""

import json
import os
import re
import socket
import sqlite3
import struct
import sys
import threading
import time
import zlib

ROUNDS = []


def work_itself(number):
    text = json.dumps([{"name": f"item {i}", "price": i * number, "on": i % 2 == 0} for i in range(200)])
    packed = zlib.compress(text.encode())
    found = len(re.findall("item", text))
    database = sqlite3.connect(":memory:")
    database.execute("CREATE TABLE items (name TEXT, price INTEGER)")
    while True:
        items = json.loads(text)
        yield json.dumps(items) == text
        yield zlib.compress(text.encode()) == packed and zlib.decompress(packed).decode() == text
        yield len(re.findall("item", text)) == found
        database.executemany("INSERT INTO items VALUES (?, ?)", [(i["name"], i["price"]) for i in items])
        yield database.execute("SELECT count(*) FROM items").fetchone() == (200,)
        database.execute("DELETE FROM items")


def connect(path):
    connection = socket.socket(socket.AF_UNIX)
    connection.connect(path)
    return connection, connection.makefile("rb")


def redis_asker(path):
    connection, answers = connect(path)

    def ask(*words):
        packed = b"".join(b"$%d\r\n%s\r\n" % (len(word), word) for word in words)
        connection.sendall(b"*%d\r\n%s" % (len(words), packed))
        kind, rest = (line := answers.readline())[:1], line[1:].strip()
        return rest if kind != b"$" else answers.read(int(rest) + 2)[:-2]

    return ask


def work_by_redis(number, path):
    ask, round = redis_asker(path), 0
    while True:
        round += 1
        key = b"%d-%d" % (number, round % 500)
        value = key * (1 + round % 90)
        yield ask(b"SET", key, value) == b"OK"
        yield ask(b"GET", key) == value
        yield ask(b"APPEND", key, b"more") == b"%d" % (len(value) + 4)
        yield ask(b"GETRANGE", key, b"-4", b"-1") == b"more"


def work_by_http(number, path):
    round = 0
    while True:
        round += 1
        connection, answers = connect(path)
        for i in range(20):
            text = b"%d-%d-%d" % (number, round, i)
            connection.sendall(b"GET /%s HTTP/1.1\r\nHost: localhost\r\n\r\n" % text)
            status, length = answers.readline(), 0
            while (line := answers.readline()) != b"\r\n":
                name, _, value = line.partition(b":")
                length = int(value) if name.lower() == b"content-length" else length
            yield status.startswith(b"HTTP/1.1 200 ") and answers.read(length) == b"/" + text
        connection.close()


def postgres_asker(path):
    connection, answers = connect(path)
    words = b"user\0postgres\0database\0postgres\0\0"
    connection.sendall(struct.pack("!ii", 8 + len(words), 3 << 16) + words)
    said = {}

    def read():
        rows = []
        while True:
            kind, length = struct.unpack("!ci", answers.read(5))
            body = answers.read(length - 4)
            if kind == b"K":
                said["pid"] = struct.unpack("!i", body[:4])[0]
            elif kind == b"E":
                raise RuntimeError(body)
            elif kind == b"D":
                (size,) = struct.unpack("!i", body[2:6])
                rows.append(body[6 : 6 + size])
            elif kind == b"Z":
                return rows

    def ask(query):
        connection.sendall(b"Q" + struct.pack("!i", len(query) + 5) + query + b"\0")
        return read()

    read()
    return ask, said["pid"]


def work_by_postgres(ask):
    round = 0
    while True:
        round += 1
        count = 100 + round % 300
        query = b"SELECT md5(string_agg(i::text, ',' ORDER BY -i)) FROM generate_series(1, %d) i" % count
        first = ask(query)
        yield len(first[0]) == 32 and ask(query) == first
        yield ask(b"SELECT sum(i) FROM generate_series(1, %d) i" % count) == [b"%d" % (count * (count + 1) // 2)]


def run(number, results):
    for is_right in results:
        if not is_right:
            print("wrong", flush=True)
            os._exit(105)
        ROUNDS[number] += 1


def main(kind="itself", path="", pid=0):
    if kind == "itself":
        work, pid = [work_itself(i) for i in range(3)], os.getpid()
    elif kind == "redis":
        work = [work_by_redis(i, path) for i in range(4)]
        info = redis_asker(path)(b"INFO", b"server")
        pid = re.search(rb"process_id:(\d+)", info)[1]
    elif kind == "http":
        work = [work_by_http(i, path) for i in range(4)]
    else:
        ask, pid = postgres_asker(path)
        work = [work_by_postgres(ask)]
    ROUNDS.extend(0 for _ in work)
    print(json.dumps({"pid": int(pid), "expect": {"leaks": []}}), flush=True)
    for number, results in enumerate(work):
        threading.Thread(target=run, args=(number, results), daemon=True).start()
    for _ in sys.stdin:
        before = list(ROUNDS)
        while any(now < then + 2 for now, then in zip(ROUNDS, before)):
            time.sleep(0.002)
        print("alive", flush=True)
    print(sum(ROUNDS), "results were right", flush=True)
    os._exit(0)


main(*sys.argv[1:])
