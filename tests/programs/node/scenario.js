// Services whose truth is known, for the scenarios. The first argument names one:
//     heap             objects of JavaScript, and nothing else
//     buffers          Buffers that JavaScript keeps: memory outside of its heap
//     heap_and_leak    objects, and an addon (the second argument) that leaks as much
// Says what `process.memoryUsage()` says before it begins, and `worked` when it has done enough to be judged. It works on until a line
// comes, says its usage again with `done`, and then is quiet.
'use strict';

const fs = require('node:fs');
const path = require('node:path');

const TICK_MS = 20;
const [, , name, addonPath, enoughTicks = 375] = process.argv;
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

// The same pipe, but reading does not wait.
const lines = fs.openSync('/dev/stdin', fs.constants.O_RDONLY | fs.constants.O_NONBLOCK);
const isTold = () => {
  try {
    fs.readSync(lines, input);
    return true;
  } catch {
    return false;
  }
};
const started = Date.now();
let ticks = 0;
const timer = setInterval(() => {
  // What was missed is made up for.
  for (; Date.now() - started >= TICK_MS * ticks; ticks++) {
    work();
    if (ticks === Number(enoughTicks)) say('worked');
  }
  if (!isTold()) return;
  clearInterval(timer);
  say(`usage ${usage()}`);
  say('done');
  while (fs.readSync(0, input) > 0);
  process.exit(kept.length > 0 ? 0 : 1);
}, TICK_MS);
