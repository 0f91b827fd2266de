#!/usr/bin/env bash
# prefect 3.9.1: an interval schedule in a time zone is not as long as it says on days when clocks change. Every 15 minutes in
# Europe/Berlin there are 75 minutes without a run in the night to 2027-10-31: the four runs of the hour that comes twice are
# left out. Every day, from an anchor at 02:00 in winter: 03:00 in summer, from the night on in which there is no 02:00. In
# UTC each gap is as long as the interval.
# Seen 2026-12-01: gaps [15.0, 75.0] in Europe/Berlin and [15.0] in UTC; summer nights at 03:00
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install -q --disable-pip-version-check prefect==3.9.1
PREFECT_HOME="$folder/home" "$folder/venv/bin/python" - <<'PY'
import asyncio
from datetime import datetime, timedelta
from zoneinfo import ZoneInfo

from prefect.server.schemas.schedules import IntervalSchedule

BERLIN = ZoneInfo("Europe/Berlin")


def due(every, zone, first, last):
    schedule = IntervalSchedule(interval=every, anchor_date=datetime(2027, 1, 1, 2, tzinfo=BERLIN), timezone=zone)
    times = asyncio.run(schedule.get_dates(n=500, start=first, end=last))
    return [datetime.fromtimestamp(time.timestamp(), BERLIN) for time in times]


night = datetime(2027, 10, 31, tzinfo=BERLIN)
for zone, gaps in (("Europe/Berlin", {15.0, 75.0}), ("UTC", {15.0})):
    times = [time.timestamp() for time in due(timedelta(minutes=15), zone, night, night + timedelta(hours=6))]
    found = {(later - earlier) / 60 for earlier, later in zip(times, times[1:])}
    print(f"every 15 minutes in {zone}: gaps of {sorted(found)} minutes")
    assert found == gaps, f"changed: gaps {sorted(found)} in {zone}"

nights = due(timedelta(days=1), "Europe/Berlin", datetime(2027, 3, 26, tzinfo=BERLIN), datetime(2027, 4, 1, tzinfo=BERLIN))
print("every day from an anchor at 02:00:", *(f"{night:%m-%d %H:%M}" for night in nights))
assert [night.hour for night in nights] == [2, 2, 3, 3, 3, 3], "changed: hours of the nights"
PY
echo "as described: prefect 3.9.1"
