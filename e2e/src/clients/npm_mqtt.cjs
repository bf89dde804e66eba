// Runs one task with the npm package mqtt: subscribe and report messages, or publish and report
// acknowledgements. The task comes as JSON in the first argument; events go to standard output, one JSON object
// a line. SIGTERM ends the connection with a DISCONNECT.
'use strict'

const fs = require('fs')
const mqtt = require('mqtt')

const task = JSON.parse(process.argv[1])

const report = (event, fields) => process.stdout.write(JSON.stringify({ event, ...fields }) + '\n')

const fail = (what, error) => {
  process.stderr.write(`${what}: ${error && error.message}\n`)
  process.exit(3)
}

const toObject = (pairs) => {
  const object = {}
  for (const [name, value] of pairs) object[name] = name in object ? [].concat(object[name], value) : value
  return object
}

const toPairs = (object) =>
  Object.entries(object || {}).flatMap(([name, values]) => [].concat(values).map((value) => [name, value]))

const withProperties = (options, pairs) =>
  task.v5 && pairs.length > 0 ? { ...options, properties: { userProperties: toObject(pairs) } } : options

const options = {
  host: task.host,
  port: task.port,
  protocol: task.scheme,
  path: task.path,
  protocolVersion: task.level,
  protocolId: task.level === 3 ? 'MQIsdp' : 'MQTT',
  clientId: task.clientId,
  clean: !task.persistent,
  reconnectPeriod: 0,
  resubscribe: false
}
if (task.authority) options.ca = fs.readFileSync(task.authority)
if (task.certificate) {
  options.cert = fs.readFileSync(task.certificate)
  options.key = fs.readFileSync(task.key)
}
if (task.login) [options.username, options.password] = task.login
if (task.will) options.will = { ...task.will, payload: Buffer.from(task.will.payload), retain: false }
if (task.v5) options.properties = { sessionExpiryInterval: task.persistent ? 3600 : 0 }

const client = mqtt.connect(options)
let ending = false
const end = () => {
  ending = true
  client.end(false, () => process.exit(0))
}
process.on('SIGTERM', end)

client.on('error', (error) => fail('error', error))
client.on('close', () => ending || fail('connection closed'))
client.on('message', (topic, payload, packet) => {
  const properties = toPairs(packet.properties && packet.properties.userProperties)
  report('message', { topic, payload: payload.toString(), qos: packet.qos, retain: packet.retain, properties })
})
client.on('connect', () => {
  if (task.subscribe) subscribe(task.subscribe)
  if (task.publish) publish(task.publish)
})

function subscribe ({ filters, qos, properties }) {
  client.subscribe(filters, withProperties({ qos }, properties), (error, granted, packet) => {
    const suback = packet || (error && error.packet)
    if (!suback) return fail('subscribe', error)
    report('granted', { codes: suback.granted })
  })
}

function publish ({ topic, payloads, qos, retain, properties }) {
  let open = payloads.length
  payloads.forEach((payload, index) => {
    client.publish(topic, payload, withProperties({ qos, retain }, properties), (error, packet) => {
      if (error && typeof error.code !== 'number') return fail('publish', error)
      report('acked', { index, reason: error ? error.code : (packet && packet.reasonCode) || 0 })
      if (--open === 0) end()
    })
  })
}
