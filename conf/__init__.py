"""The config groups as a package, so that they are found from a checkout and from an installed wheel alike."""
