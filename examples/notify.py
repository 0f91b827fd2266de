"""Have a Prefect server call a webhook when a run fails, or is unlike the last; if asked, also when one ends well.

PREFECT_API_URL=http://SERVER:4200/api python examples/notify.py https://hooks.example.com/labels [--completed]
"""

from __future__ import annotations

import argparse
from datetime import timedelta

from prefect.automations import Automation
from prefect.blocks.webhook import Webhook
from prefect.events.actions import CallWebhook
from prefect.events.schemas.automations import EventTrigger
from pydantic import SecretStr

FLOW = {"prefect.resource.role": "flow", "prefect.resource.name": "label-collection"}
ENDED = '{"text": "{{ flow_run.name }}: {{ flow_run.state.name }}: {{ flow_run.state.message }}"}'
CHANGED = '{"text": "{{ event.payload.run_id }}: {{ event.payload.found | join(", ") }}"}'

arguments = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
arguments.add_argument("url", help="called with a JSON document: its text says which run, how it ended, and why")
arguments.add_argument("--completed", action="store_true", help="also when a run has ended well")
given = arguments.parse_args()

webhook = Webhook(url=SecretStr(given.url)).save("xsam-label", overwrite=True)
ends = ["Failed", "Crashed", *(["Completed"] if given.completed else [])]
for name, expect, related, text in (
    ("xsam-label: a run has ended", {f"prefect.flow-run.{end}" for end in ends}, FLOW, ENDED),
    ("xsam-label: a run is unlike the last", {"xsam-label.canary.alarm", "xsam-label.run.changed"}, {}, CHANGED),
):
    trigger = EventTrigger(expect=expect, match_related=related, posture="Reactive", threshold=1, within=timedelta(0))
    action = CallWebhook(block_document_id=webhook, payload=text)
    Automation(name=name, trigger=trigger, actions=[action]).create()
    print(f"automation made: {name}")
