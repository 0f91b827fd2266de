"""Parts of `python -m xsam_model.convert_xsam_to_hf`: reading and checking checkpoints, writing folders of weights."""
