"""`asapo.open`: the calls of a consumer on a folder, or on services when it is given an address."""

from __future__ import annotations

import os
import time
from pathlib import Path
from typing import Any, overload

from asapo.errors import WrongInput
from asapo_work.client import TIMEOUT_S, BaseClient
from asapo_work.consumer import Consumer
from asapo_work.offline.answers import Answers, Clock
from asapo_work.offline.channel import FolderChannel
from asapo_work.offline.folder import Folder, OpenReport
from asapo_work.offline.payloads import FolderPayloads

Place = str | os.PathLike[str]


class _FolderClient(BaseClient):
    """What the calls of an offline consumer need."""

    channel: FolderChannel
    payloads: FolderPayloads

    def __init__(self, folder: Folder, *, source: str, timeout_s: float, verify: bool) -> None:
        super().__init__(beamtime=folder.beamtime, source=source, timeout_s=timeout_s)
        clock = Clock(time.monotonic)
        self.clock, self.pause = clock.now_s, clock.skip
        self.channel = FolderChannel(Answers(folder, clock))
        self.payloads = FolderPayloads(verify=verify)
        self._folder = folder

    def keep_leases(self, lease_s: float) -> None:
        """Leases end never: nobody else reads this folder by these groups."""

    def close(self) -> None:
        """End everything; payloads that were read stay readable."""
        self.channel.close()
        self.payloads.close()
        self._folder.close()


class OfflineConsumer(Consumer):
    """Reads the streams of a beamtime from its folders; needs no service and no index.

    It has the calls of `Consumer`. Groups live in this object: they begin anew with every one. Nothing arrives, so no
    call waits: where a consumer would wait until its time is over, this one answers at once as if it were. Delays of
    nacks pass in the same way.

    Parameters
    ----------
    folders : paths
        The folder of the beamtime; of a beamtime that lies on several tiers, one on each.
    beamtime : str
        Checked when given.
    source : str
        Data source of all calls that name none.
    timeout_s : float, unit seconds
        As for `Consumer`.
    verify : bool
        Compare the checksum of every payload when it is read.

    Raises
    ------
    WrongInput
        If there is no beamtime in the folder, or another one.
    StorageError, UnsupportedVersion
        If files cannot be read, or are of a newer program.
    """

    def __init__(
        self, *folders: Place, beamtime: str = "", source: str = "", timeout_s: float = TIMEOUT_S, verify: bool = False
    ) -> None:
        if not folders:
            raise WrongInput("no folder named: expected the folder of a beamtime")
        folder = Folder([Path(os.path.abspath(one)) for one in folders], beamtime)
        client = _FolderClient(folder, source=source, timeout_s=timeout_s, verify=verify)
        self.report: OpenReport = folder.report
        """How the streams are read, and what is damaged; of each stream once it was used."""
        self._begin(client, " ".join([os.fspath(one) for one in folders]))


@overload
def open(
    place: os.PathLike[str], *more: Place, beamtime: str = ..., source: str = ..., timeout_s: float = ...,
    verify: bool = ..., **settings: Any,
) -> OfflineConsumer: ...  # fmt: skip
@overload
def open(
    place: str, *more: Place, beamtime: str = ..., source: str = ..., timeout_s: float = ..., verify: bool = ...,
    **settings: Any,
) -> Consumer: ...  # fmt: skip
def open(
    place: Place,
    *more: Place,
    beamtime: str = "",
    source: str = "",
    timeout_s: float = TIMEOUT_S,
    verify: bool = False,
    **settings: Any,
) -> Consumer:
    """Open a beamtime for reading: from its folder, or from running services, by the same script.

    Parameters
    ----------
    place : str or path
        Folder of a beamtime, or the address of a broker (``asapo://host:port``).
    more : str or path
        Folders of the same beamtime on other tiers.
    beamtime, source : str
        As for `Consumer`; a folder tells the beamtime itself.
    timeout_s : float, unit seconds
        As for `Consumer`.
    verify : bool
        Compare the checksum of every payload when it is read.
    settings
        Further settings of `Consumer` (`token`, `name`, `access`); of no meaning for a folder.

    Returns
    -------
    OfflineConsumer or Consumer
        For a folder or an address.

    Raises
    ------
    WrongInput
        If there is no beamtime in the folder, or another one than asked for.

    Examples
    --------
    >>> import asapo
    >>> with asapo.open("/data/beamline/bt1", source="pilatus") as consumer:  # doctest: +SKIP
    ...     for msg in consumer.stream(group="hits"):
    ...         print(msg.id, msg.data.mean())
    """
    if "://" in os.fspath(place):
        if more:
            raise WrongInput(f"{len(more)} places beside the address {place}: expected one address, or folders only")
        return Consumer(
            os.fspath(place), beamtime=beamtime, source=source, timeout_s=timeout_s, verify=verify, **settings
        )
    if unknown := settings.keys() - {"token", "name", "access"}:
        raise WrongInput(f"setting {min(unknown)!r}: expected one of Consumer's")
    return OfflineConsumer(place, *more, beamtime=beamtime, source=source, timeout_s=timeout_s, verify=verify)
