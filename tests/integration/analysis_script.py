"""A user's analysis: the same program for running services and for a folder. Prints what it found."""

import sys

import asapo
from asapo.errors import Gap, PartialDataset, StreamFinished

with asapo.open(sys.argv[1], beamtime=sys.argv[2], source="det") as consumer:
    print(consumer.beamtime_meta(), consumer.stream_meta(stream="run1"), consumer.sources())
    for msg in consumer.stream(group="hits", stream="run1", timeout_s=20):
        print(msg.stream, msg.id, msg.meta, msg.data.dtype, int(msg.data.sum()), msg.acquired_ns, msg.attempt, msg.late)
    for batch in consumer.stream(group="bright", stream="run1", where="n > 20", batch=4, follow=None, timeout_s=20):
        print([(msg.id, bytes(msg.raw[:4])) for msg in batch])
    failed = False
    for msg in consumer.stream(group="retry", stream="run2", ack="manual", timeout_s=20):
        if msg.id == 2 and not failed:
            failed = True
            consumer.nack(msg, group="retry", delay_s=0.2)
        else:
            consumer.acknowledge(msg, group="retry")
            print("done", msg.id, msg.attempt)
    for msg in consumer.stream(group="modules", stream="modules", timeout_s=20):
        print(msg.id, [(part.substream, int(part.data[0])) for part in msg.parts])
    print([msg.id for msg in consumer.query("n > 5 AND kind = 'b' ORDER BY n DESC LIMIT 5", stream="run1")])
    print([msg.id for msg in consumer.query("n < 3", stream="run1", source="hits", resolve="origin")])
    print(consumer.get_last(stream="run1").id, [msg.id for msg in consumer.get_by_id([9, 1], stream="run1")])
    for stream, message_id in (("run1", 4), ("run1", 1000), ("modules", 3)):
        try:
            consumer.get_by_id(message_id, stream=stream)
        except (Gap, PartialDataset, StreamFinished) as error:
            print(type(error).__name__, error.fields)
    for entry in consumer.streams(source=""):
        print({key: value for key, value in entry.items() if key != "number"})
