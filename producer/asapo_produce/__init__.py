"""Producer: takes frames from a detector and sends them to the receivers."""

from asapo_produce.handles import BatchHandle, ProducerStats, SendHandle
from asapo_produce.producer import Producer

__all__ = ["BatchHandle", "Producer", "ProducerStats", "SendHandle"]
