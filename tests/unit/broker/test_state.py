"""Registry, sessions, stored cursors: what the core remembers."""

import sqlite3
import threading
from pathlib import Path

import msgpack
import pytest

from asapo.delivery.leases import GroupState
from asapo.delivery.letters import DeadLetter, Explained
from asapo.errors import ConfigError, DamagedFile, IndexUnavailable, QueueFull, RemoteProtocolError, WrongInput
from asapo.models import StreamRef
from asapo.wire.events import Beat, GetLast, Hello, Register
from asapo_broker.registry import Registry
from asapo_broker.saves import Save, Stored
from asapo_broker.sessions import KEPT_BYTES, KEPT_REPLIES, Session, Sessions
from asapo_broker.settings import CoreSettings
from asapo_broker.state_lock import StateLock
from asapo_broker.store import CursorStore

REF = StreamRef("bt/x", "det", "s")
STATE = GroupState(
    True, "hit = 1", 7, ((9, 12), (14, 14)), ((3, 4),), ((13, 2),), 20, 4, 1, min_parts=2,
    dataset_timeout_s=1.5, aligned=8, given_incomplete=((1, 4), (6, 6)), late_parts=3,
)  # fmt: skip
SAVE = Save(STATE)
STORED = Stored(STATE, {})


def receiver(name: str, epoch: int = 1, data: str = "", tiers: tuple[str, ...] = ()) -> Register:
    return Register(name, epoch, [f"tcp://{name}"], data, "boot", {tier: {} for tier in tiers})


# -- registry


def test_a_silent_receiver_is_left_out() -> None:
    registry = Registry(5.0)
    registry.register(receiver("r1", data="d1"), b"p1", 0.0)
    registry.register(receiver("r2"), b"p2", 3.0)
    assert registry.expire(5.0) == []
    assert registry.expire(5.1) == ["r1"]
    assert [one["receiver_id"] for one in registry.listing()] == ["r2"]
    assert registry.data_address("r1", "") == ""


def test_another_receiver_with_the_tier_reads_for_one_that_is_gone() -> None:
    registry = Registry(5.0)
    registry.register(receiver("r1", data="d1", tiers=("t",)), b"p1", 0.0)
    registry.register(receiver("r2", data="d2", tiers=("t",)), b"p2", 0.0)
    assert registry.data_address("r1", "t") == "d1"
    registry.leave(b"p1")
    assert registry.data_address("r1", "t") == "d2"
    assert registry.data_address("r1", "elsewhere") == ""


def test_an_older_life_of_a_receiver_does_not_replace_the_newer() -> None:
    registry = Registry(5.0)
    registry.register(receiver("r1", epoch=2, data="new"), b"p2", 0.0)
    registry.register(receiver("r1", epoch=1, data="old"), b"p1", 1.0)
    registry.leave(b"p1")
    assert registry.data_address("r1", "") == "new"


# -- sessions


def hello(key: bytes = b"k" * 16, role: str = "consumer", beamtime: str = "bt") -> Hello:
    return Hello(role, key, beamtime)


def test_a_session_survives_its_link() -> None:
    sessions = Sessions(10)
    first = sessions.greet(b"p1", hello(), 0.0)
    sessions.forget(b"p1")
    second = sessions.greet(b"p2", hello(), 1.0)
    assert second.session is first.session
    assert second.session is not None
    assert second.session.peer == b"p2"


def test_ending_a_session_forgets_all_its_links() -> None:
    sessions = Sessions(10)
    for name in (b"p1", b"p2"):
        peer = sessions.greet(name, hello(), 0.0)
    sessions.greet(b"other", hello(b"o" * 16), 0.0)
    assert peer.session is not None
    sessions.end(peer.session)
    assert set(sessions.peers) == {b"other"}
    assert len(sessions.by_key) == 1


@pytest.mark.parametrize("wrong", [hello(key=b"short"), hello(role="producer"), hello(role="?"), hello(beamtime="x\0")])
def test_an_unacceptable_hello_is_refused(wrong: Hello) -> None:
    sessions = Sessions(10)
    with pytest.raises((WrongInput, RemoteProtocolError)):
        sessions.greet(b"p", wrong, 0.0)
    assert not sessions.peers
    assert not sessions.by_key


def test_sessions_are_bounded() -> None:
    sessions = Sessions(2)
    for number in range(2):
        sessions.greet(bytes([number]), hello(bytes([number]) * 16), 0.0)
    with pytest.raises(QueueFull):
        sessions.greet(b"x", hello(b"x" * 16), 0.0)
    assert sessions.greet(b"y", hello(b"\1" * 16), 0.0).session is not None, "a known session may come back"


