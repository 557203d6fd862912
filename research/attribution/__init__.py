"""Which explanation can one trust? Many attribution methods, networks and seeds, graded on the same images."""
