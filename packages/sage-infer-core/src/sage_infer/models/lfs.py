"""Git LFS leaves a short text where a large file should be; it is the commonest way to have no model."""

__all__ = ["is_pointer"]


def is_pointer(head: bytes) -> bool:
    return head.startswith(b"version https://git-lfs.github.com/spec/")
