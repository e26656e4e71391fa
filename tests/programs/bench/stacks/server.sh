#!/bin/sh
# A server under load, for `cargo xtask bench stacks`: says `ready PID` when it answers; all ends with the input.
#
#     server.sh redis|nginx|postgres
set -eu
directory=$(mktemp -d)
socket=$directory/socket
server= load=

finish() {
    trap - EXIT INT TERM
    # The load's own child ends when nobody answers it.
    for process in $load $server; do kill "$process" 2>/dev/null || true; done
    for process in $load $server; do wait "$process" 2>/dev/null || true; done
    rm -rf "$directory"
}
trap finish EXIT INT TERM

run_redis() {
    redis-server --port 0 --save '' --dir "$directory" --unixsocket "$socket" >"$directory/log" 2>&1 &
    server=$!
    asks() { redis-cli -s "$socket" ping; }
    loads() { redis-benchmark -s "$socket" -q -n 5000 -r 10000 -d 200; }
}

run_nginx() {
    seq 20000 >"$directory/page.html"
    cat >"$directory/nginx.conf" <<CONFIGURATION
daemon off; master_process off; pid nginx.pid; error_log stderr;
events {}
http {
    access_log off; gzip on; gzip_types *; client_body_temp_path body; proxy_temp_path proxy;
    fastcgi_temp_path fastcgi; uwsgi_temp_path uwsgi; scgi_temp_path scgi;
    server {
        listen unix:$socket;
        root $directory;
        location /rewritten { rewrite ^ /page.html last; }
        location /said { return 200 ok; }
        location /passed { proxy_pass http://unix:$socket:/page.html; }
    }
}
CONFIGURATION
    nginx -p "$directory" -e stderr -c nginx.conf >"$directory/log" 2>&1 &
    server=$!
    asks() { curl --silent --fail --unix-socket "$socket" http://localhost/said; }
    loads() {
        curl --silent --compressed --unix-socket "$socket" "http://localhost/{page.html,rewritten,said,missing,passed}?[1-200]"
    }
}

# It does not run as root.
run_postgres() {
    bin=$(find /usr/lib/postgresql -name initdb | sort | tail -1 | xargs dirname)
    chown postgres "$directory"
    cd "$directory"
    as_postgres() { setpriv --reuid=postgres --regid=postgres --clear-groups "$@"; }
    as_postgres "$bin/initdb" --no-sync --auth=trust -D "$directory/data" >"$directory/log"
    setpriv --reuid=postgres --regid=postgres --clear-groups \
        "$bin/postgres" -D "$directory/data" -k "$directory" -c listen_addresses= >>"$directory/log" 2>&1 &
    server=$!
    asks() { "$bin/psql" -h "$directory" -U postgres -c 'select 1'; }
    # Each time with connections, and so server processes, of its own.
    loads() { "$bin/pgbench" -h "$directory" -U postgres --client=2 --time=2 postgres; }
    prepares() { "$bin/pgbench" -h "$directory" -U postgres --initialize postgres; }
}

prepares() { :; }
"run_$1"
tries=0
until asks >/dev/null 2>&1; do
    tries=$((tries + 1))
    if [ $tries -gt 300 ]; then
        cat "$directory/log" >&2
        exit 1
    fi
    sleep 0.1
done
prepares >/dev/null 2>&1
(while :; do loads; done) >/dev/null 2>&1 &
load=$!
echo "ready $server"
while read -r _; do :; done
