"""From a message's place on disk to its bytes and its array: mapped on the same host, fetched elsewhere (R10, R22)."""

from asapo.reader.arrays import array_of, stack_of
from asapo.reader.maps import SegmentMaps
from asapo.reader.payloads import PayloadReader, check_payload

__all__ = ["PayloadReader", "SegmentMaps", "array_of", "check_payload", "stack_of"]
