"""Where images come from: folders, buckets, lists, tars, tables, the web; and one image's bytes from any of them."""
