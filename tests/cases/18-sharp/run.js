// sharp 0.33.5 with glibc's malloc: what finished pictures took stays with the allocator. Nothing leaks.
const sharp = require('sharp')

sharp.cache(false)
sharp.concurrency(4)
const width = 3000, height = 2000, channels = 3
const picture = Buffer.alloc(width * height * channels, 128)

function shrink() {
  return sharp(picture, { raw: { width, height, channels } }).resize(640).jpeg().toBuffer()
}

async function work(round) {
  await Promise.all(Array.from({ length: 8 }, shrink))
  setTimeout(work, round % 10 === 9 ? 2000 : 200, round + 1)
}

console.log('ready')
work(0)
