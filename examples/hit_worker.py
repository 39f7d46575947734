"""A worker: scores each frame by its lit pixels and publishes the score as a new stream.

Start as many as you like; those of one group share the frames:

    python examples/hit_worker.py asapo://127.0.0.1:8400 --beamtime demo --source detector --stream run1
"""

import argparse
import time

import numpy as np

from asapo import Consumer, Producer
from asapo_work import Message, Result, run_stage

THRESHOLD_PHOTONS = 0
"""A pixel is lit when it counted more photons than this."""


def score(messages: list[Message]) -> list[Result]:
    """Count lit pixels and photons of each frame; the frame is a read-only map of what the receiver stored."""
    results = []
    for message in messages:
        taken_ns = time.monotonic_ns()
        frame = message.data
        meta = {
            "lit_pixels": int(np.count_nonzero(frame > THRESHOLD_PHOTONS)),
            "photons": int(frame.sum(dtype=np.int64)),
            "taken_ns": taken_ns,
        }
        results.append(
            Result(meta={**meta, "train_id": message.meta["train_id"], "pulse_id": message.meta["pulse_id"]})
        )
    return results


def main() -> None:
    """Read options, work until the stream is finished, print the count."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else "")
    parser.add_argument("url")
    parser.add_argument("--beamtime", default="demo")
    parser.add_argument("--source", default="detector")
    parser.add_argument("--stream", default="default")
    parser.add_argument("--out", default="hits", help="source of the results")
    args = parser.parse_args()
    with (
        Consumer(args.url, beamtime=args.beamtime, source=args.source) as consumer,
        Producer(args.url, beamtime=args.beamtime, source=args.out) as producer,
    ):
        print("ready", flush=True)
        counts = run_stage(
            consumer, producer, score, group="hit-finder", stream=args.stream, batch=16, follow=None, timeout_s=60.0
        )
    print(counts.taken)


if __name__ == "__main__":
    main()
