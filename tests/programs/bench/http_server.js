// A web service for `cargo xtask bench overhead`: answers with JSON made from what it was sent. Says `ready PID PORT`; ends with
// its input.
'use strict';

const http = require('node:http');

const server = http.createServer((request, response) => {
  const chunks = [];
  request.on('data', (chunk) => chunks.push(chunk));
  request.on('end', () => {
    const items = JSON.parse(Buffer.concat(chunks).toString());
    response.setHeader('content-type', 'application/json');
    response.end(JSON.stringify({ sum: items.reduce((sum, item) => sum + item.price, 0), items }));
  });
});
server.listen(0, '127.0.0.1', () => console.log('ready', process.pid, server.address().port));
process.stdin.resume();
process.stdin.on('end', () => process.exit(0));
