"""Kernels that numba compiles: loops over bytes and events for which numpy has no words.

Every file is complete in itself: numba's cache looks at the file of the kernel that is called, and at no other.
"""
