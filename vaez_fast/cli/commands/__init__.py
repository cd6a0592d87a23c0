"""The commands of `vaez-fast`: each module adds its options to a parser and runs them.

Help and errors of a command line must not wait for PyTorch, whose import takes seconds. So a
command imports what needs PyTorch when it runs.

DESCRIPTION and EXAMPLE are parts of its help. LIGHTER says what needs less memory if memory runs
out. ONLY_PRINTS is true if the command writes no file.
"""
