#!/usr/bin/env bash
# pydantic 2.14.4: a field whose description has the words of its model's docstring has no description in the JSON schema.
# The field refers to the model with $ref, where the same words stand, so one of the two is left out as superfluous. But what
# reads "properties", a form for instance, shows the description beside the $ref and none for this field. A full stop more
# or less in either of them brings it back, so a field loses its text when somebody rewords a class.
# Seen 2026-11-29: same words: {"$ref": "#/$defs/LabelConfig"}; one word more: {"$ref": ..., "description": ...}
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install -q --disable-pip-version-check pydantic==2.14.4
"$folder/venv/bin/python" - <<'PY'
import json

from pydantic import BaseModel, Field


class LabelConfig(BaseModel):
    """How images are labeled."""


class RunConfig(BaseModel):
    same: LabelConfig = Field(description="How images are labeled.")
    other: LabelConfig = Field(description="How all images are labeled.")


fields = RunConfig.model_json_schema()["properties"]
print(json.dumps(fields, indent=2))
assert fields["other"].get("description") == "How all images are labeled.", "changed: a description beside a $ref"
assert "description" not in fields["same"], "changed: the description in the words of the docstring"
assert RunConfig.model_fields["same"].description == "How images are labeled."
PY
echo "as described: pydantic 2.14.4"