def test_an_event_out_of_turn_is_the_peers_fault() -> None:
    sessions = Sessions(2)
    peer = sessions.greet(b"r", hello(role="receiver"), 0.0)
    with pytest.raises(RemoteProtocolError):
        sessions.heard(peer, GetLast(1, "det", "s"), 0.0)


def test_silence_is_noticed_per_link_and_per_session() -> None:
    sessions = Sessions(2)
    old = sessions.greet(b"p1", hello(), 0.0)
    new = sessions.greet(b"p2", hello(), 8.0)
    assert sessions.silent(11.0, 10.0) == ([], [old])
    sessions.heard(new, Beat(), 12.0)
    assert sessions.silent(22.1, 10.0) == ([new.session], [old, new])


def test_kept_replies_are_bounded() -> None:
    session = Session("bt", b"k" * 16, b"p", 0.0)
    for number in range(10):
        session.keep(number, b"x")
    assert list(session.replies) == list(range(10 - KEPT_REPLIES, 10))
    session.keep(10, bytes(KEPT_BYTES))
    assert list(session.replies) == [10]


# -- stored cursors


def test_a_stored_group_comes_back_as_it_was(tmp_path: Path) -> None:
    store = CursorStore(tmp_path, save_s=0.01)
    assert store.load(REF, "g") is None
    assert not list(tmp_path.iterdir()), "asking creates nothing"
    store.save({(REF, "g"): Save(STATE._replace(floor=1))})
    store.save({(REF, "g"): SAVE})
    assert store.load(REF, "g") == STORED, "what waits to be written counts"
    store.flush()
    assert not store.busy
    assert store.n_saved == 1
    assert store.load(REF, "g") == STORED
    store.stop()
    store.run()
    again = CursorStore(tmp_path, save_s=0.01)
    assert again.load(REF, "g") == STORED
    again.stop()
    again.run()


def test_the_last_states_are_written_at_the_end(tmp_path: Path) -> None:
    store = CursorStore(tmp_path, save_s=60.0)
    thread = threading.Thread(target=store.run)
    thread.start()
    store.save({(REF, "g"): SAVE})
    store.stop()
    thread.join(5.0)
    assert not thread.is_alive()
    again = CursorStore(tmp_path, save_s=1.0)
    assert again.load(REF, "g") == STORED
    again.stop()
    again.run()


def test_states_that_could_not_be_written_wait(tmp_path: Path) -> None:
    tmp_path.joinpath("bt%2Fx").write_text("a file where the folder should be", encoding="utf-8")
    store = CursorStore(tmp_path, save_s=0.01)
    store.stop()  # no pause before the next try
    store.save({(REF, "g"): SAVE})
    store.flush()
    assert (store.n_failed, store.n_saved) == (1, 0)
    assert store.load(REF, "g") == STORED
    tmp_path.joinpath("bt%2Fx").unlink()
    store.run()
    assert store.n_saved == 1


LETTER = DeadLetter(5, 5, 3, "ValueError: 5", "", "w1", 77)


def stored_letters(store: CursorStore, after: int = 0) -> list[DeadLetter] | None:
    return store.letters(REF, "g", after, 10)


@pytest.mark.parametrize("flushed", [True, False])
def test_dead_letters_are_stored_with_their_group_and_one_by_one(tmp_path: Path, flushed: bool) -> None:
    store = CursorStore(tmp_path, save_s=0.01)
    flush = store.flush if flushed else lambda: None
    assert stored_letters(store) is None
    more = LETTER._replace(message_id=9, key=9)
    store.save({(REF, "g"): Save(STATE, {5: LETTER, 9: more})})
    flush()
    assert stored_letters(store) == [LETTER, more]
    assert stored_letters(store, after=5) == [more]
    store.save({(REF, "g"): Save(STATE, {5: Explained("w1", "better", "trace"), 9: Explained("w2", "not mine", "")})})
    flush()
    known = LETTER._replace(reason="better", traceback="trace")
    assert stored_letters(store) == [known, more]
    store.save({(REF, "g"): Save(STATE, {9: None})})
    flush()
    assert stored_letters(store) == [known]
    assert store.load(REF, "g") == Stored(STATE, {5: 5})
    assert [(key, dead) for key, _, dead in store.groups(REF.beamtime, "", "")] == [((REF, "g"), 1 if flushed else 0)]
    store.stop()
    store.run()
    assert stored_letters(again := CursorStore(tmp_path, save_s=0.01)) == [known]
    again.stop()
    again.run()


