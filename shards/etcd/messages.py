"""etcd's messages as the store's contract has them. [pure]"""

from shards.etcd.proto import kv_pb2
from shards.kv import Event, KeyValue


def key_value(kv: kv_pb2.KeyValue) -> KeyValue:
    return KeyValue(kv.key.decode(), kv.value, kv.create_revision, kv.mod_revision, kv.lease)


def event_of(event: kv_pb2.Event) -> Event:
    prev = key_value(event.prev_kv) if event.HasField("prev_kv") else None
    if event.type == kv_pb2.Event.DELETE:
        return Event(event.kv.key.decode(), None, prev)
    return Event(event.kv.key.decode(), key_value(event.kv), prev)
