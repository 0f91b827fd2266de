"""The commit protocol as a small model of which every state is visited: what a sequence of luck and bad luck can do.

Two drivers label two shards; a vacuum and a reader come at any time; what a process sends may land later than it waits
for. An attempt's two files are one here, and a commit is the attempt that it names. As in the product: losers alone are
removed, vacuum takes what is uncommitted only if a day has passed over it, a committer proves its file and writes it
again, and a driver labels again what is committed and gone.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import NamedTuple

ATTEMPTS = 2  # of each driver at each shard
VACUUM = 2  # its number among the workers
SCAN, WRITE, CREATE, PROVE, REWRITE, DISCARD, SWEEP, DELETE, ENDED = range(9)

File = tuple[int, int]  # shard, attempt
Message = tuple[str, int, int, int]  # write, create or delete; shard, attempt, which commit


class Worker(NamedTuple):
    """A driver, what is left of one of its attempts once it has given that up, or a vacuum.

    Attributes:
        number: of the driver; 2 for the vacuum.
        phase: what it does next.
        shard: where it is.
        attempt: how many attempts at this shard it has begun.
        due: for each shard which commit is due; -1 for none.
        doomed: files that it has found to be nobody's, and is about to delete.
        is_alone: whether it is an attempt that nobody waits for any more.
    """

    number: int
    phase: int = SCAN
    shard: int = 0
    attempt: int = 0
    due: tuple[int, ...] = ()
    doomed: tuple[File, ...] = ()
    is_alone: bool = False


class State(NamedTuple):
    """Everything.

    Attributes:
        commits: for each shard the attempts that its commits name, the first and its repairs; the last holds.
        files: that are there.
        old: those over which a day has passed.
        has_aged: whether that day has passed.
        on_way: requests that nobody waits for.
        workers: in no order.
        excused: shards of which a vacuum has taken a file for abandoned, rightly: until it has found them whole, a run
            may find that a commit names a file that is gone, and mends it.
        faults: how many may still happen.
    """

    commits: tuple[tuple[int, ...], ...] = ((), ())
    files: frozenset[File] = frozenset()
    old: frozenset[File] = frozenset()
    has_aged: bool = False
    on_way: tuple[Message, ...] = ()
    workers: tuple[Worker, ...] = (Worker(0), Worker(1), Worker(VACUUM, SWEEP))
    excused: frozenset[int] = frozenset()
    faults: int = 2


class Violation(AssertionError):
    """A promise that the protocol does not keep, with the steps that lead there."""


@dataclass(frozen=True)
class Rules:
    """What may be switched off, to see that it is needed.

    Attributes:
        losers_only: a driver removes nothing of its own attempts that have not committed.
        proves: a committer looks for its file after its commit, and writes it again.
        grace: a vacuum leaves what is uncommitted and young.
        heals: a driver labels again what is committed and gone.
    """

    losers_only: bool = True
    proves: bool = True
    grace: bool = True
    heals: bool = True


Step = tuple[str, State]


def steps(state: State, rules: Rules) -> Iterator[Step]:
    """Yield all that can happen next."""
    for place, worker in enumerate(state.workers):
        if worker == Worker(1) and Worker(0) in state.workers:
            continue  # they are alike: the one that begins first is driver 0
        others = state.workers[:place] + state.workers[place + 1 :]
        yield from _work(state, worker, others, rules)
    for place, message in enumerate(state.on_way):
        rest = state._replace(on_way=state.on_way[:place] + state.on_way[place + 1 :])
        yield f"{message} lands", _plain(_land(rest, message))
    # Whether it passes before a vacuum or in the midst of it makes no difference to what that has looked at.
    if not state.has_aged and state.files and Worker(VACUUM, SWEEP) in state.workers:
        yield "a day passes", state._replace(has_aged=True, old=state.files)


def _work(state: State, worker: Worker, others: tuple[Worker, ...], rules: Rules) -> Iterator[Step]:
    """Yield what a worker may do, or may befall it."""

    def then(after: Worker | None, now: State = state) -> State:
        goes_on = after is not None and after.phase != ENDED
        return _plain(now._replace(workers=tuple(sorted((*others, after))) if goes_on else others))

    name = "vacuum" if worker.number == VACUUM else f"driver {worker.number}"
    name += " (given up)" if worker.is_alone else ""
    if state.faults:
        yield f"{name} dies", then(None, state._replace(faults=state.faults - 1))
    if worker.phase == SCAN:
        for what, due in _scans(state, rules):
            now = state if what == "scans" else state._replace(faults=state.faults - 1)
            if what == "scans" or state.faults:
                yield f"{name} {what}: {due}", then(_next_shard(worker._replace(due=due, shard=-1)), now)
    elif worker.phase == SWEEP:
        yield from _sweeps(state, worker, name, then, rules)
    else:
        yield from _requests(state, worker, name, then, rules)


def _scans(state: State, rules: Rules) -> Iterator[tuple[str, tuple[int, ...]]]:
    """Yield what a driver finds to do: what it does not find in a listing it asks for by name, but for commits."""
    due = tuple(_due(state, shard, rules) for shard in range(len(state.commits)))
    yield "scans", due
    for shard, held in enumerate(state.commits):
        if held and due[shard] != 0:
            yield "scans a late listing", (*due[:shard], 0, *due[shard + 1 :])


def _due(state: State, shard: int, rules: Rules) -> int:
    commits = state.commits[shard]
    if not commits:
        return 0
    return len(commits) if rules.heals and (shard, commits[-1]) not in state.files else -1


def _next_shard(worker: Worker) -> Worker:
    for shard in range(worker.shard + 1, len(worker.due)):
        if worker.due[shard] >= 0:
            return worker._replace(phase=WRITE, shard=shard, attempt=0)
    return worker._replace(phase=SWEEP, shard=0, attempt=0, due=(), doomed=())


def _again(worker: Worker) -> Worker:
    """Return a driver whose attempt has failed: it tries again, or goes on."""
    if worker.is_alone:
        return worker._replace(phase=ENDED)
    if worker.attempt + 1 < ATTEMPTS:
        return worker._replace(phase=WRITE, attempt=worker.attempt + 1)
    return _next_shard(worker)


def _done(worker: Worker) -> Worker:
    return worker._replace(phase=ENDED) if worker.is_alone else _next_shard(worker)


def _requests(state: State, worker: Worker, name: str, then: object, rules: Rules) -> Iterator[Step]:
    """Yield how a request of an attempt may end: as it should, not waited for, or with its attempt given up."""
    assert callable(then)
    shard, attempt = worker.shard, worker.number * ATTEMPTS + worker.attempt
    k = worker.due[shard] if worker.due else 0
    phase, sent = worker.phase, f"{name}, attempt {attempt} at {shard}:"
    if phase in (WRITE, REWRITE):
        message: Message = ("write", shard, attempt, k)
        ok = worker._replace(phase=CREATE) if phase == WRITE else _done(worker)
        failed = worker._replace(phase=DISCARD) if phase == WRITE else _again(worker)
    elif phase == CREATE:
        message = ("create", shard, attempt, k)
        is_ours = len(state.commits[shard]) == k
        proved = worker._replace(phase=PROVE) if rules.proves else _done(worker)
        ok = proved if is_ours else worker._replace(phase=DISCARD)
        failed = _again(worker)
    elif phase == PROVE:
        is_there = (shard, attempt) in state.files
        yield f"{sent} proves", then(_done(worker) if is_there else worker._replace(phase=REWRITE))
        return
    elif phase == DISCARD:
        message = ("delete", shard, attempt, k)
        lost = len(state.commits[shard]) > k
        ok = failed = _done(worker) if lost else _again(worker)
    else:
        message = ("delete", *worker.doomed[0], 0)
        rest = worker.doomed[1:]
        ok = failed = worker._replace(doomed=rest, phase=DELETE if rest else SWEEP, shard=shard + (not rest))
        sent = f"{name}:"
    yield f"{sent} {message[0]}", then(ok, _land(state, message))
    if not state.faults:
        return
    bad = state._replace(faults=state.faults - 1)
    yield f"{sent} {message[0]} is late", then(failed, _send(bad, message))
    yield f"{sent} {message[0]}, and again later", then(ok, _send(_land(bad, message), message))
    yield f"{sent} {message[0]} is on its way, and it dies", then(None, _send(bad, message))
    if phase in (WRITE, CREATE) and not worker.is_alone:
        alone = worker._replace(is_alone=True)
        left = then(_next_shard(worker), bad)
        yield f"{sent} is given up, and goes on", left._replace(workers=tuple(sorted((*left.workers, alone))))


def _plain(state: State) -> State:
    """Leave out of a state what makes no difference any more."""
    if not any(worker.number == VACUUM for worker in state.workers) and state.old:
        state = state._replace(has_aged=True, old=frozenset())
    if any(verb == "create" and len(state.commits[shard]) > k for verb, shard, _, k in state.on_way):
        left = [one for one in state.on_way if one[0] != "create" or len(state.commits[one[1]]) <= one[3]]
        state = state._replace(on_way=tuple(left))
    return state


def _send(state: State, message: Message) -> State:
    return state._replace(on_way=tuple(sorted((*state.on_way, message))))


def _land(state: State, message: Message) -> State:
    """Return what a request does when it takes effect."""
    verb, shard, attempt, k = message
    file = shard, attempt
    if verb == "write":
        return state._replace(files=state.files | {file}, old=state.old - {file})
    if verb == "delete":
        return state._replace(files=state.files - {file}, old=state.old - {file})
    if len(state.commits[shard]) != k:
        return state
    commits = tuple((*held, attempt) if one == shard else held for one, held in enumerate(state.commits))
    return state._replace(commits=commits)


def _sweeps(state: State, worker: Worker, name: str, then: object, rules: Rules) -> Iterator[Step]:
    """Yield how a driver at its end, or a vacuum, finds what is nobody's at one shard."""
    assert callable(then)
    shard = worker.shard
    if shard == len(state.commits):
        yield f"{name} ends", then(None)
        return
    held, files = state.commits[shard], sorted(file for file in state.files if file[0] == shard)
    is_whole = bool(held) and (shard, held[-1]) in state.files
    unnamed = [file for file in files if not held or file[1] != held[-1]]
    if is_whole:
        doomed, excused = tuple(unnamed), state.excused
    elif worker.number == VACUUM:
        doomed = tuple(file for file in unnamed if file in state.old or not rules.grace)
        excused = state.excused | {shard} if any(file in state.old for file in doomed) else state.excused
    else:
        own = range(worker.number * ATTEMPTS, (worker.number + 1) * ATTEMPTS)
        doomed = () if rules.losers_only else tuple(file for file in unnamed if file[1] in own)
        excused = state.excused
    after = worker._replace(doomed=doomed, phase=DELETE if doomed else SWEEP, shard=shard + (not doomed))
    yield f"{name} takes {list(doomed)} for leftovers", then(after, state._replace(excused=excused))


