// @node-rs/crc32 1.5.1: each call leaves a reference to its buffer behind until there is garbage of JavaScript's to collect.
const { crc32c } = require('@node-rs/crc32')

const bytes = Buffer.alloc(1000)

function check() {
  for (let i = 0; i < 2000; i++) crc32c(bytes)
}

setInterval(check, 20)
console.log('ready')
