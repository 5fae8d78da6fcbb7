"""The vector fields of training, one file each."""