def problems(state: State, rules: Rules) -> Iterator[tuple[int, str]]:
    """Yield each promise that a state breaks: at which shard, and what.

    A commit that holds names a file that is gone, which nobody may have removed; or a run that nothing befalls does not
    make everything whole.
    """
    # A reader may have found any commit that ever held, and is about to read its file: of one that was superseded it
    # may be told that the file is gone, of any other not. That it begins at every moment is why it has no steps.
    for shard, held in enumerate(state.commits):
        file = shard, (held or (-1,))[-1]
        if held and file not in state.files and shard not in state.excused:
            yield shard, f"a commit names attempt {file[1]}, whose file is gone"
    if not state.workers:
        after = finish(state, rules)
        for shard, held in enumerate(after.commits):
            if not held or (shard, held[-1]) not in after.files:
                yield shard, "it is not whole after one more run"
            if any(file[0] == shard and file[1] != held[-1] for file in after.files):
                yield shard, "it has leftovers after one more run"


def finish(state: State, rules: Rules) -> State:
    """Return what one more driver makes of a state, if nothing befalls it, and nothing is on its way."""
    driver = Worker(3)
    now = state._replace(workers=(driver,), on_way=(), faults=0)
    while now.workers:
        (step,) = [after for label, after in _work(now, now.workers[0], (), rules) if "late listing" not in label]
        now = step
    return now


def explore(
    rules: Rules | None = None, start: State | None = None, on_step: Callable[[State, State], None] | None = None
) -> int:
    """Visit every state that can be reached, and return how many there are.

    Args:
        rules: of the protocol; all by default.
        start: two shards and two faults by default.
        on_step: called with the states before and after every step.

    Raises:
        Violation: with the steps that lead there.
    """
    rules, start = rules or Rules(), start or State()
    seen, path = {start}, [("", start, iter(list(steps(start, rules))))]
    while path:
        label, after = next(path[-1][2], ("", None))
        if after is None:
            path.pop()
            continue
        if on_step is not None:
            on_step(path[-1][1], after)
        if after not in seen:
            seen.add(after)
            path.append((label, after, steps(after, rules)))
            for shard, problem in problems(after, rules):
                told = "\n".join(f"  {what}" for what, *_ in path[1:])
                raise Violation(f"shard {shard}: {problem}, after:\n{told}")
    return len(seen)
