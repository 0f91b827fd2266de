"""Import what people have corrected in other tools (COCO, CVAT, Label Studio) as a run of an output."""
