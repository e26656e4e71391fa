// Speaks the protocol of tests/README.md: keeps 50 buffers of 100,000 bytes, which node gets from the allocator.
const fs = require('fs');

const kept = [Buffer.alloc(100000)];
process.stdout.write(JSON.stringify({ pid: process.pid, expect: { leaks: [] } }) + '\n');
fs.readSync(0, Buffer.alloc(3), 0, 3);
for (let i = 0; i < 50; i++) kept.push(Buffer.alloc(100000));
process.stdout.write('done\n');
process.stdin.resume();
