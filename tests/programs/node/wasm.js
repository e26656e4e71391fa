// Leaks native memory from a function of WebAssembly, in a V8 that writes a jitdump (`--perf-prof`).
//
//     node --perf-prof wasm.js ADDON
//
// V8 writes the dump out of a buffer of two megabytes: so the allocations come first, and then so much other code that their functions
// have been written.
'use strict';

const fs = require('node:fs');
const path = require('node:path');

const SIZE = 16;
const CALLS = 5;
const BUFFERED = 2 << 20;
const addon = require(path.resolve(process.argv[2]));

const text = (name) => [name.length, ...Buffer.from(name)];
const section = (id, bytes) => [id, bytes.length, ...bytes];
// (module (import "m" "leak" (func)) (func $inWasm (export "run") call 0))
const module_ = new WebAssembly.Module(new Uint8Array([
  ...[0, 0x61, 0x73, 0x6d, 1, 0, 0, 0],
  ...section(1, [1, 0x60, 0, 0]),
  ...section(2, [1, ...text('m'), ...text('leak'), 0, 0]),
  ...section(3, [1, 0]),
  ...section(7, [1, ...text('run'), 0, 1]),
  ...section(10, [1, 4, 0, 0x10, 0, 0x0b]),
  ...section(0, [...text('name'), ...section(1, [1, 1, ...text('inWasm')])]),
]));
const leak = () => { addon.handle(SIZE); };
const { run } = new WebAssembly.Instance(module_, { m: { leak } }).exports;

// Large code, and other code each time: of an expression that has run twice.
function compile(number) {
  const words = Array.from({ length: 500 }, (_, word) => `w${number}x${word}`);
  const expression = new RegExp(words.join('|'));
  for (let i = 0; i < 3; i++) expression.test(`y${i}`);
}

fs.writeSync(1, JSON.stringify({ pid: process.pid, expect: { leaks: [] } }) + '\n');
if (fs.readSync(0, Buffer.alloc(64)) === 0) process.exit(0);
for (let i = 0; i < CALLS; i++) run();
const dump = `jit-${process.pid}.dump`;
const enough = fs.statSync(dump).size + 2 * BUFFERED;
for (let i = 0; fs.statSync(dump).size < enough; i++) compile(i);
fs.writeSync(1, 'done\n');
while (fs.readSync(0, Buffer.alloc(64)) > 0);
process.exit(0);
