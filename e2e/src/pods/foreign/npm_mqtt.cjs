// The clients of a cluster under faults with the npm package mqtt: two publishers, a consumer, a session that lasts and a
// reader. The task comes as JSON in the first argument. What was handed to the library and what it told goes to standard
// output, one JSON object a line; `publish` and `stop` come from standard input. Reconnecting and sending again is the
// library's doing.
'use strict'

const mqtt = require('mqtt')
const readline = require('readline')

const task = JSON.parse(process.argv[1])
// Seconds; a pod that is silent for half as long again is left.
const KEEP_ALIVE = 3
// Publishes that a publisher has open at once.
const WINDOW = 4
// A reader that comes back begins so long before the last message that it had: shards do not go in step.
const AGAIN_MILLIS = 30000

const report = (event, fields) => process.stdout.write(JSON.stringify({ event, ...fields }) + '\n')

function connect (role, persistent) {
  const client = mqtt.connect({
    host: '127.0.0.1',
    port: task.ports[role],
    protocolVersion: task.v5 ? 5 : 4,
    clientId: `${task.name}-${role}`,
    clean: !persistent,
    keepalive: KEEP_ALIVE,
    connectTimeout: 2000,
    reconnectPeriod: 50,
    resubscribe: false,
    properties: task.v5 ? { sessionExpiryInterval: persistent ? 3600 : 0, receiveMaximum: 100 } : undefined
  })
  // Every end of a connection is to be expected here.
  client.on('error', () => {})
  return client
}

function subscribe (client, role, filter, qos, userProperties) {
  const options = task.v5 && userProperties ? { qos, properties: { userProperties } } : { qos }
  client.subscribe(filter, options, (error, granted) => {
    if (!error && granted.every(({ qos }) => qos < 0x80)) return report('subscribed', { role })
    // Such as while a shard has no owner: the next connection asks again.
    client.stream.destroy()
  })
}

function placeOf (packet) {
  if (!task.v5) return null
  const { shard, offset } = packet.properties.userProperties
  return [Number(shard), Number(offset)]
}

function consume () {
  const client = connect('queue', false)
  client.on('connect', () => subscribe(client, 'queue', '$queue/jobs', 1))
  client.on('message', (_topic, payload, packet) =>
    report('queue', { payload: payload.toString(), place: placeOf(packet), kept: false }))
}

function keepASession () {
  const client = connect('session', true)
  let hadSession = false
  client.on('connect', ({ sessionPresent }) => {
    if (sessionPresent) return
    if (hadSession) report('problem', { text: 'the session is gone' })
    hadSession = true
    subscribe(client, 'session', `faults/+/${task.topic}`, 2)
  })
  client.on('message', (_topic, payload) => report('session', { payload: payload.toString(), qos: 2 }))
}

function read () {
  const client = connect('stream', false)
  let last = null
  client.on('connect', () => {
    const begin = last === null ? 'earliest' : String((last - AGAIN_MILLIS) * 1000)
    if (task.v5) subscribe(client, 'stream', '$stream/journal', 1, { 'stream-offset': begin })
    else subscribe(client, 'stream', `$s/${begin}/faults/#`, 1)
  })
  client.on('message', (_topic, payload, packet) => {
    last = Date.now()
    report('stream', { payload: payload.toString(), place: placeOf(packet) })
  })
}

let stopping = false
const whenStopped = []

function publish (n, qos) {
  const client = connect(`publisher${qos}`, qos === 2)
  let [open, next, idle] = [0, 0, false]
  const send = (number) => {
    const payload = `${qos}/${n}/${number}`
    client.publish(`faults/${n}/${number % task.topics}`, payload, { qos }, (error) => {
      if (error && typeof error.code === 'number') {
        report('refused', { payload, reason: error.code })
        return send(number)
      }
      if (error) {
        // Nothing is known of it: not even that it will not be sent again.
        report('givenUp', { payload })
        return setTimeout(() => send(number), task.paceMillis)
      }
      report('acked', { payload })
      open--
      endIfIdle()
    })
  }
  const endIfIdle = () => {
    if (!stopping || open > 0 || idle) return
    idle = true
    clearInterval(timer)
    report('idle')
  }
  const timer = setInterval(() => {
    if (stopping || open >= WINDOW) return
    open++
    report('sent', { payload: `${qos}/${n}/${next}` })
    send(next++)
  }, task.paceMillis)
  whenStopped.push(endIfIdle)
}

keepASession()
consume()
read()
const commands = readline.createInterface({ input: process.stdin })
commands.on('line', (line) => {
  if (line !== 'stop') return [1, 2].forEach((qos) => publish(task.publisher + qos - 1, qos))
  stopping = true
  whenStopped.forEach((ended) => ended())
})
// Whoever started this is gone.
commands.on('close', () => process.exit(0))
