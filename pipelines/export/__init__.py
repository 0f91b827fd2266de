"""Export an output to the formats of other tools (COCO, YOLO, COCO panoptic, Label Studio, CVAT)."""
