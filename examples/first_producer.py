"""A detector: sends 100 simulated frames, then ends the stream."""

import sys

import numpy as np

from asapo import Producer

url = sys.argv[1] if len(sys.argv) > 1 else "asapo://127.0.0.1:8400"
rng = np.random.default_rng(seed=1)

with Producer(url, beamtime="bt1", source="detector") as producer:
    for number in range(1, 101):
        frame = rng.poisson(0.02, size=(512, 512)).astype(np.uint16)
        meta = {"angle_deg": 0.5 * number, "exposure_s": 0.01}
        producer.send(frame, id=number, stream="scan1", meta=meta)
    producer.finish_stream("scan1")
    print(producer.stats.acked, "of", producer.stats.sent, "frames stored")
