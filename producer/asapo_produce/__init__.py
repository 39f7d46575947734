"""Producer: takes frames from a detector and sends them to the receivers."""

from asapo_produce.handles import BatchHandle, SendHandle
from asapo_produce.producer import Producer, ProducerStats

__all__ = ["BatchHandle", "Producer", "ProducerStats", "SendHandle"]
