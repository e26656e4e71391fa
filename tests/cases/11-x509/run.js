// Node.js 24.11.1 (CVE-2025-59464): whatever of a certificate is turned into UTF-8 stays.
const fs = require('node:fs')
const { X509Certificate } = require('node:crypto')

const certificate = new X509Certificate(fs.readFileSync(process.argv[2]))

function organisation() {
  return certificate.toLegacyObject().subject.O
}

setInterval(() => { for (let i = 0; i < 500; i++) organisation() }, 20)
console.log('ready')
