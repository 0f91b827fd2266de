"""Read the images of a run's exemplars from its plan, for a replica that starts."""

from __future__ import annotations

from collections.abc import Iterator

from pipelines.errors import PlanError
from pipelines.images.decode import decode_image
from pipelines.labeling.shard import LabelJob
from pipelines.planning.exemplars.images import exemplar_images
from pipelines.planning.plan import require_plan
from pipelines.redaction import quoted
from pipelines.storage.store import Store
from pipelines.types import Image, ImageRef


def read_exemplars(store: Store, job: LabelJob) -> Iterator[tuple[str, Image]]:
    """Yield the image of each exemplar that a run's prompts have, with the SHA-256 of its bytes, decoded one by one.

    Args:
        store: the output.
        job: what the run asks.

    Raises:
        DamagedError: the plan's file is missing or is not what the plan says.
        PlanError: an image was forgotten, so what it showed cannot be asked any more.
    """
    held = exemplar_images(store, require_plan(store, job.run_id))
    wanted = {one.image_sha256: prompt.category_name for prompt in job.prompts for one in prompt.exemplars}
    if gone := [name for digest, name in wanted.items() if digest not in held]:
        raise PlanError(
            f"{store.uri}: an exemplar of {quoted(gone[0])} was forgotten on request, so run {job.run_id} cannot ask "
            "for it again"
        )
    for digest in wanted:
        # They were decoded under the same limits when the run was planned.
        yield digest, decode_image(held[digest], ImageRef(image_id=digest, uri=""), job.config.decode)
