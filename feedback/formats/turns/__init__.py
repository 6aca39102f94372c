"""What was said, out of the ways in which files write it: parts, cells of a table, transcripts, templated text."""
