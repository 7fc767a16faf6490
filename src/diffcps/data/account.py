"""The account of a loading, in words."""

from __future__ import annotations

from diffcps.readers.names import listed
from diffcps.types import Account


def account_lines(account: Account) -> list[str]:
    """What became of the rows and fields of a source, a line each; nothing of a dataset that was not loaded."""
    if not account.rows:
        return []
    lines = [f"{account.rows:,} rows in the source, {account.kept:,} transitions"]
    lines += [f"dropped {count:,}: {why}" for why, count in account.dropped]
    ends = ", ".join(f"{count:,} {kind}" for kind, count in account.ends)
    lines.append(f"ends of episodes: {ends or 'none'}")
    unread = f"; left unread: {listed(account.ignored)}" if account.ignored else ""
    lines.append(f"read: {', '.join(account.read)}{unread}")
    return lines + list(account.notes)