@pytest.mark.parametrize("flushed", [True, False])
def test_a_deleted_group_leaves_nothing_to_its_successor(tmp_path: Path, flushed: bool) -> None:
    store = CursorStore(tmp_path, save_s=0.01)
    flush = store.flush if flushed else lambda: None
    store.save({(REF, "g"): Save(STATE, {5: LETTER}), (REF, "h"): SAVE})
    store.flush()
    store.save({(REF, "g"): Save(None)})
    flush()
    assert store.load(REF, "g") is None
    assert stored_letters(store) is None
    assert [key[1] for key, _, _ in store.groups(REF.beamtime, REF.source, REF.stream)] == ["h"]
    store.save({(REF, "g"): SAVE})
    flush()
    assert store.load(REF, "g") == STORED
    assert stored_letters(store) == []
    store.flush()
    store.save({(REF, "g"): Save(STATE, {5: LETTER})})
    store.save({(REF, "g"): Save(STATE, anew=True)})
    flush()
    assert stored_letters(store) == []
    store.stop()
    store.run()


def test_a_second_core_takes_the_file_over_and_the_first_writes_no_more(tmp_path: Path) -> None:
    old, new = CursorStore(tmp_path, save_s=0.01), CursorStore(tmp_path, save_s=0.01)
    old.save({(REF, "g"): SAVE})
    old.flush()
    assert new.load(REF, "g") == STORED
    old.save({(REF, "g"): Save(STATE._replace(floor=8))})
    old.flush()
    assert old.n_failed == 0, "who only reads owns nothing"
    new.save({(REF, "g"): Save(STATE._replace(floor=9))})
    new.flush()
    old.stop()
    old.save({(REF, "g"): SAVE})
    old.flush()
    assert (old.n_failed, old.n_saved) == (1, 2)
    found = new.load(REF, "g")
    assert found is not None
    assert found.state.floor == 9
    new.stop()
    for store in (new, old):
        store.run()


def test_a_file_of_version_1_is_brought_up_with_its_dead_letters(tmp_path: Path) -> None:
    folder = tmp_path / "bt%2Fx"
    folder.mkdir()
    connection = sqlite3.connect(folder / "delivery.sqlite")
    connection.execute(
        "CREATE TABLE cursor(source TEXT NOT NULL, stream TEXT NOT NULL, name TEXT NOT NULL, ordered INTEGER NOT NULL, "
        "filter TEXT NOT NULL, floor INTEGER NOT NULL, rest BLOB NOT NULL, PRIMARY KEY(source, stream, name)) "
        "WITHOUT ROWID"
    )
    rest = {"done": [[9, 12], [14, 14]], "acked_ids": [[3, 4]], "attempts": [[13, 2]], "dead": [[5, 3]], "seen_seq": 20,
            "passed": 4, "late": 1}  # fmt: skip
    connection.execute("INSERT INTO cursor VALUES('det', 's', 'g', 1, 'hit = 1', 7, ?)", (msgpack.packb(rest),))
    connection.execute("PRAGMA application_id = 0x41534444")
    connection.execute("PRAGMA user_version = 1")
    connection.commit()
    connection.close()
    store = CursorStore(tmp_path, save_s=0.01)
    older = STATE._replace(min_parts=0, dataset_timeout_s=0.0, aligned=0, given_incomplete=(), late_parts=0)
    assert store.load(REF, "g") == Stored(older, {5: 5})
    (letter,) = stored_letters(store) or []
    assert (letter.attempts, letter.reason.split(",")[0]) == (3, "given up by an earlier version")
    store.stop()
    store.run()


def test_a_foreign_file_is_not_touched(tmp_path: Path) -> None:
    folder = tmp_path / "bt%2Fx"
    folder.mkdir()
    connection = sqlite3.connect(folder / "delivery.sqlite")
    connection.execute("PRAGMA application_id = 77")
    connection.close()
    store = CursorStore(tmp_path, save_s=0.01)
    with pytest.raises(DamagedFile, match="expected a delivery state"):
        store.load(REF, "g")


def test_a_damaged_file_is_an_error_of_ours(tmp_path: Path) -> None:
    folder = tmp_path / "bt%2Fx"
    folder.mkdir()
    folder.joinpath("delivery.sqlite").write_bytes(b"no database" * 1000)
    store = CursorStore(tmp_path, save_s=0.01)
    with pytest.raises(IndexUnavailable, match=r"delivery\.sqlite"):
        store.load(REF, "g")


# -- settings


def test_settings_out_of_range_name_their_key() -> None:
    with pytest.raises(ConfigError, match="poll_s = 0") as caught:
        CoreSettings(state_dir=Path(), poll_s=0)
    assert caught.value.key == "poll_s"


def test_one_core_per_state_folder(tmp_path: Path) -> None:
    lock = StateLock(tmp_path)
    with pytest.raises(ConfigError, match=r"core\.lock"):
        StateLock(tmp_path)
    lock.close()
    StateLock(tmp_path).close()
