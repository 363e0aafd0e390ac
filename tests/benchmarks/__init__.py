"""The speed table."""

from growtas.allocator import keep_memory

# As the command line does, here for every program that is timed, and before torch is imported.
keep_memory()
