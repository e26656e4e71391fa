// A cluster of two workers, each of which leaks COUNT sessions through the addon:
//
//     node cluster.js ADDON COUNT      says what each worker will leak, waits for a line on its input, starts the workers,
//                                      says "done" when both have leaked, and stays until its input ends
'use strict';

const cluster = require('node:cluster');
const fs = require('node:fs');
const path = require('node:path');

const SESSION_BYTES = 16 * 1024;
const WORKERS = 2;

const addon = require(path.resolve(process.argv[2]));
const count = Number(process.argv[3]);

if (cluster.isPrimary) {
  const bytes = count * addon.blockSize(SESSION_BYTES);
  const leak = { function: 'session::Cache::Open', api: 'malloc', kind: 'native', objects: count, bytes };
  fs.writeSync(1, JSON.stringify({ pid: process.pid, expect: { leaks: [leak] } }) + '\n');
  if (fs.readSync(0, Buffer.alloc(64)) === 0) process.exit(0);
  let ready = 0;
  cluster.on('message', () => {
    ready += 1;
    if (ready === WORKERS) fs.writeSync(1, 'done\n');
  });
  for (let i = 0; i < WORKERS; i++) cluster.fork();
  process.stdin.on('end', () => process.exit(0)).resume();
} else {
  for (let i = 0; i < count; i++) addon.handle(SESSION_BYTES);
  process.send('leaked');
}
