// As `pairs.c`, from JavaScript functions: pairs of malloc and free in an addon, with so many functions on the stack.
//
//     node pairs.js ADDON
//
// Says `ready PID`. For each line on its input, `DEPTH MILLISECONDS`, makes pairs for that long with `DEPTH` JavaScript functions on the
// stack, and answers with the nanoseconds of CPU time that one pair took. Ends with its input.
'use strict';

const fs = require('node:fs');
const { pairs } = require(process.argv[2]);

function descend(functions, milliseconds) {
  return functions <= 1 ? pairs(milliseconds) : descend(functions - 1, milliseconds);
}

// Bytes of the input up to the end of a line.
function line() {
  const byte = Buffer.alloc(1);
  let text = '';
  while (fs.readSync(0, byte) === 1) {
    if (byte[0] === 10) return text;
    text += byte.toString('latin1');
  }
  return null;
}

fs.writeSync(1, `ready ${process.pid}\n`);
for (let asked = line(); asked !== null; asked = line()) {
  const [depth, milliseconds] = asked.split(' ').map(Number);
  const before = process.cpuUsage();
  const made = descend(depth, milliseconds);
  const { user, system } = process.cpuUsage(before);
  fs.writeSync(1, `${((user + system) * 1000) / made}\n`);
}
