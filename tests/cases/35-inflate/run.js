// Node.js 10.9: an asynchronous inflate() of what is not compressed never lets its state go.
const zlib = require('zlib')

const body = require('crypto').randomBytes(1024)

function readBody() {
  zlib.inflate(body, () => {})
}

setInterval(() => { for (let i = 0; i < 5; i++) readBody() }, 20)
console.log('ready')
