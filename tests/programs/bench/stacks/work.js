// Work through many parts of node, for `cargo xtask bench stacks`: HTTP, compression, hashes, threads, JSON, files. Says `ready PID`;
// ends with its input.
'use strict';

const crypto = require('node:crypto');
const fs = require('node:fs');
const http = require('node:http');
const zlib = require('node:zlib');

const server = http.createServer((request, response) => {
  const chunks = [];
  request.on('data', (chunk) => chunks.push(chunk));
  request.on('end', () => {
    const items = JSON.parse(Buffer.concat(chunks).toString());
    const digest = crypto.createHash('sha256').update(JSON.stringify(items)).digest('hex');
    response.setHeader('content-encoding', 'gzip');
    zlib.gzip(JSON.stringify({ digest, items }), (_, body) => response.end(body));
  });
});

function ask(port, number) {
  const items = Array.from({ length: number % 100 }, (_, index) => ({ index, text: 'x'.repeat(index) }));
  const request = http.request({ port, host: '127.0.0.1', method: 'POST' }, (response) => {
    response.pipe(zlib.createGunzip()).on('data', () => {}).on('end', () => ask(port, number + 1));
  });
  request.end(JSON.stringify(items));
}

function hash(number) {
  crypto.pbkdf2(`${number}`, 'salt', 100, 32, 'sha512', () => {
    fs.readFile(__filename, (_, text) => {
      zlib.deflateSync(text);
      setImmediate(hash, number + 1);
    });
  });
}

server.listen(0, '127.0.0.1', () => {
  for (let number = 0; number < 4; number++) ask(server.address().port, number);
  hash(0);
  console.log('ready', process.pid);
});
process.stdin.resume();
process.stdin.on('end', () => process.exit(0));
