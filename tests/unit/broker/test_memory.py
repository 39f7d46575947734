"""The garbage collector of the core's process."""

import gc

from asapo.service import GC_NEW, settle_memory


def test_the_collector_looks_seldom_and_not_at_what_was_there_at_the_start() -> None:
    before = gc.get_threshold()
    try:
        settle_memory()
        assert gc.get_threshold()[0] == GC_NEW > before[0]
        assert gc.get_freeze_count() > 1000
        assert gc.isenabled(), "cycles are found, only later"
    finally:
        gc.unfreeze()
        gc.set_threshold(*before)
