"""What disks and people do to a store at rest, and whether `verify` tells of it."""

from __future__ import annotations

from typing import TYPE_CHECKING

from pipelines.errors import StorageError
from pipelines.layout import split_commit_name, split_data_name
from pipelines.storage.store import Store
from pipelines.table.commits import find_commit, last_repair
from pipelines.table.verify import verify
from tests.simulation import cached
from tests.simulation.network import ROOT, Stored

if TYPE_CHECKING:
    from tests.simulation.life import Life


def damage(life: Life) -> None:
    """Lose one committed file, or spoil it, or a commit: what disks and people do."""
    objects, draw = life.network.objects, life.world.random
    names = [path for path in sorted(objects.held) if "/commits/" in path or path.endswith(".parquet")]
    names = [path for path in names if "/_runs/" not in path or "/commits/" in path]
    if not names:
        return
    path, how = draw.choice(names), draw.choice(("gone", "gone", "cut short"))
    life.world.note(f"DAMAGE: {path} is {how}")
    life.wounds.append(path)
    if how == "gone" and "/commits/" not in path:
        objects.delete(path, life.world.now)
    else:
        held = objects.held[path]
        objects.held[path] = Stored(held.data[: len(held.data) // 2], held.at)


def flip(life: Life) -> None:
    """Let a bit flip at rest, in a data file or a commit: its size stays, and what it holds may still be read."""
    objects, draw = life.network.objects, life.world.random
    files = [path for path in sorted(objects.held) if path.endswith(".parquet") and "/_runs/" not in path]
    commits = [path for path in sorted(objects.held) if "/commits/" in path]
    names = [path for path in (commits if draw.random() < 0.2 else files) if path not in life.flipped]
    if not names:
        return
    path = draw.choice(names)
    held = objects.held[path]
    place, is_seen = draw.randrange(8 * len(held.data)), draw.random() < 0.4
    data = cached.flip(held.data, place, is_seen=is_seen or path in commits)
    objects.held[path] = Stored(data, held.at)
    life.world.note(f"DAMAGE: bit {place} of {path} flips")
    life.wounds.append(path)
    life.flipped[path] = data


def check_named(life: Life) -> None:
    """Of every bit that has flipped in what still holds `verify` has to tell."""
    held, told = life.network.objects.held, dict[str, str]()
    for path, data in life.flipped.items():
        name = path.removeprefix(f"{ROOT}/")
        if path not in held or held[path].data != data or not _holds(life.store, name):
            continue
        run_id = name.split("/")[1]
        if run_id not in told:
            told[run_id] = "\n".join(verify(life.store, run_id).problems)
        assert name in told[run_id], f"a bit of {name} has flipped, and verify does not tell: {told[run_id]}"
        life.num_named += 1


def _holds(store: Store, name: str) -> bool:
    """Whether an object is the commit that holds for its shard, or a file that this one names."""
    found = split_commit_name(name)
    if found is not None:
        return last_repair(store, name.split("/")[1], found[0]) == found[1]
    split = split_data_name(name)
    assert split is not None, name
    try:
        commit = find_commit(store, name.split("/")[1], split[0])
    except StorageError:
        return False  # which is damaged itself
    return commit is not None and name in [file.name for file in commit.files()]
