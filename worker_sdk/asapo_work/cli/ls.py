"""`asapo ls`: what there is."""

from __future__ import annotations

import argparse
import json
from collections.abc import Iterable, Sequence
from typing import Any

from asapo.errors import WrongInput
from asapo_work.cli.place import (
    Place,
    Site,
    add_common_arguments,
    named_once,
    parse_path,
    shown_name,
    take_url,
    unknown,
)
from asapo_work.cli.show import note, printable, say, say_json, size_text, table

Entry = dict[str, Any]


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the options."""
    add_common_arguments(parser, "BEAMTIME[/SOURCE[/STREAM]]", "what to list; all beamtimes when left out")
    parser.add_argument("-r", "--recursive", action="store_true", help="list every stream below")


def run(args: argparse.Namespace) -> int:
    """List beamtimes, or the sources of one, or the streams of one, or tell all about one stream."""
    site = Site(take_url(args), args.timeout_s)
    try:
        place = _place(args)
        entries = _entries(site, place, recursive=args.recursive)
    finally:
        site.close()
    if args.json:
        for entry in entries:
            say_json(entry)
    elif place.stream:
        _show_stream(entries[0])
    else:
        _show_table(entries, place, site.url)
    return 0


def _place(args: argparse.Namespace) -> Place:
    if len(args.words) > 1:
        raise WrongInput(f"{' '.join(args.words)}: expected one path, BEAMTIME/SOURCE/STREAM or its beginning")
    names = [*(parse_path(args.words[0]) if args.words else []), "", "", ""]
    place = Place(*named_once(args, *names[:3]))
    if (place.source and not place.beamtime) or (place.stream and not place.source):
        raise WrongInput("a stream needs its source and a source its beamtime: expected BEAMTIME/SOURCE/STREAM")
    return place


def _entries(site: Site, place: Place, *, recursive: bool) -> list[Entry]:
    beamtimes = site.beamtimes()
    if not place.beamtime:
        found = [(beamtime, _streams(site, Place(beamtime))) for beamtime in beamtimes]
        if recursive:
            return [entry for _, streams in found for entry in streams]
        return [_beamtime(beamtime, streams) for beamtime, streams in found]
    if place.beamtime not in beamtimes:
        raise unknown(site, place)
    streams = _streams(site, place)
    if place.source and not streams:
        raise unknown(site, place)
    if place.stream:
        streams = [entry for entry in streams if entry["stream"] == place.stream]
        if not streams:
            raise unknown(site, place)
    return streams if place.source or recursive else _sources(streams)


def _streams(site: Site, place: Place) -> list[Entry]:
    with site.consumer(Place(place.beamtime)) as consumer:
        streams = consumer.streams(source=place.source)
    return [_stream(place.beamtime, info) for info in streams]


def _stream(beamtime: str, info: Entry) -> Entry:
    facts = {name: info[name] for name in ("source", "stream", "n_messages", "n_bytes", "id_max")}
    more = {name: info[name] for name in ("finished", "last_id", "next_stream", "meta")}
    return {"kind": "stream", "beamtime": beamtime, **facts, "watermark": info["closed_below"], **more}


def _sums(streams: Sequence[Entry]) -> Entry:
    return {"n_streams": len(streams), **{name: sum(s[name] for s in streams) for name in ("n_messages", "n_bytes")}}


def _beamtime(beamtime: str, streams: Sequence[Entry]) -> Entry:
    n_sources = len({entry["source"] for entry in streams})
    return {"kind": "beamtime", "beamtime": beamtime, "n_sources": n_sources, **_sums(streams)}


def _sources(streams: Iterable[Entry]) -> list[Entry]:
    by_source: dict[str, list[Entry]] = {}
    for entry in streams:
        by_source.setdefault(entry["source"], []).append(entry)
    return [
        {"kind": "source", "beamtime": found[0]["beamtime"], "source": source, **_sums(found)}
        for source, found in by_source.items()
    ]


def _state(entry: Entry) -> str:
    if not entry["finished"]:
        return "open"
    return f"finished, next {shown_name(entry['next_stream'])}" if entry["next_stream"] else "finished"


def _show_table(entries: Sequence[Entry], place: Place, url: str) -> None:
    if not entries:
        note(f"nothing in {place} yet" if place.beamtime else f"no beamtime at {url} yet")
        return
    kind = entries[0]["kind"]
    if kind == "stream":
        rows = [
            [str(Place(e["beamtime"], e["source"], e["stream"])), _state(e), str(e["n_messages"]),
             size_text(e["n_bytes"]), str(e["id_max"]), str(e["watermark"])] for e in entries
        ]  # fmt: skip
        lines = table(["STREAM", "STATE", "MESSAGES", "SIZE", "HIGHEST ID", "WATERMARK"], rows, left=2)
    else:
        counts = ["n_sources"] * (kind == "beamtime") + ["n_streams", "n_messages"]
        rows = [
            [
                str(Place(e["beamtime"], e.get("source", ""))),
                *(str(e[name]) for name in counts),
                size_text(e["n_bytes"]),
            ]
            for e in entries
        ]
        lines = table([kind.upper(), *(name[2:].upper() for name in counts), "SIZE"], rows)
    for line in lines:
        say(line)


def _show_stream(entry: Entry) -> None:
    facts = {
        "stream": str(Place(entry["beamtime"], entry["source"], entry["stream"])),
        "state": _state(entry),
        "messages": str(entry["n_messages"]),
        "size": f"{size_text(entry['n_bytes'])} ({entry['n_bytes']} bytes)",
        "highest id": str(entry["id_max"]),
        "watermark": f"{entry['watermark']} (every id below is there or will never come)",
        "metadata": printable(json.dumps(entry["meta"], ensure_ascii=False)),
    }
    for name, value in facts.items():
        say(f"{name:<10}  {value}")
