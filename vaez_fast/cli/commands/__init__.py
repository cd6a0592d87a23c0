"""The commands of `vaez-fast`: each module adds its options to a parser and runs them.

Help and complaints about a command line must not wait for PyTorch, whose import takes seconds: what
needs it is imported where a command runs.

DESCRIPTION and EXAMPLE frame its help; LIGHTER says what to do where memory ran out, ONLY_PRINTS
that the command leaves no file.
"""
