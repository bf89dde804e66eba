"""The clients of a cluster under faults with paho-mqtt: two publishers, a consumer, a session that lasts and a reader.

The task comes as JSON in the first argument. What was handed to the library and what it told goes to standard output, one
JSON object a line; `publish` and `stop` come from standard input. Reconnecting and sending again is paho's doing.
"""

import json
import os
import queue
import socket
import sys
import threading
import time

import paho.mqtt.client as mqtt
from paho.mqtt.packettypes import PacketTypes
from paho.mqtt.properties import Properties
from paho.mqtt.subscribeoptions import SubscribeOptions

task = json.loads(sys.argv[1])
v5 = task["v5"]
name = task["name"]
output = threading.Lock()
stopping = threading.Event()

# Seconds; a pod that is silent for twice as long is left.
KEEP_ALIVE = 3
# Publishes that a publisher has open at once.
WINDOW = 4
# Of so many messages of the queue one is not acknowledged: its consumer leaves instead.
KEPT_OF = 200
# A reader that comes back begins so long before the last message that it had: shards do not go in step.
AGAIN_SECONDS = 30


def report(event, **fields):
    line = json.dumps({"event": event, **fields}, separators=(",", ":"))
    with output:
        sys.stdout.write(line + "\n")
        sys.stdout.flush()


def client_of(role, persistent, manual_ack=False):
    options = {} if v5 else {"clean_session": not persistent}
    client = mqtt.Client(
        mqtt.CallbackAPIVersion.VERSION2,
        client_id=f"{name}-{role}",
        protocol=mqtt.MQTTv5 if v5 else mqtt.MQTTv311,
        manual_ack=manual_ack,
        **options,
    )
    client.reconnect_delay_set(0.02, 0.2)
    connect = {}
    if v5:
        properties = Properties(PacketTypes.CONNECT)
        properties.SessionExpiryInterval = 3600 if persistent else 0
        properties.ReceiveMaximum = 100
        connect = {"clean_start": not persistent, "properties": properties}
    client.connect_async("127.0.0.1", task["ports"][role], keepalive=KEEP_ALIVE, **connect)
    return client


def subscribe(client, wanted, qos, offset=None):
    if not v5:
        return client.subscribe(wanted, qos)
    properties = None
    if offset:
        properties = Properties(PacketTypes.SUBSCRIBE)
        properties.UserProperty = [("stream-offset", offset)]
    return client.subscribe([(wanted, SubscribeOptions(qos=qos))], properties=properties)


def hears_of_subscriptions(client, role):
    def on_subscribe(_client, _userdata, _mid, reasons, _properties):
        if any(reason.is_failure for reason in reasons):
            # Such as while a shard has no owner: the next connection asks again.
            client.socket().shutdown(socket.SHUT_RDWR)
        else:
            report("subscribed", role=role)

    client.on_subscribe = on_subscribe


def place_of(message):
    if not v5:
        return None
    properties = dict(message.properties.UserProperty)
    return [int(properties["shard"]), int(properties["offset"])]


def consume():
    client = client_of("queue", False, manual_ack=True)
    received = 0

    def on_connect(client, _userdata, _flags, reason, _properties):
        if not reason.is_failure:
            subscribe(client, "$queue/jobs", 1)

    def on_message(client, _userdata, message):
        nonlocal received
        received += 1
        kept = received % KEPT_OF == 0
        report("queue", payload=message.payload.decode(), place=place_of(message), kept=kept)
        if kept:
            client.socket().shutdown(socket.SHUT_RDWR)
        else:
            client.ack(message.mid, message.qos)

    client.on_connect = on_connect
    client.on_message = on_message
    hears_of_subscriptions(client, "queue")
    client.loop_start()


def keep_a_session():
    client = client_of("session", True)
    had_session = False

    def on_connect(client, _userdata, flags, reason, _properties):
        nonlocal had_session
        if reason.is_failure:
            return
        if not flags.session_present:
            if had_session:
                report("problem", text="the session is gone")
            subscribe(client, f"faults/+/{task['topic']}", 2)

    def on_subscribe(_client, _userdata, _mid, reasons, _properties):
        nonlocal had_session
        had_session = True
        if any(reason.is_failure for reason in reasons):
            report("problem", text=f"the subscription was refused: {reasons}")
        report("subscribed", role="session")

    def on_message(_client, _userdata, message):
        report("session", payload=message.payload.decode(), qos=2)

    client.on_connect = on_connect
    client.on_subscribe = on_subscribe
    client.on_message = on_message
    client.loop_start()


def read():
    client = client_of("stream", False)
    last = None

    def on_connect(client, _userdata, _flags, reason, _properties):
        if reason.is_failure:
            return
        begin = "earliest" if last is None else str(int((last - AGAIN_SECONDS) * 1_000_000))
        if v5:
            subscribe(client, "$stream/journal", 1, begin)
        else:
            subscribe(client, f"$s/{begin}/faults/#", 1)

    def on_message(_client, _userdata, message):
        nonlocal last
        last = time.time()
        report("stream", payload=message.payload.decode(), place=place_of(message))

    client.on_connect = on_connect
    client.on_message = on_message
    hears_of_subscriptions(client, "stream")
    client.loop_start()


def publish(n, qos):
    client = client_of(f"publisher{qos}", qos == 2)
    # Only noted there: the packet id may not even have been returned by publish() yet.
    acknowledged = queue.SimpleQueue()
    client.on_publish = lambda _client, _userdata, mid, reason, _properties: acknowledged.put((mid, reason))
    client.loop_start()
    opened = {}
    number = 0
    due = time.monotonic()

    def send(number):
        info = client.publish(f"faults/{n}/{number % task['topics']}", f"{qos}/{n}/{number}", qos)
        opened[info.mid] = number

    while not (stopping.is_set() and not opened):
        room = len(opened) < WINDOW and not stopping.is_set()
        wait = max(0.0, due - time.monotonic()) if room else 0.2
        try:
            mid, reason = acknowledged.get(timeout=wait) if wait else acknowledged.get_nowait()
            done = opened.pop(mid, None)
            if done is None:
                report("problem", text=f"packet {mid} was acknowledged and is not open")
            elif reason is not None and reason.is_failure:
                report("refused", payload=f"{qos}/{n}/{done}", reason=reason.value)
                send(done)
            else:
                report("acked", payload=f"{qos}/{n}/{done}")
        except queue.Empty:
            pass
        if room and time.monotonic() >= due:
            report("sent", payload=f"{qos}/{n}/{number}")
            send(number)
            number += 1
            due = time.monotonic() + task["paceMillis"] / 1000
    report("idle")


keep_a_session()
consume()
read()
for line in sys.stdin:
    if line.strip() == "stop":
        stopping.set()
    else:
        for qos in (1, 2):
            threading.Thread(target=publish, args=(task["publisher"] + qos - 1, qos), daemon=True).start()
# Whoever started this is gone.
os._exit(0)
