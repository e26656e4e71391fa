// A web service with a native leak: its resident memory grows with every request, its JavaScript heap does not.
//
//     node service.js ADDON            serves requests that it sends itself, and says each second what it uses; ends
//                                      with its input, or after an hour. REQUESTS_A_SECOND in the environment: 200
//     node service.js ADDON COUNT      for the tests: says what it will leak, waits for a line on its input, serves
//                                      COUNT requests, says "done" and stays until its input ends
'use strict';

const fs = require('node:fs');
const http = require('node:http');
const path = require('node:path');

const SESSION_BYTES = 16 * 1024;
const REQUESTS_A_SECOND = Number(process.env.REQUESTS_A_SECOND ?? 200);
const LONGEST_MS = 60 * 60 * 1000;

const addon = require(path.resolve(process.argv[2]));
const count = Number(process.argv[3] ?? 0);
if (count > 0) leakExactly(count);
else serve();

function leakExactly(count) {
  for (let i = 0; i < 1000; i++) addon.blockSize(i); // compiled, and every lazy thing done, before the window
  const bytes = count * addon.blockSize(SESSION_BYTES);
  const leak = { function: 'session::Cache::Open', api: 'malloc', kind: 'native', objects: count, bytes };
  fs.writeSync(1, JSON.stringify({ pid: process.pid, expect: { leaks: [leak] } }) + '\n');
  const input = Buffer.alloc(64);
  if (fs.readSync(0, input) === 0) process.exit(0);
  for (let i = 0; i < count; i++) addon.handle(SESSION_BYTES);
  fs.writeSync(1, 'done\n');
  while (fs.readSync(0, input) > 0);
  process.exit(0);
}

function serve() {
  const server = http.createServer(function handle(request, response) {
    response.end(`${addon.handle(SESSION_BYTES)}\n`);
  });
  const agent = new http.Agent({ keepAlive: true, maxSockets: 4 });
  let requests = 0;
  let due = 0;
  server.listen(0, '127.0.0.1', () => {
    const { port } = server.address();
    const send = () => {
      http.get({ port, agent }, (response) => response.resume().on('end', () => requests++));
    };
    say(requests);
    setInterval(() => {
      for (due += REQUESTS_A_SECOND / 20; due >= 1; due--) send();
    }, 50);
    setInterval(() => say(requests), 1000);
  });
  process.stdin.resume().on('end', () => process.exit(0));
  setTimeout(() => process.exit(0), LONGEST_MS);
}

function say(requests) {
  const { rss, heapUsed } = process.memoryUsage();
  const mib = (bytes) => `${(bytes / 1024 / 1024).toFixed(1)} MiB`;
  console.log(`${requests} requests, resident ${mib(rss)}, JavaScript heap ${mib(heapUsed)}`);
}
