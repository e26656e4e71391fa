#!/bin/sh
# Puma with a few requests a second: fewer than Ruby's collector waits for. usage: run.sh PORT
cd "$(dirname "$0")" || exit
puma --threads 2 --bind "tcp://127.0.0.1:$1" config.ru >/dev/null 2>&1 &
server=$!
trap 'kill $server' EXIT
until curl --silent --output /dev/null "http://127.0.0.1:$1/"; do sleep 0.1; done
echo "ready $server"
while :; do
    curl --silent --output /dev/null "http://127.0.0.1:$1/?hello"
    sleep 0.2
done
