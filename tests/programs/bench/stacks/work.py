"""Work through many parts of Python and its libraries in four threads, for `cargo xtask bench stacks`. Says `ready PID`; ends with its
input."""

import bz2
import hashlib
import json
import os
import re
import sqlite3
import sys
import threading
import zlib


def work() -> None:
    database = sqlite3.connect(":memory:")
    database.execute("create table words (word text, length integer)")
    while True:
        text = json.dumps([{"number": number, "text": "x" * (number * 20)} for number in range(60)])
        values = json.loads(text)
        words = sorted(re.findall(r"\w+", text), key=lambda word: re.sub("x+", "y", word))
        database.executemany("insert into words values (?, ?)", [(word, len(word)) for word in words])
        database.execute("select word, max(length) from words group by length % 7 order by word").fetchall()
        database.execute("delete from words")
        zlib.decompress(zlib.compress(text.encode()))
        bz2.compress(text.encode())
        hashlib.sha256(str(values).encode()).hexdigest()


for _ in range(4):
    threading.Thread(target=work, daemon=True).start()
print("ready", os.getpid(), flush=True)
sys.stdin.read()
os._exit(0)
