// Grows the JavaScript heap, and nothing else, for as long as a scenario of scenario.c lasts.
'use strict';

const fs = require('node:fs');

const WORK_MS = 10500;

fs.writeSync(1, JSON.stringify({ pid: process.pid, expect: { leaks: [] } }) + '\n');
const input = Buffer.alloc(64);
if (fs.readSync(0, input) === 0) process.exit(0);

const kept = [];
const started = Date.now();
const timer = setInterval(() => {
  for (let i = 0; i < 5000; i++) kept.push({ number: i, text: `object ${i}` });
  if (Date.now() - started < WORK_MS) return;
  clearInterval(timer);
  fs.writeSync(1, 'done\n');
  while (fs.readSync(0, input) > 0);
  process.exit(kept.length > 0 ? 0 : 1);
}, 20);
