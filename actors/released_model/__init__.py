"""From the Hugging Face Hub to a model folder: the released checkpoint is fetched, converted and tried."""
