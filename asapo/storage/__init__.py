"""Bytes on disk: tiers, segments and journals. Every file write of ours goes through `asapo.storage.files`."""
