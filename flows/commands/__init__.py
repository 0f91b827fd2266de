"""The commands of xsam-label: arguments in, one call, what a person sees out."""
