"""Beamtimes read from their folders: the calls of a consumer without services and without an index (R20)."""

from asapo_work.offline.consumer import OfflineConsumer
from asapo_work.offline.consumer import open as open
from asapo_work.offline.folder import OpenReport

__all__ = ["OfflineConsumer", "OpenReport"]
