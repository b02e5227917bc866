"""Detection of Git LFS pointers: short text files in place of large files, a common cause of missing weights."""

__all__ = ["is_pointer"]


def is_pointer(head: bytes) -> bool:
    return head.startswith(b"version https://git-lfs.github.com/spec/")
