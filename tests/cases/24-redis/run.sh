#!/bin/sh
# redis 7.0 with jemalloc: small values come, and nine in ten go again, in turns of two seconds. Nothing leaks; what is freed lies
# between what stays, so that no page is free. usage: run.sh PORT
redis-server --port "$1" --bind 127.0.0.1 --save '' --daemonize no >/dev/null &
server=$!
trap 'kill $server' EXIT
say() { redis-cli -p "$1" eval "$2" 0 >/dev/null 2>&1; }
until redis-cli -p "$1" ping >/dev/null 2>&1; do sleep 0.1; done
say "$1" "for i = 1, 20000 do redis.call('set', 'key' .. i, string.rep('x', 100 + i % 400)) end"
echo "ready $server"
while :; do
    say "$1" "for i = 1, 20000 do redis.call('set', 'key' .. i, string.rep('x', 100 + i % 400)) end"
    sleep 1
    say "$1" "for i = 1, 20000 do if i % 10 > 0 then redis.call('del', 'key' .. i) end end"
    sleep 1
done
