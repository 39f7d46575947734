"""A user's hit finder: scores the images of two modules, publishes the scores, selects raw images by them.

The same program for running services and for a folder; it publishes where it was told the address of services. Prints
what it found.
"""

import sys
from datetime import UTC, datetime

import asapo
from asapo_work import Message

PLACE, BEAMTIME, PUBLISH_TO = sys.argv[1:4]


def score(image: Message) -> int:
    """Return the sum of the lit pixels of all modules that are there."""
    return sum(int(part.data[part.data > 2].sum()) for part in image.parts)


def publish(consumer: asapo.Consumer, producer: asapo.Producer | None) -> None:
    """Score the images taken with the shutter open, eight at a time."""
    for images in consumer.stream(
        group="finder",
        stream="scan",
        where="shutter = true",
        batch=8,
        aligned=True,
        dataset_timeout_s=0.5,
        timeout_s=20,
    ):
        print("chunk", [(image.id, score(image), image.complete, image.missing_parts) for image in images])
        if producer is None:
            continue
        for image in images:
            meta = {"score": score(image), "modules": len(image.parts)}
            producer.send(id=image.id, stream="scan", meta=meta, origin=image, acquired_ns=image.acquired_ns)
    if producer is not None:
        producer.finish_stream("scan")


with asapo.open(PLACE, beamtime=BEAMTIME, source="modules") as consumer:
    if PUBLISH_TO:
        with asapo.Producer(PUBLISH_TO, beamtime=BEAMTIME, source="hits") as producer:
            publish(consumer, producer)
    else:
        publish(consumer, None)
    whole = consumer.stream(group="whole", stream="scan", timeout_s=20)
    print("whole", [image.id for image in whole])
    pairs = consumer.stream(group="any two", stream="scan", min_parts=2, timeout_s=20)
    print("at least two", [(image.id, len(image.parts)) for image in pairs])
    for hit in consumer.stream(group="hits", source="hits", stream="scan", where="score > 40", timeout_s=20):
        print("hit", hit.id, hit.meta, hit.origin)
    for page in consumer.query_pages("score > 40", source="hits", stream="scan", page=5, resolve="origin"):
        print("raw", [(image.id, len(image.parts)) for image in page])
    print("range", [hit.id for hit in consumer.messages(source="hits", stream="scan", first=10, last=20)])
    since = datetime.fromtimestamp(1_000_000_010, UTC)
    until, pairs_only = "2001-09-09T01:47:15Z", "modules = 2"
    timed = consumer.messages(source="hits", stream="scan", since=since, until=until, where=pairs_only)
    print("times", [hit.id for hit in timed])
    print(consumer.gaps(stream="scan"))
    print(consumer.gaps(source="hits", stream="scan"))
    print("live", [(image.id, len(image.parts)) for image in consumer.live(stream="scan", timeout_s=20)])
    print("part", [len(image.parts) for image in consumer.get_by_id([6, 7], stream="scan", min_parts=1)])
