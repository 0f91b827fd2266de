"""Read the images of a run's exemplars from its plan, for a replica that starts."""

from __future__ import annotations

from pipelines.errors import PlanError
from pipelines.images.decode import decode_image
from pipelines.labeling.shard import LabelJob
from pipelines.planning.exemplars.images import exemplar_images
from pipelines.planning.plan import require_plan
from pipelines.redaction import quoted
from pipelines.storage.store import Store
from pipelines.types import Image, ImageRef


def read_exemplars(store: Store, job: LabelJob) -> dict[str, Image]:
    """Return the decoded images of all exemplars that a run's prompts have, by the SHA-256 of their bytes.

    Args:
        store: the output.
        job: what the run asks.

    Raises:
        DamagedError: the plan's file is missing or is not what the plan says.
        PlanError: an image was forgotten, so what it showed cannot be asked any more.
    """
    held = exemplar_images(store, require_plan(store, job.run_id))
    images = dict[str, Image]()
    for prompt in job.prompts:
        for name in dict.fromkeys(exemplar.image_sha256 for exemplar in prompt.exemplars):
            if name not in held:
                raise PlanError(
                    f"{store.uri}: an exemplar of {quoted(prompt.category_name)} was forgotten on request, so run "
                    f"{job.run_id} cannot ask for it again"
                )
            if name not in images:
                # They were decoded under the same limits when the run was planned.
                images[name] = decode_image(held[name], ImageRef(image_id=name, uri=""), job.config.decode)
    return images
