// The load on http_server.js: `node http_load.js PORT`. For each line on its input, `_ MILLISECONDS`, keeps requests going over its
// connections for that long and answers with the nanoseconds a request took in the mean, over all connections, and the 99th percentile of
// a request's latency in nanoseconds.
'use strict';

const http = require('node:http');
const readline = require('node:readline');

const CONNECTIONS = 16;
const body = JSON.stringify(Array.from({ length: 30 }, (_, id) => ({ id, name: `item ${id}`, price: id * 3 })));
const agent = new http.Agent({ keepAlive: true, maxSockets: CONNECTIONS });
const options = {
  port: Number(process.argv[2]), host: '127.0.0.1', method: 'POST', agent,
  headers: { 'content-type': 'application/json', 'content-length': Buffer.byteLength(body) },
};

function request() {
  return new Promise((resolve, reject) => {
    const sent = http.request(options, (response) => {
      response.resume();
      response.on('end', resolve);
    });
    sent.on('error', reject);
    sent.end(body);
  });
}

async function connection(until, latencies) {
  while (process.hrtime.bigint() < until) {
    const began = process.hrtime.bigint();
    await request();
    latencies.push(Number(process.hrtime.bigint() - began));
  }
}

(async () => {
  console.log('ready', process.pid);
  for await (const line of readline.createInterface({ input: process.stdin })) {
    const latencies = [];
    const began = process.hrtime.bigint();
    const until = began + BigInt(line.split(' ')[1]) * 1000000n;
    await Promise.all(Array.from({ length: CONNECTIONS }, () => connection(until, latencies)));
    const mean = Number(process.hrtime.bigint() - began) / latencies.length;
    latencies.sort((a, b) => a - b);
    console.log(mean, latencies[Math.floor(latencies.length * 0.99)]);
  }
  process.exit(0);
})();
