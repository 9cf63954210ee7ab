"""Cells of the study: one JSON file each, with a time limit, skipped where it exists."""

import json
import os
import signal
import time
import traceback

from benchmarks.report import Store


class OutOfTime(BaseException):
    """Raised in a cell whose time is up; not an Exception, so that no library swallows it."""


class Limit:
    """Raise `OutOfTime` in the body after so many processor seconds, where there are such alarms.

    Processor seconds, because what a busy machine lets through says nothing about a method.
    """

    def __init__(self, seconds):
        self.seconds = seconds if hasattr(signal, "SIGPROF") else None

    def __enter__(self):
        if self.seconds:
            self.before = signal.signal(signal.SIGPROF, self._stop)
            signal.setitimer(signal.ITIMER_PROF, self.seconds)

    def __exit__(self, *_):
        if self.seconds:
            signal.setitimer(signal.ITIMER_PROF, 0.0)
            signal.signal(signal.SIGPROF, self.before)

    @staticmethod
    def _stop(*_):
        raise OutOfTime


class Cells:
    """Kept cells of one folder.

    Parameters
    ----------
    folder : path
        Where the files are.
    limit : float or None
        Processor seconds that a cell may take. A longer one is kept as `{"timed_out": limit}` and
        tried again only under a longer limit.
    compute : bool
        Whether missing cells are computed; else they are left out.
    """

    def __init__(self, folder, limit=None, compute=True):
        self.store = Store(folder)
        self.limit, self.compute = limit, compute

    def path(self, key):
        """Return the file of a cell."""
        return self.store.folder / f"{key.replace(' ', '-')}.json"

    def kept(self, key):
        """Return a cell that need not be computed, or None."""
        path = self.path(key)
        if not path.exists():
            return None
        cell = json.loads(path.read_text())
        longer = self.limit is None or self.limit > cell.get("timed_out", self.limit)
        return None if "timed_out" in cell and longer and self.compute else cell

    def cell(self, key, compute):
        """Return the cell `key`, computed if need be; None if missing and nothing is computed."""
        cell = self.kept(key)
        if cell is None and self.compute:
            self.path(key).unlink(missing_ok=True)
            cell = self.store.row(key, lambda: self._timed(compute))
        return cell

    def _timed(self, compute):
        load, wall, processor = os.getloadavg()[0], time.perf_counter(), time.process_time()
        try:
            with Limit(self.limit):
                cell = compute()
        except OutOfTime:
            cell = {"timed_out": self.limit}
        except Exception as error:  # a method that fails is a cell of the table, too
            traceback.print_exc()
            cell = {"error": repr(error)}
        return cell | {
            "wall_seconds": time.perf_counter() - wall,
            "processor_seconds": time.process_time() - processor,
            "load": load,
        }


def median_and_worst(cells, read, best=max):
    """Return median and worst of a number over cells, and how many cells have it.

    Parameters
    ----------
    cells : list of dict or None
        One per seed.
    read : callable
        Maps a cell to a number; a cell that lacks it (timed out, failed) does not count.
    best : {max, min}
        Which numbers are good.
    """
    values = []
    for cell in cells:
        try:
            value = read(cell)
        except (KeyError, TypeError):
            continue
        if value is not None:
            values.append(value)
    if not values:
        return None, None, 0
    ordered = sorted(values)
    middle = len(ordered) // 2
    median = ordered[middle] if len(ordered) % 2 else 0.5 * (ordered[middle - 1] + ordered[middle])
    return median, min(values) if best is max else max(values), len(values)
