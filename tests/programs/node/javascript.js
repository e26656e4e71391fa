// Allocates native memory from JavaScript in every way that the names of functions are told of, and states its own stack each time.
//
//     node javascript.js ADDON FILE [ROUNDS [reload]]
//
// Everything has been run before the window often enough to be compiled by each compiler of V8, so frames are interpreted ones, of
// compiled code and of functions that were inlined. Leaves in FILE, for each allocation, `[[FUNCTION, FILE, LINE], ...]`, innermost function
// first, without those that are built into V8; a function without a name is null, and what `eval` made has no file.
'use strict';

const fs = require('node:fs');
const path = require('node:path');
const url = require('node:url');
const vm = require('node:vm');
const { isMainThread, parentPort, Worker, workerData } = require('node:worker_threads');

const SIZE = 16;
const given = () => [process.argv[2], Number(process.argv[4] ?? 20), process.argv[5] === 'reload'];
const [addonPath, rounds, reloads] = isMainThread ? given() : workerData;
const addon = require(path.resolve(addonPath));

let tells = false;
const stacks = [];
Error.stackTraceLimit = 200;

// The sites of the callers of the allocation, as V8 tells them.
function sites(_, sites) {
  const own = sites.filter((site) => !site.isAsync() && site.getLineNumber() !== null).map((site) => {
    const file = site.isEval() ? null : site.getFileName();
    return [site.getFunctionName(), file?.startsWith('file:') ? url.fileURLToPath(file) : file, site.getLineNumber()];
  });
  return own.slice(1);
}

function tell() {
  if (!tells) return;
  const usual = Error.prepareStackTrace;
  Error.prepareStackTrace = sites;
  const told = {};
  Error.captureStackTrace(told);
  stacks.push(told.stack);
  Error.prepareStackTrace = usual;
}

// On one line: so both calls are at the same place.
const leak = () => { addon.handle(SIZE); tell(); };

// What allocates. Each is called again and again.
const ways = {
  plain() { leak(); },
  arrow: () => leak(),
  closures() { [1].forEach(() => leak()); },
  deep() { recurse(20); },
  constructors() { new Derived(); },
  accessors() { holder.value; holder.value = 1; },
  methods() { new Derived().method(); Derived.make(); new Derived().hidden(); },
  generators() { for (const _ of generate()) leak(); },
  evaluated() { evaluated(leak); },
  scripts() { script(leak); },
  built() { [3, 1].map(function mapped() { leak(); }); },
  sorted() { [2, 1].sort((a, b) => { leak(); return a - b; }); },
  replaced() { 'x'.replace(/x/, function replacer() { leak(); return ''; }); },
  reflected() { Reflect.apply(function applied() { leak(); }, undefined, []); },
  bound() { (function unbound() { leak(); }).bind(null)(); },
  caught() { try { thrown(); } catch { leak(); } finally { leak(); } },
  proxied() { proxy.anything; },
  tagged() { tag`a${1}`; },
  callbacks() { JSON.stringify({ toJSON() { leak(); return 1; } }); },
  関数() { leak(); },
  inlined() { return outermost(1); },
  looping() { for (let i = 0; i < 3; i++) if (i === 1) leak(); },
  manyVariables() { many(1); },
};

const outermost = (x) => middle(x) + 1;
const middle = (x) => innermost(x) * 2;
function innermost(x) {
  leak();
  return x;
}

function recurse(depth) {
  if (depth === 0) return leak();
  return recurse(depth - 1);
}

class Base {
  constructor() {
    leak();
  }
}

class Derived extends Base {
  field = leak();
  method() { leak(); }
  static make() { leak(); }
  #secret() { leak(); }
  hidden() { this.#secret(); }
}

const holder = {
  get value() { leak(); return 1; },
  set value(_) { leak(); },
};

function* generate() {
  leak();
  yield 1;
  leak();
}

const evaluated = eval('(function evaluatedFunction(f) {\n  f();\n})\n//# sourceURL=/made/up/evaluated.js');
const script = vm.runInThisContext('(function scripted(f) {\n\n  f(); })', { filename: '/made/up/script.js', lineOffset: 10 });

function thrown() {
  throw new Error('caught');
}

const proxy = new Proxy({}, { get() { leak(); return 1; } });

function tag() {
  leak();
}

// More variables of one scope than stand in its ScopeInfo itself.
const many = new Function('leak', `return function many() { ${Array.from({ length: 90 }, (_, i) => `let v${i} = ${i};`).join(' ')}
  const keep = () => ${Array.from({ length: 90 }, (_, i) => `v${i}`).join(' + ')};
  leak(); return keep(); }
//# sourceURL=/made/up/many.js`)(leak);

// A function of which there is no other, and which is dropped at once: what comes later is at its addresses.
let made = 0;
if (reloads) {
  ways.reloaded = () => {
    const name = `reloaded_${isMainThread ? 'main' : 'worker'}_${made++}`;
    vm.runInThisContext(`(function ${name}(leak) {${'\n'.repeat(made % 5)} leak(); })`, { filename: `/made/up/${made % 7}.js` })(leak);
  };
}

async function asynchronous() {
  leak();
  await null;
  leak();
}

const later = () => new Promise((resolve) => setTimeout(function timer() { leak(); resolve(); }, 1));
const soon = () => new Promise((resolve) => process.nextTick(function ticked() { leak(); resolve(); }));

async function round(work) {
  for (const name of Object.keys(ways)) ways[name]();
  work.module(leak);
  await asynchronous();
  await soon();
}

// Hot, with the same calls as in the window, so that what was compiled is right for them.
async function warm(work) {
  const end = Date.now() + (isMainThread ? 3000 : 1000);
  while (Date.now() < end) {
    for (let i = 0; i < 50; i++) await round(work);
    // With what states the stacks, too: else all this would be given up in the first round of the window.
    tells = true;
    await round(work);
    tells = false;
  }
  stacks.length = 0;
}

async function tellRounds(work) {
  for (let i = 0; i < rounds; i++) {
    tells = true;
    await round(work);
    await later();
    tells = false;
  }
}

async function main() {
  const work = await import('./module.mjs');
  await warm(work);
  if (!isMainThread) {
    parentPort.postMessage('warm');
    // Not once: so it stays, and with it what is known of its functions.
    parentPort.on('message', async () => {
      await tellRounds(work);
      parentPort.postMessage(stacks);
    });
    return;
  }
  const worker = new Worker(__filename, { workerData: [addonPath, rounds, reloads] });
  const message = () => new Promise((resolve) => worker.once('message', resolve));
  await message();
  fs.writeSync(1, JSON.stringify({ pid: process.pid, expect: { leaks: [] } }) + '\n');
  if (fs.readSync(0, Buffer.alloc(64)) === 0) process.exit(0);
  await tellRounds(work);
  worker.postMessage('go');
  stacks.push(...(await message()));
  fs.writeFileSync(process.argv[3], JSON.stringify(stacks));
  fs.writeSync(1, 'done\n');
  while (fs.readSync(0, Buffer.alloc(64)) > 0);
  process.exit(0);
}

main();
