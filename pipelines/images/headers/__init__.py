"""What the bytes around the pixels tell: markers of JPEG, chunks of PNG, tags of TIFF and EXIF, and their bounds."""
