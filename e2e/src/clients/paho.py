"""Runs one task with paho-mqtt: subscribe and report messages, or publish and report acknowledgements.

The task comes as JSON in the first argument; events go to standard output, one JSON object a line.
SIGTERM ends the connection with a DISCONNECT.
"""

import json
import os
import queue
import signal
import sys
import threading

import paho.mqtt.client as mqtt
from paho.mqtt.packettypes import PacketTypes
from paho.mqtt.properties import Properties
from paho.mqtt.subscribeoptions import SubscribeOptions

task = json.loads(sys.argv[1])
v5 = task["v5"]
output = threading.Lock()


def report(event, **fields):
    with output:
        print(json.dumps({"event": event, **fields}, separators=(",", ":")), flush=True)


def user_properties(packet, pairs):
    if not v5 or not pairs:
        return None
    properties = Properties(packet)
    properties.UserProperty = [tuple(pair) for pair in pairs]
    return properties


def on_connect(client, _userdata, _flags, reason, _properties):
    if reason.is_failure:
        print(f"CONNACK: {reason}", file=sys.stderr, flush=True)
        os._exit(3)
    wanted = task.get("subscribe")
    if wanted and v5:
        options = SubscribeOptions(qos=wanted["qos"])
        client.subscribe(
            [(name, options) for name in wanted["filters"]],
            properties=user_properties(PacketTypes.SUBSCRIBE, wanted["properties"]),
        )
    elif wanted:
        client.subscribe([(name, wanted["qos"]) for name in wanted["filters"]])
    connected.set()


def on_subscribe(_client, _userdata, _mid, reasons, _properties):
    report("granted", codes=[reason.value for reason in reasons])


def on_message(client, _userdata, message):
    # Before the report, so that who reads it can rely on the acknowledgement to precede a DISCONNECT.
    client.ack(message.mid, message.qos)
    pairs = getattr(message.properties, "UserProperty", []) if v5 else []
    report(
        "message",
        topic=message.topic,
        payload=message.payload.decode(),
        qos=message.qos,
        retain=message.retain,
        properties=pairs,
    )


def on_publish(_client, _userdata, mid, reason, _properties):
    # Only noted here: the packet id may not even have been returned by publish() yet.
    acknowledged.put((mid, reason))


def on_disconnect(_client, _userdata, _flags, reason, _properties):
    if not ending.is_set():
        print(f"disconnected: {reason}", file=sys.stderr, flush=True)
        if task.get("publish"):
            acknowledged.put(None)
        else:
            os._exit(4)


connected = threading.Event()
ending = threading.Event()
acknowledged = queue.SimpleQueue()

options = {"clean_session": not task["persistent"]} if not v5 else {}
client = mqtt.Client(
    mqtt.CallbackAPIVersion.VERSION2,
    client_id=task["clientId"],
    protocol={3: mqtt.MQTTv31, 4: mqtt.MQTTv311, 5: mqtt.MQTTv5}[task["level"]],
    manual_ack=True,
    transport="websockets" if task["scheme"] in ("ws", "wss") else "tcp",
    **options,
)
client.ws_set_options(path=task["path"])
if task["authority"]:
    client.tls_set(ca_certs=task["authority"], certfile=task["certificate"], keyfile=task["key"])
if task["login"]:
    client.username_pw_set(*task["login"])
client.on_connect = on_connect
client.on_subscribe = on_subscribe
client.on_message = on_message
client.on_publish = on_publish
client.on_disconnect = on_disconnect
if task["will"]:
    client.will_set(task["will"]["topic"], task["will"]["payload"], task["will"]["qos"])
if v5:
    session = Properties(PacketTypes.CONNECT)
    session.SessionExpiryInterval = 3600 if task["persistent"] else 0
    client.connect(task["host"], task["port"], clean_start=not task["persistent"], properties=session)
else:
    client.connect(task["host"], task["port"])


def publish(wanted):
    indexes = {}
    for index, payload in enumerate(wanted["payloads"]):
        properties = user_properties(PacketTypes.PUBLISH, wanted["properties"])
        info = client.publish(wanted["topic"], payload, wanted["qos"], wanted["retain"], properties)
        indexes[info.mid] = index
    for _ in wanted["payloads"]:
        acknowledgement = acknowledged.get()
        if acknowledgement is None:
            os._exit(4)
        mid, reason = acknowledgement
        report("acked", index=indexes[mid], reason=reason.value if reason is not None else None)


def end(*_):
    ending.set()
    client.disconnect()


signal.signal(signal.SIGTERM, end)
client.loop_start()
connected.wait()
if task.get("publish"):
    publish(task["publish"])
    end()
while not ending.wait(timeout=3600):
    pass
client.loop_stop()
