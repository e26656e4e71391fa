// Node.js 24.16 to 24.18: who reads a Blob by its stream leaves what it read behind.
const bytes = Buffer.alloc(50_000)

async function readBlob() {
  await new Response(new Blob([bytes]).stream()).arrayBuffer()
}

async function work() {
  for (let i = 0; i < 5; i++) await readBlob()
  setTimeout(work, 20)
}

console.log('ready')
work()
