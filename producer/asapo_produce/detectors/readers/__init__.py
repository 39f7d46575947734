"""Recorded data as items to send: HDF5 and NeXus, European XFEL runs, image files, recorded streams."""

from __future__ import annotations

from asapo_produce.detectors.readers.base import Item, Recording, StreamEnd, StreamMeta
from asapo_produce.detectors.readers.choose import FORMATS, ReadSettings, open_recordings

__all__ = ["FORMATS", "Item", "ReadSettings", "Recording", "StreamEnd", "StreamMeta", "open_recordings"]
