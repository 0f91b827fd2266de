"""Implementation of `python -m xsam_model.convert_xsam_to_hf`: reads and checks checkpoints, writes model folders."""
