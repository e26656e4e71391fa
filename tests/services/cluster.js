// A cluster of two workers that leak: what a request brought stays.
const cluster = require('node:cluster')
const http = require('node:http')

const kept = []

function handle(request, response) {
  kept.push(Buffer.alloc(20_000, 1))
  response.end('done\n')
}

if (cluster.isPrimary) {
  cluster.fork()
  cluster.fork()
} else {
  http.createServer(handle).listen(8983)
}
