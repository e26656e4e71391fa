// Services whose truth is known, for the scenarios. The first argument names one:
//     heap             objects of JavaScript, and nothing else
//     buffers          Buffers that JavaScript keeps: memory outside of its heap
//     heap_and_leak    objects, and an addon (the second argument) that leaks as much
// Says what `process.memoryUsage()` says before it begins, works, says it again with `done`, and then is quiet.
'use strict';

const fs = require('node:fs');
const path = require('node:path');

const WORK_MS = 8500;
const [, , name, addonPath, workMs = WORK_MS] = process.argv;
const addon = addonPath && addonPath !== '-' ? require(path.resolve(addonPath)) : undefined;

const kept = [];
const objects = (count) => {
  for (let i = 0; i < count; i++) kept.push({ number: i, text: `object ${i}` });
};
const work = {
  heap: () => objects(5000),
  buffers: () => kept.push(Buffer.alloc(128 * 1024, 1)),
  heap_and_leak: () => {
    objects(2500);
    for (let i = 0; i < 20; i++) addon.handle(16 * 1024);
  },
}[name];

const say = (line) => fs.writeSync(1, line + '\n');
const usage = () => JSON.stringify(process.memoryUsage());
const input = Buffer.alloc(64);

// Whatever is made lazily is there, and the first collections are over.
for (let i = 0; i < 100; i++) usage();
if (addon) for (let i = 0; i < 1000; i++) addon.blockSize(i);
say(JSON.stringify({ pid: process.pid, usage: process.memoryUsage(), expect: { leaks: [] } }));
if (fs.readSync(0, input) === 0) process.exit(0);

// What a busy machine or the collector holds up is made up for, so that it grows evenly.
const started = Date.now();
const elapsed = () => Date.now() - started;
let worked = 0;
const timer = setInterval(() => {
  for (const due = elapsed() / 20; worked < due && elapsed() < workMs; worked++) work();
  if (elapsed() < workMs) return;
  clearInterval(timer);
  say(`usage ${usage()}`);
  say('done');
  while (fs.readSync(0, input) > 0);
  process.exit(kept.length > 0 ? 0 : 1);
}, 20);
