// Copyright 2026 the minicpmo_ros authors
// SPDX-License-Identifier: Apache-2.0

// Speaks words with gnuspeech: node gnuspeech.mjs MODULE FOLDER < orders
// MODULE is wasm/gnuspeech.js of the package; orders is a JSON list, the first of which becomes
// FOLDER/0.wav: {text, model: {key: value}, voice: {key: value}}. The package's own function
// offers five voices; a vocal tract is set in the files that gnuspeech reads.

import { readFileSync, writeFileSync } from 'node:fs'
import { pathToFileURL } from 'node:url'

const [module, folder] = process.argv.slice(2)
const { default: start } = await import(pathToFileURL(module).href)
const engine = await start()
const DATA = '/data/en'
const files = { model: `${DATA}/trm_control_model.txt`, voice: `${DATA}/voice_male.txt` }
const asShipped = {}
for (const [name, file] of Object.entries(files)) {
  asShipped[name] = engine.FS.readFile(file, { encoding: 'utf8' })
}

function set(name, values) {
  let text = asShipped[name]
  for (const [key, value] of Object.entries(values)) {
    const line = new RegExp(`^${key} = .*$`, 'm')
    if (!line.test(text)) throw new Error(`gnuspeech's ${name} has no ${key}`)
    text = text.replace(line, `${key} = ${value}`)
  }
  engine.FS.writeFile(files[name], text)
}

function asCString(text) {
  const bytes = new TextEncoder().encode(`${text}\0`)
  const address = engine._malloc(bytes.length)
  engine.HEAPU8.set(bytes, address)
  return address
}

const places = ['/out.wav', DATA, '/parameters.txt'].map(asCString)
JSON.parse(readFileSync(0, 'utf8')).forEach((order, i) => {
  set('model', order.model)
  set('voice', order.voice)
  const text = asCString(order.text)
  engine._GnuSpeech_synthesizeToFile(text, ...places, 0)
  engine._free(text)
  writeFileSync(`${folder}/${i}.wav`, engine.FS.readFile('/out.wav'))
})
