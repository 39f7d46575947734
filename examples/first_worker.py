"""A worker: reads each frame once, then asks for the frames taken at the largest angles."""

import sys

import numpy as np

from asapo import Consumer

url = sys.argv[1] if len(sys.argv) > 1 else "asapo://127.0.0.1:8400"

with Consumer(url, beamtime="bt1", source="detector") as consumer:
    frames = lit = 0
    for msg in consumer.stream(group="counter", stream="scan1"):
        frames += 1
        lit += int(np.count_nonzero(msg.data))
    print(frames, "frames,", lit, "lit pixels")
    best = consumer.query("angle_deg > 49 ORDER BY angle_deg DESC", stream="scan1")
    print("largest angles at messages", [msg.id for msg in best])
