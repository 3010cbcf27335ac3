"""`syncer diff`: what differs between two snapshots, or between a snapshot and now."""

import json
from pathlib import Path
from typing import Any

import click

from syncer.cli.paths import untouched


@click.command("diff", short_help="Show what differs between two states.")
@click.argument("old", metavar="A")
@click.argument("words", nargs=-1, metavar="[B] [PATH]")
@click.option("--data", type=untouched, metavar="DATA", help="Of this DATA; PATH is from its root on.")
@click.option("--stat", "only_stat", is_flag=True, help="Show only how much differs.")
@click.option("--json", "as_json", is_flag=True, help="Print a JSON object a line; its keys are stable.")
def command(old: str, words: tuple[str, ...], data: Path | None, only_stat: bool, as_json: bool) -> None:
    """Show what differs between the snapshots A and B, or between A and now, at PATH or everywhere.

    A and B are snapshots as you would name them: a label, `latest`, the name of a directory in .snapshots, the first
    digits of an id, or a moment (`yesterday 14:00`, `2h ago`, `monday`, `2026-11-20`), which means the newest snapshot
    at or before it. B may be `now`. A single word behind A is B if it names a snapshot, and PATH otherwise; `./WORD` is
    always PATH.

    Lines begin with + (added), - (removed), M (modified; what of it is in brackets) or R (renamed), in the order of the
    paths. Directories end with a slash.

    \b
    Examples:
      syncer diff yesterday
      syncer diff 'monday 9:00' now photos/2019
      syncer diff before-cleanup latest --stat --data data
    """
    from syncer.cli.travel import ask, place, said
    from syncer.errors import UsageError

    if len(words) > 2:
        raise UsageError(f"{len(words) + 1} words make no comparison", hint="give A, then B, then PATH")
    question: dict[str, object] = {"old": said(old), "only_stat": only_stat}
    if len(words) == 2:
        question["new"] = said(words[0])
        found, question["path"] = place(words[1], data)
    elif words and words[0].startswith(("./", "../", "/")):
        found, question["path"] = place(words[0], data)
    elif words:
        question["new"] = said(words[0])
        found, question["path_unless"] = _place_or_none(words[0], data)
    else:
        found, _ = place(None, data)
    _show(ask(found, "diff", question), only_stat=only_stat, as_json=as_json)


def _place_or_none(word: str, data: Path | None) -> tuple[Path, str | None]:
    """As `place`, but a word that is no path inside a mount is none."""
    from syncer.cli.travel import place
    from syncer.errors import NotMounted

    try:
        return place(word, data)
    except NotMounted:
        return place(None, data)[0], None


def _show(answer: dict[str, Any], *, only_stat: bool, as_json: bool) -> None:
    if as_json:
        for item in [answer["stat"]] if only_stat else answer["items"]:
            click.echo(json.dumps(item))
        return
    if not only_stat:
        for item in answer["items"]:
            click.echo(line(item))
    else:
        click.echo(summary(answer["stat"]))


def line(change: dict[str, Any]) -> str:
    """A difference as a person reads it."""
    from syncer.cli.text import printable

    slash = "/" if change["type"] == "directory" else ""
    path = printable(change["path"] or ".") + slash
    aspects = f"  ({', '.join(change['aspects'])})" if change["aspects"] else ""
    if change["change"] == "renamed":
        return f"R {printable(change['old_path'])}{slash} -> {path}{aspects}"
    return f"{ {'added': '+', 'removed': '-', 'modified': 'M'}[change['change']] } {path}{aspects}"


def summary(stat: dict[str, int]) -> str:
    from syncer.cli.text import size

    counts = ", ".join(f"{stat[kind]:,} {kind}" for kind in ("added", "removed", "modified", "renamed"))
    return f"{counts}; {size(stat['more_bytes'])} more, {size(stat['fewer_bytes'])} less"
