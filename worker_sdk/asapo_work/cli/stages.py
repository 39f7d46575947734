"""`asapo stages`: what the analysis stages that are connected did so far."""

from __future__ import annotations

import argparse
from typing import Any

from asapo.errors import WrongInput
from asapo_work.cli.place import Place, Site, add_common_arguments, parse_path, take_url
from asapo_work.cli.show import note, printable, say, say_json, size_text, table


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the options."""
    add_common_arguments(parser, "BEAMTIME", "stages of this beamtime only; of all when left out")


def run(args: argparse.Namespace) -> int:
    """Show one line for each stage."""
    site = Site(take_url(args), args.timeout_s)
    try:
        if len(args.words) > 1:
            raise WrongInput(f"{' '.join(args.words)}: expected one beamtime")
        beamtime = parse_path(args.words[0])[0] if args.words else args.beamtime
        site.listing()  # says at once when there are no services
        stages = [one for one in site.stages() if beamtime in ("", one["beamtime"])]
    finally:
        site.close()
    if args.json:
        for one in stages:
            say_json(one)
    elif not stages:
        note(f"no stage of {beamtime} is connected" if beamtime else f"no stage is connected to {site.url}")
    else:
        head = ["STREAM", "GROUP", "STAGE", "MESSAGES", "PER S", "BYTES PER S", "IN USER CODE", "PUBLISHED", "ERRORS"]
        for line in table(head, [_row(one) for one in stages], left=3):
            say(line)
    return 0


def _row(one: dict[str, Any]) -> list[str]:
    wall_s = one["wall_s"] or float("inf")
    return [
        str(Place(one["beamtime"], one["source"], one["stream"])),
        printable(one["group"]),
        printable(one["name"] or one["session"]) + ("" if one["running"] else " (ended)"),
        str(one["taken"]),
        f"{one['taken'] / wall_s:.1f}",
        size_text(int(one["bytes"] / wall_s)),
        f"{100 * one['user_s'] / wall_s:.0f} %",
        str(one["published"]),
        str(one["errors"]),
    ]
