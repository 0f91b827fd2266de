"""Sources of images: list folders, buckets, lists, tars and tables, and fetch one image's bytes from any of them."""
