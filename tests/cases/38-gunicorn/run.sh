#!/bin/sh
# gunicorn replaces its workers every few seconds, and each request leaks: the leak of 14 in one worker after the other. usage: run.sh PORT
cd "$(dirname "$0")/../../services" || exit
gunicorn --workers 2 --max-requests 400 --bind "127.0.0.1:$1" wsgi:application >/dev/null 2>&1 &
server=$!
trap 'kill $server' EXIT
until curl --silent --output /dev/null "http://127.0.0.1:$1/"; do sleep 0.1; done
echo "ready $server"
while :; do
    curl --silent --output /dev/null "http://127.0.0.1:$1/?[1-100]"
    sleep 0.1
done
