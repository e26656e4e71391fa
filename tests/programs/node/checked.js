// Works, and compares each result with what it must be, while a tracer does something to it: a web service that asks itself, and two
// threads. For each line on its input it says "alive" when everybody has got two more right results. It ends with its input.
'use strict';

const crypto = require('node:crypto');
const http = require('node:http');
const readline = require('node:readline');
const { Worker, isMainThread, workerData } = require('node:worker_threads');
const zlib = require('node:zlib');

const CONNECTIONS = 8, THREADS = 2;

function check(isRight) {
  if (isRight) return;
  require('node:fs').writeSync(1, 'wrong\n');
  process.exit(105);
}

function work({ rounds, number }) {
  const text = JSON.stringify(Array.from({ length: 500 }, (_, id) => ({ id, name: `item ${id * number}` })));
  const packed = zlib.gzipSync(text);
  const hash = crypto.createHash('sha256').update(text).digest('hex');
  for (;;) {
    check(zlib.gzipSync(text).equals(packed));
    check(zlib.gunzipSync(packed).toString() === text);
    check(crypto.createHash('sha256').update(Buffer.from(text)).digest('hex') === hash);
    check(JSON.stringify(JSON.parse(text)) === text);
    Atomics.add(rounds, number, 1);
  }
}

function ask(options, body, sum) {
  return new Promise((resolve, reject) => {
    const request = http.request(options, (response) => {
      const chunks = [];
      response.on('data', (chunk) => chunks.push(chunk));
      response.on('end', () => {
        const answer = JSON.parse(Buffer.concat(chunks).toString());
        check(answer.sum === sum && JSON.stringify(answer.items) === body);
        resolve();
      });
    });
    request.on('error', reject);
    request.end(body);
  });
}

async function serveItself(rounds) {
  const server = http.createServer((request, response) => {
    const chunks = [];
    request.on('data', (chunk) => chunks.push(chunk));
    request.on('end', () => {
      const items = JSON.parse(Buffer.concat(chunks).toString());
      response.end(JSON.stringify({ sum: items.reduce((sum, item) => sum + item.price, 0), items }));
    });
  });
  await new Promise((resolve) => server.listen(0, '127.0.0.1', resolve));
  const agent = new http.Agent({ keepAlive: true, maxSockets: CONNECTIONS });
  const options = { host: '127.0.0.1', port: server.address().port, method: 'POST', agent };
  const connection = async (number) => {
    for (let round = 0; ; round++) {
      const items = Array.from({ length: 5 + (round % 60) }, (_, id) => ({ id, price: id * number }));
      await ask(options, JSON.stringify(items), items.reduce((sum, item) => sum + item.price, 0));
      rounds[THREADS + number]++;
    }
  };
  for (let i = 0; i < CONNECTIONS; i++) connection(i);
}

async function main() {
  const rounds = new Int32Array(new SharedArrayBuffer(4 * (THREADS + CONNECTIONS)));
  for (let number = 0; number < THREADS; number++) new Worker(__filename, { workerData: { rounds, number } });
  await serveItself(rounds);
  console.log(JSON.stringify({ pid: process.pid, expect: { leaks: [] } }));
  for await (const _ of readline.createInterface({ input: process.stdin })) {
    const before = Int32Array.from(rounds);
    while (rounds.some((now, i) => now < before[i] + 2)) await new Promise((resolve) => setTimeout(resolve, 2));
    console.log('alive');
  }
  console.log(rounds.reduce((sum, count) => sum + count), 'results were right');
  process.exit(0);
}

if (isMainThread) main();
else work(workerData);
